"""Scripted behaviours for the point mazes: breadth-first search over cells, then a velocity controller between them."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .recipe import Controller, Environment

Cell = tuple[int, int]  # row, column
MazeMap = Sequence[Sequence[int | str]]

WALL = 1

REACHED = 0.3  # metres from a cell's centre at which the next waypoint becomes the target
POSITION_GAIN = 4.0  # desired speed in metres per second, per metre of remaining distance
VELOCITY_GAIN = 1.0  # action per metre per second of missing speed; an action of 1 accelerates by about 24 m/s²


def free_cells(maze_map: MazeMap) -> list[Cell]:
    """Return all cells that are not walls, row by row."""
    return [(r, c) for r, row in enumerate(maze_map) for c, content in enumerate(row) if content != WALL]


def shortest_path(maze_map: MazeMap, start: Cell, goal: Cell) -> list[Cell]:
    """Return the cells after ``start`` up to ``goal`` by breadth-first search; [goal] if both are equal.

    Raises:
        ValueError: walls separate them.
    """
    if start == goal:
        return [goal]
    previous: dict[Cell, Cell] = {start: start}
    frontier = deque([start])
    while frontier and goal not in previous:
        row, column = frontier.popleft()
        for cell in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
            inside = 0 <= cell[0] < len(maze_map) and 0 <= cell[1] < len(maze_map[0])
            if inside and maze_map[cell[0]][cell[1]] != WALL and cell not in previous:
                previous[cell] = (row, column)
                frontier.append(cell)
    if goal not in previous:
        raise ValueError(f"no way from cell {start} to cell {goal}")
    path = [goal]
    while previous[path[-1]] != start:
        path.append(previous[path[-1]])
    return path[::-1]


class Navigator:
    """Controller that moves to a target position, cell by cell.

    Args:
        maze: gymnasium-robotics' ``Maze``.
        speed: maximum speed in metres per second.
        max_speed: metres per second of an action of 1, if actions are velocities; None if they are forces.
    """

    def __init__(self, maze: Any, speed: float, max_speed: float | None = None) -> None:
        self.maze, self.speed, self.max_speed = maze, speed, max_speed
        self.target = np.zeros(2)
        self.path: list[Cell] = []
        self.origin: Cell = (0, 0)

    def head_for(self, target: np.ndarray, position: np.ndarray) -> None:
        """Set a new target (2,), in metres, and plan the path to it."""
        self.target = np.array(target)
        self._plan(position)

    def arrived(self, position: np.ndarray) -> bool:
        return bool(np.linalg.norm(self.target - position) < REACHED)

    def action(self, position: np.ndarray, velocity: np.ndarray) -> np.ndarray:
        """Return the (2,) action before noise and clipping."""
        if self._cell(position) not in (self.origin, self.path[0]):  # pushed off the path
            self._plan(position)
        while len(self.path) > 1 and np.linalg.norm(self._centre(self.path[0]) - position) < REACHED:
            self.origin = self.path.pop(0)
        waypoint = self._centre(self.path[0]) if len(self.path) > 1 else self.target
        desired = POSITION_GAIN * (waypoint - position)
        desired *= min(1.0, self.speed / max(float(np.linalg.norm(desired)), 1e-9))
        if self.max_speed is not None:
            return desired / self.max_speed
        return VELOCITY_GAIN * (desired - velocity)

    def _plan(self, position: np.ndarray) -> None:
        self.origin = self._cell(position)
        self.path = shortest_path(self.maze.maze_map, self.origin, self._cell(self.target))

    def _cell(self, position: np.ndarray) -> Cell:
        row, column = self.maze.cell_xy_to_rowcol(position)
        return int(row), int(column)

    def _centre(self, cell: Cell) -> np.ndarray:
        return self.maze.cell_rowcol_to_xy(np.array(cell))


@dataclass(frozen=True)
class MazeBehavior:
    """Behaviour that walks to the goal, optionally after detours."""

    name: str  # stored with each of its episodes
    weight: float  # share of the episodes
    speed: tuple[float, float]  # range, in metres per second, from which each episode draws its maximum speed
    noise: float = 0.0  # standard deviation of the action noise; an action is clipped to [-1, 1]
    # Range, inclusive, from which each episode draws the number of random cells to visit before the goal. With a number
    # that no episode can reach, the point wanders until the end.
    detours: tuple[int, int] = (0, 0)

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        unwrapped: Any = environment.unwrapped
        maze = unwrapped.maze
        navigator = Navigator(maze, float(generator.uniform(*self.speed)), getattr(unwrapped, "max_speed", None))
        detours_left = int(generator.integers(self.detours[0], self.detours[1] + 1))
        centres: list[np.ndarray] = [maze.cell_rowcol_to_xy(np.array(cell)) for cell in free_cells(maze.maze_map)]
        heading: np.ndarray | None = None

        def act(observation: dict[str, np.ndarray]) -> np.ndarray:
            nonlocal detours_left, heading
            position, velocity = observation["observation"][:2], observation["observation"][2:]
            if heading is not None and detours_left > 0 and navigator.arrived(position):
                detours_left, heading = detours_left - 1, None
            if heading is None:
                goal = observation["desired_goal"]
                heading = centres[int(generator.integers(len(centres)))] if detours_left > 0 else goal
                navigator.head_for(heading, position)
            return navigator.action(position, velocity) + self.noise * generator.standard_normal(2)

        return act
