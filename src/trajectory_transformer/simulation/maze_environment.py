"""Point mazes with training and held-out start-goal pairs, to test agents on pairs that are not in the data.

Importing this module registers them; ``make_environment`` imports it when needed.
"""

import zlib
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.ezpickle import EzPickle
from gymnasium_robotics.envs.maze.maps import LARGE_MAZE, MEDIUM_MAZE, U_MAZE
from gymnasium_robotics.envs.maze.point_maze import PointMazeEnv

from ..configuration import require, require_choice
from .pointmaze import VELOCITY_GAIN, WALL, Cell, MazeMap, free_cells

Pair = tuple[Cell, Cell]

MAX_SPEED = 4.0  # metres per second for an action of 1

# Four rooms of 4 × 4 cells; each shares a door with both neighbours.
# Differs from the paper, which publishes neither its map nor its data nor the criterion for reaching a goal.
FOUR_ROOMS: MazeMap = [
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 1, 0, 1, 1, 1, 1, 1, 0, 1, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
    [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1],
    [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1],
]


def pairs_of(maze_map: MazeMap, part: str) -> list[Pair]:
    """Return the ordered pairs (start, goal) of different free cells that belong to ``part``.

    About one pair in five is held out, by a hash of its four numbers.

    Raises:
        UserError: there is no such part, or it is empty.
    """
    require_choice("pairs", part, ("train", "held_out", "all"))
    cells = free_cells(maze_map)
    pairs = [(start, goal) for start in cells for goal in cells if start != goal]
    if part != "all":
        held_out = {(s, g) for s, g in pairs if zlib.crc32(f"{s[0]},{s[1]} to {g[0]},{g[1]}".encode()) % 5 == 0}
        pairs = [pair for pair in pairs if (pair in held_out) == (part == "held_out")]
    require(bool(pairs), f"pairs={part}: this maze_map ({len(cells)} free cells) has no such start-goal pair")
    return pairs


class PairMazeEnv(PointMazeEnv):
    """gymnasium-robotics' point maze, with start and goal drawn jointly from the pairs of one part.

    As in the original, start and goal lie within 0.25 m of their cells' centres in either direction, and a step within
    0.45 m of the goal succeeds. Unlike there, an action is a velocity, a fraction of 4 m/s in either direction, tracked
    by forces for 0.1 s (with forces for 0.01 s, a model learns only that the point keeps moving), and letters in the
    map have no meaning. ``pair`` is the start and goal cell of the episode.

    Args:
        maze_map: rows of cells; 1 is a wall.
        pairs: "train", "held_out" or "all".
        action_repeat: simulation steps of 0.01 s per action, at least 1; an action that reaches the goal ends earlier.
        arguments: those of ``PointMazeEnv`` except for ``reset_target``, because a new goal would not belong to the
            start; without ``continuing_task=True`` the episode ends at the goal.

    Raises:
        UserError: the map has no pair of this part.
    """

    def __init__(self, maze_map: MazeMap, pairs: str = "all", action_repeat: int = 10, **arguments: Any) -> None:
        require(action_repeat >= 1, f"action_repeat={action_repeat} must be at least 1")
        self.action_repeat, self.max_speed = action_repeat, MAX_SPEED
        self.pairs = pairs_of(maze_map, pairs)
        self.candidates, self.pair = self.pairs, self.pairs[0]
        arguments = {"continuing_task": False} | arguments
        super().__init__([list(row) for row in maze_map], reset_target=False, **arguments)
        EzPickle.__init__(self, maze_map, pairs, action_repeat, **arguments)

    def reset(  # type: ignore[override]  (the parent takes any keyword and ignores most)
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Begin an episode, optionally at the ``reset_cell`` and ``goal_cell`` (row, column) in ``options``.

        If one is given, the other is drawn from the pairs of the part; if both are given, they may be of any part.

        Raises:
            UserError: a cell is a wall or outside the map, both are equal, or the part has no pair with it.
        """
        asked = {name: self._cell(name, cell) for name, cell in (options or {}).items() if cell is not None}
        start, goal = asked.get("reset_cell"), asked.get("goal_cell")
        require(start is None or start != goal, f"reset_cell and goal_cell are both {start}; they must differ")
        if start is not None and goal is not None:
            self.candidates = [(start, goal)]
        else:
            self.candidates = [pair for pair in self.pairs if start in (None, pair[0]) and goal in (None, pair[1])]
        words = " and ".join(f"{name}={cell}" for name, cell in asked.items())
        require(bool(self.candidates), f"none of this environment's start-goal pairs has {words}")
        return super().reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        """Move at approximately this velocity; the reward is that of the last simulation step."""
        result = super().step(self._force(action))
        for _ in range(self.action_repeat - 1):
            if result[2] or result[3]:  # terminated or truncated
                break
            result = super().step(self._force(action))
        return result

    def _force(self, action: np.ndarray) -> np.ndarray:
        velocity = self.point_env.data.qvel[:2]
        return np.clip(VELOCITY_GAIN * (MAX_SPEED * np.asarray(action) - velocity), -1.0, 1.0)

    def generate_target_goal(self) -> np.ndarray:
        """Draw the pair, and return its goal; ``PointMazeEnv.reset`` calls this before :meth:`generate_reset_pos`."""
        self.pair = self.candidates[int(self.np_random.integers(len(self.candidates)))]
        return self.maze.cell_rowcol_to_xy(np.array(self.pair[1]))

    def generate_reset_pos(self) -> np.ndarray:
        return self.maze.cell_rowcol_to_xy(np.array(self.pair[0]))

    def _cell(self, name: str, cell: Any) -> Cell:
        require_choice("option", name, ("reset_cell", "goal_cell"))
        row, column = (int(index) for index in cell)
        rows, columns = self.maze.map_length, self.maze.map_width
        require(
            0 <= row < rows and 0 <= column < columns,
            f"{name}=({row}, {column}) lies outside the map, which has {rows} rows and {columns} columns",
        )
        require(self.maze.maze_map[row][column] != WALL, f"{name}=({row}, {column}) is a wall; choose a free cell")
        return row, column


# Steps of 0.1 s; enough for the scripted controller at 4 m/s from any start to any goal.
for _name, _map, _limit in (
    ("FourRooms", FOUR_ROOMS, 100),
    ("UMaze", U_MAZE, 50),
    ("Medium", MEDIUM_MAZE, 100),
    ("Large", LARGE_MAZE, 150),
):
    gym.register(
        f"trajectory_transformer/PairMaze_{_name}-v0",
        entry_point=f"{__name__}:{PairMazeEnv.__name__}",
        kwargs={"maze_map": _map},
        max_episode_steps=_limit,
    )
