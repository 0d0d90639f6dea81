"""Plots of episodes in a maze."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from .plots import BLACK, BLUE, GREY, ORANGE, finish
from .records import EpisodePath, RolloutRecord

_WALL = 1
_COLUMNS = 8
_PANEL_INCHES = 1.6


@dataclass(frozen=True)
class MazeWalls:
    """The walls of a maze, in the coordinates of its goals, in metres."""

    corners: np.ndarray  # (wall, 2) lower left corner of each wall's cell
    side: float  # side of a cell
    low: np.ndarray  # (2,) opposite corners of the whole map
    high: np.ndarray


def read_walls(environment: gymnasium.Env) -> MazeWalls | None:
    """Return the walls of a gymnasium-robotics maze (point or ant), or None for another environment."""
    maze: Any = getattr(environment.unwrapped, "maze", None)
    if not hasattr(maze, "maze_map"):
        return None
    side, cells = float(maze.maze_size_scaling), np.array(maze.maze_map, dtype=object)
    corners = {index: maze.cell_rowcol_to_xy(np.array(index)) - side / 2 for index in np.ndindex(cells.shape)}
    every = np.array(list(corners.values()))
    walls = [corner for index, corner in corners.items() if cells[index] == _WALL]
    return MazeWalls(np.reshape(walls, (-1, 2)), side, every.min(axis=0), every.max(axis=0) + side)


def plot_trajectories(walls: MazeWalls, record: RolloutRecord, title: str, path: Path) -> None:
    """Plot the path of each kept episode (at least one) on a small map, coloured by success."""
    rows = math.ceil(len(record.paths) / _COLUMNS)
    columns = math.ceil(len(record.paths) / rows)
    width, height = walls.high - walls.low
    inches = max(_PANEL_INCHES * columns, 5.5) / columns
    figure = Figure(figsize=(inches * columns, inches * height / width * rows + 1.0), layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in panels:
        axes.set_axis_off()
    for axes, way in zip(panels, record.paths, strict=False):
        _draw(axes, walls, way, BLUE if record.episodes[way.episode].success else ORANGE)
    reached = sum(bool(episode.success) for episode in record.episodes)
    share = f"{reached} of {len(record.episodes)} episodes succeed ({100 * reached / len(record.episodes):.0f} %)"
    shown = "" if len(record.paths) == len(record.episodes) else f"; these are the first {len(record.paths)}"
    handles = [
        Line2D([], [], color=BLUE, linewidth=1.5, label="succeeded"),
        Line2D([], [], color=ORANGE, linewidth=1.5, label="did not"),
        Line2D([], [], color=BLACK, marker="o", markersize=4, linestyle="none", label="start"),
        Line2D([], [], color=BLACK, marker="*", markersize=7, linestyle="none", label="goal"),
    ]
    finish(figure, f"{title}\n{share}{shown}", path, handles, columns=4)


def _draw(axes: Axes, walls: MazeWalls, way: EpisodePath, color: str) -> None:
    """Draw one episode on its map; if the environment moves the goal, all goals are marked."""
    cells = [Rectangle((float(x), float(y)), walls.side, walls.side) for x, y in walls.corners]
    axes.add_collection(PatchCollection(cells, facecolor=GREY, edgecolor=GREY, linewidth=0.3, alpha=0.6))
    axes.plot(way.positions[:, 0], way.positions[:, 1], color=color, linewidth=1.2)
    axes.plot(*way.positions[0, :2], "o", color=color, markersize=4)
    goals = np.unique(way.goals, axis=0)
    axes.plot(goals[:, 0], goals[:, 1], "*", color=BLACK, markersize=6, markeredgewidth=0, linestyle="none")
    (left, bottom), (right, top) = walls.low, walls.high
    axes.set(xlim=(left, right), ylim=(bottom, top), aspect="equal")
