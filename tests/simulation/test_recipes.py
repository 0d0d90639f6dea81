import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import islice
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from minari.dataset.minari_dataset import parse_dataset_id

from tools.select_snapshots import select_snapshots
from trajectory_transformer.environments.make import make_environment
from trajectory_transformer.errors import UserError
from trajectory_transformer.simulation import RECIPES, REGISTRY, Recipe, find_recipe
from trajectory_transformer.simulation import policies as policies_module
from trajectory_transformer.simulation.pointmaze import MazeBehavior, shortest_path
from trajectory_transformer.simulation.policies import PolicyBehavior, action_distribution, bounded, load_policy
from trajectory_transformer.simulation.recipe import Behavior, UniformBehavior
from trajectory_transformer.simulation.simulate import SimulatedEpisode, simulate

HOPPER, POINTMAZE, GOAL_MAZE = (RECIPES[name] for name in ("hopper_mixed", "pointmaze_umaze", "goal_umaze"))
ONE_OF_A_KIND = pytest.mark.parametrize("recipe", [HOPPER, POINTMAZE, GOAL_MAZE], ids=lambda recipe: recipe.name)
DIRECT = MazeBehavior("direct", weight=1.0, speed=(4.0, 4.0))
U_MAZE = [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 1, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]


def episodes_of(recipe: Recipe, number: int, seed: int = 0, processes: int = 1) -> list[SimulatedEpisode]:
    stream = simulate(recipe, seed, processes)
    episodes = list(islice(stream, number))
    stream.close()
    return episodes


def returns_of(recipe: Recipe, behavior: Behavior, number: int, seed: int = 0) -> np.ndarray:
    return np.array([e.rewards.sum() for e in episodes_of(replace(recipe, behaviors=(behavior,)), number, seed)])


def leaves(episode: SimulatedEpisode) -> dict[str, np.ndarray]:
    observations = episode.observations
    return observations if isinstance(observations, dict) else {"": observations}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_registry_names_valid_dataset_ids(recipe: Recipe) -> None:
    assert REGISTRY[recipe.dataset_id] is recipe
    assert parse_dataset_id(recipe.dataset_id)[0] is not None
    assert recipe.reference_scores[0] < recipe.reference_scores[1]


def test_find_recipe_by_name_or_id_and_offers_the_nearest() -> None:
    assert find_recipe("hopper_mixed") is HOPPER
    assert find_recipe("embedded/pointmaze/umaze-v0") is POINTMAZE
    with pytest.raises(UserError, match="did you mean 'pointmaze_umaze'"):
        find_recipe("pointmaze_umase")


def test_mixture_has_the_stated_proportions_from_the_first_episodes_on() -> None:
    behaviors = tuple(UniformBehavior(name, weight) for name, weight in (("a", 1.0), ("b", 2.0), ("c", 5.0)))
    recipe = replace(HOPPER, behaviors=behaviors)
    names = [recipe.behavior(index).name for index in range(40)]
    assert [names.count(name) for name in "abc"] == pytest.approx([5, 10, 25], abs=1)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_episodes_replay_exactly_in_their_environment(recipe: Recipe) -> None:
    environment = recipe.environment()
    for episode in episodes_of(recipe, 3):
        environment.reset(seed=episode.seed)
        terminated = truncated = False
        for step, action in enumerate(episode.actions):
            observation, reward, terminated, truncated, _ = environment.step(action)
            now = observation if isinstance(observation, dict) else {"": observation}
            assert all(np.array_equal(now[key], values[step + 1]) for key, values in leaves(episode).items())
            assert reward == episode.rewards[step]
            assert (terminated or truncated) == (step + 1 == len(episode))
        assert terminated == episode.terminated
        assert {len(values) for values in leaves(episode).values()} == {len(episode) + 1}
        assert environment.action_space.contains(episode.actions[0])
    environment.close()


