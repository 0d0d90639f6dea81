"""The split of start-goal pairs never changes; an environment or data set has only the pairs of its part."""

import pickle
import tempfile
from collections.abc import Iterator
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium_robotics.envs.maze.maps import U_MAZE

from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.collect import collect
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.make import make_environment
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.simulation import RECIPES
from trajectory_transformer.simulation.maze_environment import FOUR_ROOMS, MAX_SPEED, PairMazeEnv
from trajectory_transformer.simulation.pointmaze import Cell, MazeMap, Navigator, shortest_path
from trajectory_transformer.simulation.recipe import Environment

MAZES = ("FourRooms", "UMaze", "Medium", "Large")
# Written down from the first run: data sets and checkpoints rely on the split staying as it is.
U_MAZE_HELD_OUT = [
    ((1, 1), (1, 3)),
    ((1, 1), (2, 3)),
    ((1, 1), (3, 2)),
    ((1, 2), (3, 2)),
    ((1, 3), (1, 1)),
    ((1, 3), (3, 3)),
    ((2, 3), (3, 1)),
    ((2, 3), (3, 3)),
    ((3, 2), (1, 1)),
]


def maze(name: str = "UMaze", **arguments: object) -> Environment:
    return make_environment(f"trajectory_transformer/PairMaze_{name}-v0", **arguments)


def unwrapped(environment: Environment) -> Any:
    return environment.unwrapped


def cell(maze_map: MazeMap, position: np.ndarray) -> Cell:
    """The cell, of side 1 m, around a position; the origin is the map's middle, rows run downwards."""
    return floor(len(maze_map) / 2 - position[1]), floor(position[0] + len(maze_map[0]) / 2)


@pytest.fixture(scope="module")
def four_rooms() -> Iterator[Environment]:
    with maze("FourRooms") as environment:
        yield environment


@pytest.mark.parametrize("name", MAZES)
def test_the_parts_share_no_pair_and_leave_none_out(name: str) -> None:
    whole, train, held_out = (unwrapped(maze(name, pairs=part)) for part in ("all", "train", "held_out"))
    rows, columns = len(whole.maze.maze_map), len(whole.maze.maze_map[0])
    free = [(r, c) for r in range(rows) for c in range(columns) if whole.maze.maze_map[r][c] == 0]
    every = {(start, goal) for start in free for goal in free} - {(one, one) for one in free}
    assert set(whole.pairs) == every
    assert set(train.pairs) | set(held_out.pairs) == every
    assert len(train.pairs) + len(held_out.pairs) == len(whole.pairs) == len(every)
    assert 0.15 < len(held_out.pairs) / len(every) < 0.25
    for environment in (whole, train, held_out):
        environment.close()


def test_the_split_is_the_one_that_data_on_disk_were_made_with() -> None:
    environment = maze(pairs="held_out")
    assert unwrapped(environment).pairs == U_MAZE_HELD_OUT
    environment.close()


@pytest.mark.parametrize("part", ["train", "held_out"])
def test_every_reset_draws_a_pair_of_the_part_and_all_are_drawn(part: str) -> None:
    drawn = set()
    with maze(pairs=part) as environment:
        maze_map = unwrapped(environment).maze.maze_map
        for seed in range(400):
            observation, info = environment.reset(seed=seed)
            start, goal = observation["achieved_goal"], observation["desired_goal"]
            drawn.add((cell(maze_map, start), cell(maze_map, goal)))
            assert unwrapped(environment).pair == (cell(maze_map, start), cell(maze_map, goal))
            for position in (start, goal):  # centres of the U-maze's five rows and columns are whole numbers
                assert np.abs(position - np.rint(position)).max() <= 0.25
            assert not info["success"]
        assert len({tuple(environment.reset(seed=seed)[0]["desired_goal"]) for seed in (5, 5, 6)}) == 2
    assert len(drawn) == {"train": 33, "held_out": 9}[part]
    assert {pair in U_MAZE_HELD_OUT for pair in drawn} == {part == "held_out"}


