"""What a planner and a critic do wrong in a maze, by comparison with the true lengths of ways (docs/critic.md).

An objective that knows the maze takes the critic's place, with a model of ``experiment=pointmaze_…``::

    python evaluate.py checkpoint=RUN/checkpoints/best.ckpt planner.cdf_act=null \\
        +planner.objective._target_=tools.maze_oracle.WayToGoal

How far a plan must look ahead until a critic's V rises above its value here, along the shortest ways between all pairs
of cells, and a figure of V::

    python -m tools.maze_oracle CRITIC.ckpt --figure value.png
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

from trajectory_transformer.configuration import require
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.learners.critic import Critic
from trajectory_transformer.planning.objectives import Candidates, Objective, PlanningContext
from trajectory_transformer.simulation.pointmaze import WALL, free_cells

SPACING = 0.1  # metres between the points of the grid on which ways are measured
RADIUS = 0.1  # metres, of the point
SECONDS = 0.1  # of an action
SUCCESS = 0.45  # metres from the goal at which an episode ends
SEEN = ["desired_goal[0]", "desired_goal[1]", "observation[0]", "observation[1]"]
MOVES = [(r, c) for r in range(-2, 3) for c in range(-2, 3) if np.gcd(r, c) == 1]  # to 16 neighbours


class Ways:
    """Lengths of the shortest ways of a point in a maze, whose cells have sides of a metre.

    ``maze_map`` has rows of cells, 1 is a wall; the middle of the map is the origin, and y decreases with the row, as
    in gymnasium-robotics. Ways lead over a grid of points that the walls leave free, in steps to 16 neighbours: they
    are up to 3 % longer than the shortest ones.
    """

    def __init__(self, maze_map: Sequence[Sequence[Any]]) -> None:
        walls = np.array([[cell == WALL for cell in row] for row in maze_map])
        self._middle = np.array(walls.shape)[::-1] / 2
        side = round(1 / SPACING)
        fine = np.kron(walls, np.ones((side, side), dtype=bool))
        # Distances between grid points overestimate that to the wall's edge by half a spacing.
        self._free = np.asarray(distance_transform_edt(~fine)) * SPACING - SPACING / 2 >= RADIUS - 1e-9
        self._nearest = np.asarray(distance_transform_edt(~self._free, return_distances=False, return_indices=True))
        numbers = np.full(fine.shape, -1)
        numbers[self._free] = np.arange(self._free.sum())
        rows, columns = np.nonzero(self._free)
        edges = []
        for down, right in MOVES:
            # A move is free if all points of the smallest rectangle around it are.
            block = [(a, b) for a in _between(down) for b in _between(right)]
            inside = [self._free_at(rows + a, columns + b) for a, b in block]
            begin = np.flatnonzero(np.all(inside, axis=0))
            end = numbers[rows[begin] + down, columns[begin] + right]
            edges.append((begin, end, np.full(len(begin), SPACING * np.hypot(down, right))))
        begin, end, length = (np.concatenate(parts) for parts in zip(*edges, strict=True))
        self._graph = coo_array((length, (begin, end)), shape=(len(rows), len(rows))).tocsr()
        self._numbers = numbers
        self._to: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    @property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """The free points of the grid, as a mask (row, column), and their positions (n, 2)."""
        row, column = np.nonzero(self._free)
        return self._free, self._position(row, column)

    def lengths(self, positions: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Metres (n,) from ``positions`` (n, 2), x and y, to a ``goal`` (2,); those within walls begin beside them."""
        left, _ = self._towards(goal)
        place = self._place(positions)
        corners = [np.floor(place) + np.array([[a], [b]]) for a in (0, 1) for b in (0, 1)]
        found = []
        for corner in corners:
            row, column = self._snapped(corner)
            rest = SPACING * np.hypot(place[0] - row, place[1] - column)
            found.append(rest + left[self._numbers[row, column]])
        return np.min(found, axis=0)

    def way(self, start: np.ndarray, goal: np.ndarray) -> np.ndarray:
        """Positions (n, 2) along the shortest way from ``start`` (2,) to ``goal`` (2,)."""
        left, following = self._towards(goal)
        point, points = self._number(start), []
        while point >= 0:
            points.append(point)
            point = int(following[point])
        assert left[points[-1]] == 0, "a wall separates them"
        return self.points[1][points]

    def _towards(self, goal: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Metres that are left from each free point, and the next point on the way (negative where there is none)."""
        end = self._number(goal)
        if end not in self._to:
            self._to[end] = dijkstra(self._graph, indices=end, return_predecessors=True)
        return self._to[end]

    def _number(self, position: np.ndarray) -> int:
        row, column = self._snapped(self._place(position[None]))
        return int(self._numbers[row, column][0])

    def _position(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        x, y = SPACING * (column + 0.5) - self._middle[0], self._middle[1] - SPACING * (row + 0.5)
        return np.stack([x, y], axis=1)

    def _place(self, positions: np.ndarray) -> np.ndarray:
        """Fractional row and column (2, n) on the grid."""
        x, y = positions.T
        return np.stack([self._middle[1] - y, x + self._middle[0]]) / SPACING - 0.5

    def _snapped(self, place: np.ndarray) -> np.ndarray:
        """Row and column (2, n) of the free point nearest to the grid point at ``place``."""
        last = np.array(self._free.shape)[:, None] - 1
        row, column = np.clip(np.rint(place), 0, last).astype(int)
        return self._nearest[:, row, column]

    def _free_at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return self._free[rows, columns]  # a frame of walls surrounds the map, so no index leaves it


def _between(move: int) -> range:
    return range(min(move, 0), max(move, 0) + 1)


class WayToGoal(Objective):
    """Minus the metres left to the goal after the plan's last action, as far as the point moves freely.

    The order is that of the true discounted value of the plan's end, because all plans are equally long.
    """

    def prepare(self, context: PlanningContext) -> None:
        """Read the map of the maze; UserError if the model sees other dimensions than goal and position."""
        assert context.environment is not None
        maze = maze_of(context.environment)
        self._ways, self._reach = Ways(maze.maze.maze_map), SECONDS * maze.max_speed

    def __call__(self, candidates: Candidates) -> Tensor:
        seen = candidates.observations.double()
        goals, ends = seen[:, :, :2].numpy(), (seen[:, :, 2:] + self._reach * candidates.actions).numpy()
        scores = np.zeros(goals.shape[:2])
        for row, (goal, end) in enumerate(zip(goals, ends, strict=True)):
            for wanted in np.unique(goal, axis=0):
                chosen = (goal == wanted).all(axis=1)
                scores[row, chosen] = -np.maximum(self._ways.lengths(end[chosen], wanted) - SUCCESS, 0.0)
        return torch.from_numpy(scores).to(candidates.returns)


def maze_of(environment: EnvironmentSpec) -> Any:
    """Make a point maze; UserError unless its goal and position are what is seen."""
    require(
        environment.observation_names == SEEN,
        f"tools.maze_oracle needs a point maze of which {', '.join(SEEN)} are seen, in this order",
    )
    with make_environments(environment, 1) as batch:
        return batch.environments[0].unwrapped


def longest_wait(values: np.ndarray) -> int:
    """Greatest number of steps, along ``values`` (n,), from one to the next that exceeds it and all before it.

    The last value stands for the goal, which ends the episode, and exceeds all.
    """
    records = np.flatnonzero(values > np.maximum.accumulate(np.concatenate([[-np.inf], values[:-1]])))
    return int(np.diff([*records[records < len(values) - 1], len(values) - 1]).max())


def look_ahead_needed(critic: Critic, maze: Any) -> np.ndarray:
    """Metres (pair,) that must be seen ahead to climb V along the shortest way between each two cells.

    The way ends where the goal is reached. A planner that sees fewer metres finds no higher V ahead somewhere on it.
    """
    ways, centres = (
        Ways(maze.maze.maze_map),
        [maze.maze.cell_rowcol_to_xy(np.array(c)) for c in free_cells(maze.maze.maze_map)],
    )
    found = []
    for goal in centres:
        for start in centres:
            way = ways.way(start, goal)
            way = way[: np.argmax(np.hypot(*(way - goal).T) <= SUCCESS) + 1]
            if len(way) > 1:
                steps = np.hypot(*np.diff(way, axis=0).T)
                even = np.arange(0.0, steps.sum() + SPACING, SPACING)
                along = np.concatenate([[0.0], steps.cumsum()])
                places = np.stack([np.interp(even, along, way[:, axis]) for axis in range(2)], axis=1)
                found.append(longest_wait(values_at(critic, places, goal)) * SPACING)
    return np.array(found)


def values_at(critic: Critic, positions: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """V (n,) of positions (n, 2) for a goal (2,)."""
    seen = np.concatenate([np.broadcast_to(goal, positions.shape), positions], axis=1)
    with torch.no_grad():
        return critic.network.v(torch.from_numpy(seen).float()).numpy()


def plot_values(critic: Critic, maze: Any, goal: tuple[int, int], path: Path) -> None:
    """Draw V and the true value over the maze, for a goal in the middle of the cell ``goal`` (row, column)."""
    ways, aim = Ways(maze.maze.maze_map), maze.maze.cell_rowcol_to_xy(np.array(goal))
    free, points = ways.points
    steps = np.maximum(ways.lengths(points, aim) - SUCCESS, 0.0) / (SECONDS * maze.max_speed)
    kinds = {
        "true value at full speed": -(1.0 - critic.discount**steps) / (1.0 - critic.discount),
        "critic's V": values_at(critic, points, aim),
    }
    figure = Figure(figsize=(9.0, 3.4), layout="constrained")
    for axes, (title, values) in zip(figure.subplots(1, 2), kinds.items(), strict=True):
        image = np.full(free.shape, math.nan)
        image[free] = values
        rows, columns = (size * SPACING / 2 for size in free.shape)
        shown = axes.imshow(image, extent=(-columns, columns, -rows, rows), cmap="viridis")
        axes.contour(
            np.flipud(image), levels=20, extent=(-columns, columns, -rows, rows), colors="white", linewidths=0.5
        )
        axes.plot(*aim, "*", color="red", markersize=12)
        axes.set_title(title, fontsize=10)
        axes.set_axis_off()
        figure.colorbar(shown, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("critic", type=Path)
    parser.add_argument("--figure", type=Path, help="file of the figure of V")
    parser.add_argument("--goal", type=int, nargs=2, default=(1, 10), help="row and column of the goal in the figure")
    asked = parser.parse_args()
    trained = Critic.load(asked.critic)
    place = maze_of(trained.environment)
    needed = look_ahead_needed(trained, place)
    print(f"{len(needed)} pairs of cells")
    for metres in (0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 3.0, 4.0, 6.0):
        print(f"V can be climbed by looking {metres} m ahead: {np.mean(needed <= metres + 1e-9):.3f}")
    if asked.figure is not None:
        plot_values(trained, place, tuple(asked.goal), asked.figure)