@ONE_OF_A_KIND
def test_number_of_processes_does_not_change_the_data(recipe: Recipe) -> None:
    alone, shared = episodes_of(recipe, 5, seed=3), episodes_of(recipe, 5, seed=3, processes=2)
    for one, other in zip(alone, shared, strict=True):
        assert (one.seed, one.behavior, one.terminated) == (other.seed, other.behavior, other.terminated)
        assert np.array_equal(one.actions, other.actions)
        assert np.array_equal(one.rewards, other.rewards)
        assert all(np.array_equal(values, leaves(other)[key]) for key, values in leaves(one).items())
    assert not np.array_equal(alone[0].actions[:5], episodes_of(recipe, 1, seed=4)[0].actions[:5])


@pytest.mark.slow
def test_a_script_without_guard_may_simulate_in_several_processes(tmp_path: Path) -> None:
    """Workers do not run the script again, however it was started."""
    script = tmp_path / "script.py"
    script.write_text(
        "from trajectory_transformer.simulation import RECIPES\n"
        "from trajectory_transformer.simulation.simulate import simulate\n"
        "print('once')\n"
        "stream = simulate(RECIPES['hopper_mixed'], 3, 2)\n"
        "print(*[next(stream).rewards.sum() for _ in range(3)])\n"
        "stream.close()\n"
    )
    expected = [str(episode.rewards.sum()) for episode in episodes_of(HOPPER, 3, seed=3)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for command in ([str(script)], ["-c", script.read_text()], ["-m", "script"]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.stdout.split() == ["once", *expected], done.stderr


def test_killed_worker_is_reported() -> None:
    """Killed from outside, as when memory runs out."""
    stream = simulate(HOPPER, 0, 2)
    next(stream)
    file = Path(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/children")
    children = file.read_text(encoding="utf-8").split()
    for child in children:
        if "simulation.simulate import work" in Path(f"/proc/{child}/cmdline").read_text(encoding="utf-8"):
            os.kill(int(child), signal.SIGKILL)
    with pytest.raises(RuntimeError, match="a worker that simulates Hopper-v5 has died"):
        for _ in stream:  # what the pipes still hold is episodes as good as any
            pass


def test_dead_worker_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RuntimeError, match="simulates NoSuchEnvironment-v0 has died"):
        episodes_of(replace(HOPPER, env_id="NoSuchEnvironment-v0"), 1, processes=2)
    assert "NoSuchEnvironment" in capfd.readouterr().err


@pytest.mark.parametrize("env_id", ["PointMaze_UMaze-v3", "HalfCheetah-v5"])
def test_environments_leave_neither_files_nor_notices(tmp_path: Path, env_id: str) -> None:
    code = f"from {make_environment.__module__} import make_environment; make_environment('{env_id}').close()"
    command = [sys.executable, "-W", "error", "-c", code]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# Policies


def tiny_policy() -> dict[str, np.ndarray]:
    """Two inputs, a hidden layer of two, one action: mean = relu(x0) + 2 relu(-x1), log std = 30 relu(x0) - 1."""
    return {
        "hidden_0_weight": np.array([[1.0, 0.0], [0.0, -1.0]], np.float32),
        "hidden_0_bias": np.zeros(2, np.float32),
        "mean_weight": np.array([[1.0, 2.0]], np.float32),
        "mean_bias": np.zeros(1, np.float32),
        "log_std_weight": np.array([[30.0, 0.0]], np.float32),
        "log_std_bias": np.array([-1.0], np.float32),
    }


def test_action_distribution_by_hand() -> None:
    mean, std = action_distribution(tiny_policy(), np.array([-1.0, -0.25]))
    np.testing.assert_allclose(mean, [0.5])
    np.testing.assert_allclose(std, [np.exp(-1.0)], rtol=1e-6)
    mean, std = action_distribution(tiny_policy(), np.array([1.0, 3.0]))
    np.testing.assert_allclose(mean, [1.0])
    np.testing.assert_allclose(std, [np.exp(2.0)], rtol=1e-6)  # log std 29, cut at 2


def test_a_policy_of_proximal_optimisation_by_hand() -> None:
    policy = {name: array for name, array in tiny_policy().items() if not name.startswith("log_std")}
    policy["log_std"] = np.array([-2.0], np.float32)
    mean, std = action_distribution(policy, np.array([-1.0, -0.25]))
    np.testing.assert_allclose(mean, np.tanh(-1.0) + 2.0 * np.tanh(0.25), rtol=1e-6)
    np.testing.assert_allclose(std, [np.exp(-2.0)], rtol=1e-6)
    np.testing.assert_array_equal(bounded(policy, np.array([-1.5, 0.25, 3.0])), [-1.0, 0.25, 1.0])
    np.testing.assert_allclose(bounded(tiny_policy(), np.array([0.25])), np.tanh([0.25]))


def test_policy_behavior_scales_to_the_action_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies_module, "load_policy", lambda file, snapshot: tiny_policy())
    environment = gym.Env()
    environment.action_space = gym.spaces.Box(-1.0, 3.0, shape=(1,))
    observation = np.array([-1.0, -0.25])

    def actions(temperature: float, noise: float) -> np.ndarray:
        behavior = PolicyBehavior("any.npz", "any", 1.0, temperature, noise)
        act = behavior.controller(environment, np.random.default_rng(0))
        return np.array([act(observation)[0] for _ in range(4000)])

    centre = 1.0 + 2.0 * np.tanh(0.5)
    np.testing.assert_allclose(actions(0.0, 0.0), centre, rtol=1e-6)
    assert actions(0.0, 0.1).std() == pytest.approx(0.2, rel=0.05)
    squashed = np.tanh(0.5 + np.exp(-1.0) * np.random.default_rng(1).standard_normal(4000))
    assert actions(1.0, 0.0).mean() == pytest.approx(1.0 + 2.0 * squashed.mean(), abs=0.05)
    assert actions(1.0, 0.0).std() == pytest.approx(2.0 * squashed.std(), rel=0.05)


def test_unknown_snapshot_is_refused() -> None:
    with pytest.raises(KeyError, match="no snapshot step_0000007"):
        load_policy("hopper.npz", "step_0000007")


def test_selected_snapshots_are_read_back(tmp_path: Path) -> None:
    for step in (10, 20):
        arrays = {layer: values + step for layer, values in tiny_policy().items()}
        np.savez(tmp_path / f"step_{step:07d}.npz", **arrays)  # type: ignore[arg-type]  (numpy's allow_pickle)
    select_snapshots(tmp_path, tmp_path / "tiny.npz", [20])
    with pytest.raises(KeyError, match="no snapshot step_0000010"):
        load_policy.__wrapped__(str(tmp_path / "tiny.npz"), "step_0000010")
    select_snapshots(tmp_path, tmp_path / "tiny.npz", [10])
    policy = load_policy(str(tmp_path / "tiny.npz"), "step_0000020")
    np.testing.assert_array_equal(policy["mean_weight"], [[21.0, 22.0]])
    assert policy["mean_weight"].dtype == np.float32
    np.testing.assert_array_equal(
        load_policy(str(tmp_path / "tiny.npz"), "step_0000010")["mean_weight"], [[11.0, 12.0]]
    )


def test_hopper_policies_differ_clearly_in_quality() -> None:
    behaviors = {
        b.snapshot: replace(b, temperature=0.0, noise=0.0) for b in HOPPER.behaviors if isinstance(b, PolicyBehavior)
    }
    quality = [returns_of(HOPPER, behavior, 3).mean() for _, behavior in sorted(behaviors.items())]
    assert quality[-1] > 3 * quality[0]
    assert quality[-1] > 1.2 * np.mean(quality)


@pytest.mark.slow
def test_a_replay_set_has_as_many_steps_of_each_policy_as_a_replay_buffer() -> None:
    """Up to Hopper's medium policy: 5,000 random steps, then snapshots at 20, 30, 90 and 150 thousand."""
    steps: dict[str, int] = {}
    for episode in episodes_of(RECIPES["hopper_medium_replay"], 80):
        steps[episode.behavior] = steps.get(episode.behavior, 0) + len(episode)
    shares = np.array([steps[name] for name in sorted(steps)]) / sum(steps.values())
    assert sorted(steps)[0] == "random"
    np.testing.assert_allclose(shares, np.array([5, 15, 10, 60, 60]) / 150, atol=0.06)


@pytest.mark.parametrize(("body", "number"), [("hopper", 25), ("walker2d", 10), ("halfcheetah", 2)])
@pytest.mark.slow
def test_a_medium_policy_is_a_third_to_three_fifths_as_good_as_the_expert(body: str, number: int) -> None:
    expert, medium = (
        np.mean([episode.rewards.sum() for episode in episodes_of(RECIPES[f"{body}_{stage}"], number)])
        for stage in ("expert", "medium")
    )
    assert 0.28 < medium / expert < 0.6


# Mazes


def test_shortest_path_goes_round_the_wall() -> None:
    assert shortest_path(U_MAZE, (1, 1), (3, 1)) == [(1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert shortest_path(U_MAZE, (1, 1), (1, 1)) == [(1, 1)]


def test_shortest_path_takes_the_shorter_of_two_ways() -> None:
    ring = [[0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert shortest_path(ring, (1, 0), (1, 2)) == [(0, 0), (0, 1), (0, 2), (1, 2)]


def test_shortest_path_refuses_a_walled_goal() -> None:
    with pytest.raises(ValueError, match=r"no way from cell \(0, 0\) to cell \(0, 2\)"):
        shortest_path([[0, 1, 0]], (0, 0), (0, 2))


def test_controller_reaches_every_goal_and_stays() -> None:
    for episode in episodes_of(replace(POINTMAZE, behaviors=(DIRECT,)), 10):
        first = int(np.argmax(episode.rewards))
        assert episode.rewards[first] == 1.0
        assert episode.rewards[first:].all()
        assert not episode.terminated
        assert len(episode) == 300


def test_slow_walkers_keep_to_their_speed_and_detours_cost_return() -> None:
    slow = MazeBehavior("slow", weight=1.0, speed=(1.0, 1.0))
    for episode in episodes_of(replace(POINTMAZE, behaviors=(slow,)), 3):
        assert np.linalg.norm(leaves(episode)["observation"][:, 2:], axis=1).max() < 1.1
    assert returns_of(POINTMAZE, replace(DIRECT, detours=(2, 2)), 10).mean() < returns_of(POINTMAZE, DIRECT, 10).mean()


def test_walks_about_the_larger_mazes_are_cut_before_most_reach_their_goal() -> None:
    for name in ("pointmaze_medium", "pointmaze_large"):
        recipe = RECIPES[name]
        episodes = list(episodes_of(recipe, 40))
        assert max(len(episode) for episode in episodes) == 20
        assert 0.02 < np.mean([episode.terminated for episode in episodes]) < 0.35
        assert all(episode.rewards.sum() == episode.terminated for episode in episodes)
        environment = recipe.evaluation_environment()
        assert environment is not None
        assert environment.spec is not None
        assert (environment.spec.max_episode_steps or 0) >= 100


@pytest.mark.parametrize(
    ("name", "behavior", "index", "spread", "episodes"),
    [
        ("pointmaze_umaze", UniformBehavior(), 0, 35.0, 30),
        ("pointmaze_umaze", DIRECT, 1, 55.0, 30),
        ("pointmaze_medium", UniformBehavior(), 0, 0.36, 30),
        ("pointmaze_medium", DIRECT, 1, 0.0, 10),
        ("pointmaze_large", UniformBehavior(), 0, 0.3, 30),
        ("pointmaze_large", DIRECT, 1, 0.0, 10),
    ],
)
@pytest.mark.slow
def test_pointmaze_reference_scores_are_what_is_measured(
    name: str, behavior: Behavior, index: int, spread: float, episodes: int
) -> None:
    """``spread``: standard deviation of a return over 600 episodes."""
    recipe = RECIPES[name]
    if recipe.evaluation_arguments is not None:
        recipe = replace(recipe, arguments=recipe.evaluation_arguments)
    measured = returns_of(recipe, behavior, episodes, seed=1).mean()
    assert measured == pytest.approx(recipe.reference_scores[index], abs=3 * spread / np.sqrt(episodes))
