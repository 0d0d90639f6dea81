"""A maze's plot shows its walls, and the path of each episode by success."""

from pathlib import Path
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from matplotlib.collections import PatchCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from trajectory_transformer.environments.make import make_environment
from trajectory_transformer.evaluation.maze_plot import MazeWalls, plot_trajectories, read_walls
from trajectory_transformer.evaluation.plots import BLUE, ORANGE
from trajectory_transformer.evaluation.records import EpisodePath, EpisodeRecord, RolloutRecord
from trajectory_transformer.planning.plan import PlanCounts

from .scripted import WALK


@pytest.fixture(scope="module")
def u_maze() -> MazeWalls:
    environment = make_environment("PointMaze_UMaze-v3")
    walls = read_walls(environment)
    environment.close()
    assert walls is not None
    return walls


def record(paths: int, successes: list[bool]) -> RolloutRecord:
    """Episode i goes i + 1 steps to the right from (−1, 1); its goal is (0, i)."""
    ways = tuple(
        EpisodePath(i, np.array([[-1.0 + 0.1 * t, 1.0] for t in range(i + 2)]), np.tile([0.0, i], (i + 2, 1)))
        for i in range(paths)
    )
    episodes = tuple(EpisodeRecord(i, 0.0, i + 1, success, success) for i, success in enumerate(successes))
    return RolloutRecord(episodes, np.zeros(1), 1, 1.0, (), PlanCounts(), ways)


def test_walls_lie_where_the_map_has_them(u_maze: MazeWalls) -> None:
    assert (u_maze.side, u_maze.low.tolist(), u_maze.high.tolist()) == (1.0, [-2.5, -2.5], [2.5, 2.5])
    corners = {tuple(corner) for corner in u_maze.corners.tolist()}
    border = {(x - 2.5, y - 2.5) for x in range(5) for y in range(5) if {x, y} & {0, 4}}
    assert corners == border | {(-1.5, -0.5), (-0.5, -0.5)}  # the bar between the two arms
    assert len(u_maze.corners) == 18


def test_an_ants_maze_is_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = make_environment("PointMaze_UMaze-v3")
    maze = environment.get_wrapper_attr("maze")
    for name, value in (("_maze_size_scaling", 4.0), ("_x_map_center", 10.0), ("_y_map_center", 10.0)):
        monkeypatch.setattr(maze, name, value)
    walls = read_walls(environment)
    environment.close()
    assert walls is not None
    assert (walls.side, walls.low.tolist(), walls.high.tolist()) == (4.0, [-10.0, -10.0], [10.0, 10.0])


def test_what_is_no_maze_has_no_walls() -> None:
    with gymnasium.make(WALK, disable_env_checker=True) as environment:
        assert read_walls(environment) is None
    other = gymnasium.Env()
    other.maze = SimpleNamespace(name="corn")  # type: ignore[attr-defined]
    assert read_walls(other) is None


def test_each_way_has_its_map_start_goal_and_colour(tmp_path: Path, drawn: list[Figure], u_maze: MazeWalls) -> None:
    successes = [True, False, True, True]
    plot_trajectories(u_maze, record(3, successes), "Maze-v0", tmp_path / "plots" / "trajectories.png")
    assert (tmp_path / "plots" / "trajectories.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = drawn
    assert len(figure.axes) == 3
    for index, axes in enumerate(figure.axes):
        (walls,) = (artist for artist in axes.collections if isinstance(artist, PatchCollection))
        lefts = [np.asarray(path.vertices).min(axis=0) for path in walls.get_paths()]
        np.testing.assert_allclose(lefts, u_maze.corners)
        way, start, goal = axes.lines
        np.testing.assert_allclose(np.asarray(way.get_xydata()), [[-1.0 + 0.1 * t, 1.0] for t in range(index + 2)])
        np.testing.assert_array_equal(start.get_xydata(), [[-1.0, 1.0]])
        np.testing.assert_array_equal(goal.get_xydata(), [[0.0, index]])
        assert to_hex(str(way.get_color())).upper() == (BLUE if successes[index] else ORANGE)
        assert (axes.get_xlim(), axes.get_ylim()) == ((-2.5, 2.5), (-2.5, 2.5))
    assert figure.get_suptitle() == "Maze-v0\n3 of 4 episodes succeed (75 %); these are the first 3"


@pytest.mark.parametrize(("paths", "shape"), [(1, (1, 1)), (8, (1, 8)), (17, (3, 6))])
def test_panels_fill_their_rows(
    tmp_path: Path,
    drawn: list[Figure],
    u_maze: MazeWalls,
    paths: int,
    shape: tuple[int, int],
) -> None:
    plot_trajectories(u_maze, record(paths, [False] * paths), "Maze-v0", tmp_path / "trajectories.png")
    grid = drawn[0].axes[0].get_gridspec()
    assert grid is not None
    assert (grid.nrows, grid.ncols) == shape
    assert sum(bool(axes.lines) for axes in drawn[0].axes) == paths
    assert drawn[0].get_suptitle() == f"Maze-v0\n0 of {paths} episodes succeed (0 %)"


def test_goals_that_move_are_all_marked(tmp_path: Path, drawn: list[Figure], u_maze: MazeWalls) -> None:
    way = EpisodePath(0, np.zeros((4, 2)), np.array([[1.0, 1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0]]))
    moving = RolloutRecord((EpisodeRecord(0, 1.0, 3, False, True),), np.zeros(1), 3, 1.0, (), PlanCounts(), (way,))
    plot_trajectories(u_maze, moving, "Maze-v0", tmp_path / "trajectories.png")
    np.testing.assert_array_equal(drawn[0].axes[0].lines[2].get_xydata(), [[-1.0, 1.0], [1.0, 1.0]])