def test_episodes_go_on_from_the_random_numbers_of_the_last_seed() -> None:
    with maze(pairs="train") as environment:
        first = [environment.reset(seed=seed)[0]["desired_goal"] for seed in (3, None, None)]
        again = [environment.reset(seed=seed)[0]["desired_goal"] for seed in (3, None, None)]
        np.testing.assert_array_equal(first, again)
        assert len(np.unique(first, axis=0)) == 3


def test_cells_that_are_asked_for(four_rooms: Environment) -> None:
    def reset(environment: Environment, **options: Cell) -> tuple[Cell, Cell]:
        observation, _ = environment.reset(seed=0, options=options)
        maze_map = unwrapped(environment).maze.maze_map
        return cell(maze_map, observation["achieved_goal"]), cell(maze_map, observation["desired_goal"])

    assert reset(four_rooms, reset_cell=(1, 2), goal_cell=(9, 8)) == ((1, 2), (9, 8))
    assert reset(four_rooms, reset_cell=(5, 2))[0] == (5, 2)
    with maze(pairs="held_out") as environment:
        assert reset(environment, reset_cell=(3, 2)) == ((3, 2), (1, 1))
        with pytest.raises(UserError, match=r"pairs has goal_cell=\(1, 2\)"):
            reset(environment, goal_cell=(1, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"goal_cell": (5, 5)}, r"goal_cell=\(5, 5\) is a wall; choose a free cell"),
        ({"reset_cell": (-1, 3)}, r"reset_cell=\(-1, 3\) lies outside the map, which has 11 rows and 11 columns"),
        ({"goal_cell": np.array([1, 11])}, r"goal_cell=\(1, 11\) lies outside the map"),
        ({"goal_cell": (1, 1), "reset_cell": (1, 1)}, r"are both \(1, 1\); they must differ"),
        ({"goal": (1, 1)}, "option='goal' is not one of reset_cell, goal_cell; did you mean"),
    ],
)
def test_cells_that_cannot_be(four_rooms: Environment, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        four_rooms.reset(options=options)


def test_parts_that_cannot_be() -> None:
    with pytest.raises(UserError, match="did you mean 'held_out'"):
        maze(pairs="heldout")
    with pytest.raises(UserError, match=r"pairs=held_out: this maze_map \(1 free cells\) has no such"):
        maze(maze_map=[[1, 1, 1], [1, 0, 1], [1, 1, 1]], pairs="held_out")


@pytest.mark.parametrize("continuing_task", [False, True])
def test_an_episode_ends_at_the_goal_unless_it_is_to_go_on(continuing_task: bool) -> None:
    with maze(continuing_task=continuing_task) as environment:
        observation, _ = environment.reset(seed=0)
        navigator = Navigator(unwrapped(environment).maze, speed=4.0, max_speed=MAX_SPEED)
        navigator.head_for(observation["desired_goal"], observation["achieved_goal"])
        distance, steps, terminated, truncated = np.inf, 0, False, False
        while distance > 0.45:
            assert not terminated
            action = navigator.action(observation["observation"][:2], observation["observation"][2:])
            observation, reward, terminated, truncated, info = environment.step(np.clip(action, -1, 1))
            distance, steps = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"]), steps + 1
            assert info["success"] == (reward == 1.0) == (distance <= 0.45)
        assert terminated == (not continuing_task)
        assert not truncated
        assert steps < 50


def test_a_copy_has_the_same_pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the copy leaves its XML file
    with maze(pairs="held_out") as environment:
        copied = pickle.loads(pickle.dumps(unwrapped(environment)))
        assert (copied.pairs, copied.continuing_task) == (U_MAZE_HELD_OUT, False)
        copied.close()


def test_paths_in_the_four_rooms(four_rooms: Environment) -> None:
    rooms = unwrapped(four_rooms).maze.maze_map
    assert shortest_path(rooms, (4, 4), (4, 6)) == [(3, 4), (3, 5), (3, 6), (4, 6)]
    assert shortest_path(rooms, (4, 1), (6, 1)) == [(4, 2), (5, 2), (6, 2), (6, 1)]
    assert len(shortest_path(rooms, (4, 4), (6, 6))) == 10  # by the upper and the right door; 12 by the other two
    assert len(shortest_path(rooms, (1, 1), (9, 9))) == 16  # no way is shorter than rows and columns together


# Data


@pytest.fixture(scope="module")
def u_maze_data(tmp_path_factory: pytest.TempPathFactory) -> OfflineData:
    """Some forty episodes, written and read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(tmp_path_factory.mktemp("datasets")))
        recipe = RECIPES["goal_umaze"]
        collect(recipe, steps=4000, progress=False, processes=1)
        return load_offline_data(DataConfig(dataset_id=recipe.dataset_id), progress=False)


def test_no_held_out_pair_is_in_the_data_and_every_walk_arrives(u_maze_data: OfflineData) -> None:
    u_maze = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    shown = set()
    for episode in u_maze_data.episodes:
        achieved, desired = episode.observations[:, :2], episode.observations[:, 2:4]
        assert (desired == desired[0]).all()
        shown.add((cell(u_maze, achieved[0]), cell(u_maze, desired[0])))
        distances = np.linalg.norm(achieved - desired, axis=1)
        assert (distances[:-1] > 0.45).all()
        assert distances[-1] <= 0.45 + 1e-6
        assert episode.terminated
        assert episode.rewards.tolist() == [0.0] * (len(episode) - 1) + [1.0]
    assert len(shown) > 15
    assert not shown & set(U_MAZE_HELD_OUT)


def test_data_are_evaluated_on_the_pairs_that_they_do_not_hold(u_maze_data: OfflineData) -> None:
    environment = u_maze_data.environment
    rebuilt = EnvironmentSpec.from_dict(environment.to_dict())  # as a checkpoint does
    with make_environments(rebuilt, 1) as batch:
        assert batch.max_episode_steps == 50
        for seed in range(50):
            batch.reset(0, seed)
            assert unwrapped(batch.environments[0]).pair in U_MAZE_HELD_OUT
    assert u_maze_data.reference_scores == (0.0, 1.0)


def test_an_action_lasts_its_simulation_steps_and_ends_at_the_goal() -> None:
    """One step with repeated actions equals several steps without repetition."""
    once, often = (PairMazeEnv(U_MAZE, action_repeat=repeat) for repeat in (1, 7))
    options = {"reset_cell": (1, 1), "goal_cell": (1, 2)}
    once.reset(seed=0, options=options)
    often.reset(seed=0, options=options)
    actions, reached = 0, False
    while not reached:
        observation, reward, reached, *_, info = often.step(np.array([0.8, 0.0]))
        expected = [once.step(np.array([0.8, 0.0]))]
        while len(expected) < 7 and not expected[-1][2]:
            expected.append(once.step(np.array([0.8, 0.0])))
        np.testing.assert_array_equal(observation["observation"], expected[-1][0]["observation"])
        assert (reward, reached, info["success"]) == (*expected[-1][1:3], expected[-1][4]["success"])
        assert reward == float(reached)
        actions += 1
    assert 1 < actions < 20


def test_actions_are_velocities() -> None:
    environment = PairMazeEnv(FOUR_ROOMS)
    environment.reset(seed=0, options={"reset_cell": (3, 1), "goal_cell": (9, 9)})
    observation = [environment.step(np.array([0.5, 0.0]))[0]["observation"] for _ in range(5)][-1]
    np.testing.assert_allclose(observation[2:], [0.5 * MAX_SPEED, 0.0], atol=0.2)


def test_an_action_lasts_at_least_a_step() -> None:
    with pytest.raises(UserError, match="action_repeat=0 must be at least 1"):
        PairMazeEnv(U_MAZE, action_repeat=0)
