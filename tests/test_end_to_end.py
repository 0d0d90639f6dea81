"""Data set → training → planning, once for each experiment and for each kind of space that becomes tokens."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from trajectory_transformer.app import schema
from trajectory_transformer.app.experiment import RunContext, run_training
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint
from trajectory_transformer.configuration import (
    DataConfig,
    DiscretizerConfig,
    EvaluationConfig,
    ModelConfig,
    PlannerConfig,
    TrainConfig,
    TrainerConfig,
)
from trajectory_transformer.data.collect import collect
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import plots
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.simulation import find_recipe

from .minari_sets import RawEpisode, random_episode, write_dataset
from .test_configs import CONFIGS, composed

ROOMS, REACH = "end-to-end-tests/Rooms-v0", "end-to-end-tests/Reach-v0"
EXPERIMENTS = sorted(file.stem for file in (CONFIGS / "experiment").glob("*.yaml"))
TINY = (
    "model.n_layer=1", "model.n_head=1", "model.n_embd=8", "data.batch_size=4", "data.discretizer.num_bins=8",
    "trainer.accelerator=cpu", "trainer.devices=1", "trainer.max_steps=1", "trainer.validate_every=1",
    "trainer.checkpoint_every=1", "trainer.log_every=1", "trainer.progress_bar=false", "planner.beam_width=2",
    "data.observation_indices=null", "planner.horizon=2", "evaluation.episodes=1", "evaluation.num_envs=1",
)  # fmt: skip


class Rooms(gym.Env[Any, Any]):
    """Six rooms in a row, numbered from 2; the actions 5 to 7 go left, stay or go right. The last room ends it."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Discrete(6, start=2)
        self.action_space = gym.spaces.Discrete(3, start=5)
        self.room = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.room = int(self.np_random.integers(2, 7))
        return np.int64(self.room), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.room = int(np.clip(self.room + int(action) - 6, 2, 7))
        return np.int64(self.room), float(self.room == 7), self.room == 7, False, {}


class Reach(gym.Env[Any, Any]):
    """A point in the plane that should reach a goal; nested as goal environments are, and once more."""

    def __init__(self) -> None:
        plane = gym.spaces.Box(-3.0, 3.0, (2,), np.float64)
        body = gym.spaces.Dict({"position": plane, "clock": gym.spaces.Discrete(8)})
        self.observation_space = gym.spaces.Dict({"observation": body, "achieved_goal": plane, "desired_goal": plane})
        self.action_space = gym.spaces.Box(-0.5, 0.5, (2,), np.float32)
        self.position, self.goal, self.clock = np.zeros(2), np.zeros(2), 0

    def _observation(self) -> dict[str, Any]:
        body = {"position": self.position.copy(), "clock": np.int64(self.clock)}
        return {"observation": body, "achieved_goal": self.position.copy(), "desired_goal": self.goal.copy()}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.goal, self.clock = np.zeros(2), self.np_random.uniform(-2.0, 2.0, 2), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.position, self.clock = np.clip(self.position + action, -3.0, 3.0), self.clock + 1
        distance = float(np.linalg.norm(self.position - self.goal))
        return self._observation(), -distance, False, False, {"success": distance < 0.5}


for _name in ("Rooms", "Reach"):
    gym.register(f"end-to-end-tests/{_name}-v0", f"{__name__}:{_name}", max_episode_steps=5)


def stacked(values: list[Any]) -> Any:
    """A list of observations as arrays, nested as the observations are."""
    if isinstance(values[0], dict):
        return {key: stacked([value[key] for value in values]) for key in values[0]}
    return np.stack(values)


def played_episode(environment: gym.Env[Any, Any], seed: int) -> RawEpisode:
    """An episode of random actions."""
    environment.action_space.seed(seed)
    observation, _ = environment.reset(seed=seed)
    observations, actions, rewards, terminated, truncated = [observation], [], [], False, False
    while not (terminated or truncated):
        actions.append(environment.action_space.sample())
        observation, reward, terminated, truncated, _ = environment.step(actions[-1])
        observations.append(observation)
        rewards.append(float(reward))
    return RawEpisode(stacked(observations), np.stack(actions), np.array(rewards), terminated)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random episodes of both environments, and numbers in the shape of Hopper's."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        for name, env_id in (("rooms-v0", ROOMS), ("reach-v0", REACH)):
            with gym.make(env_id) as environment:
                write_dataset(name, [played_episode(environment, seed) for seed in range(12)], env=environment)
        with gym.make("Hopper-v5", max_episode_steps=2) as environment:
            episodes = [random_episode(12, seed, 11, 3, terminated=seed % 2 == 0) for seed in range(4)]
            write_dataset("hopper-v0", episodes, env=environment)
    return root


@pytest.fixture(autouse=True)
def use_datasets(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The agent's observations at each step."""
    observations: list[np.ndarray] = []
    act: Callable[..., np.ndarray] = Agent.act

    def watched(agent: Agent, values: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        assert active is not None
        observations.append(values[active].copy())
        return act(agent, values, active)

    monkeypatch.setattr(Agent, "act", watched)
    return observations


def config(dataset_id: str, indices: list[int] | None = None) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(
            dataset_id,
            observation_indices=indices,
            discretizer=DiscretizerConfig(num_bins=8),
            sequence_length=4,
            termination_penalty=None,
            batch_size=8,
        ),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8),
        trainer=TrainerConfig(max_steps=2, validate_every=2, checkpoint_every=2, log_every=1, progress_bar=False),
        planner=PlannerConfig(horizon=2, beam_width=2, context=3),
        evaluation=EvaluationConfig(episodes=3, num_envs=2),
    )


def run(options: TrainConfig, directory: Path) -> tuple[dict[str, Any], EnvironmentSpec]:
    """The contents of results.json, and the environment recorded in the best checkpoint."""
    score = run_training(options, RunContext(directory, "python train.py"))
    results = json.loads((directory / "results.json").read_text())
    assert score == results["summary"]["return_mean"]
    record = read_checkpoint(directory / "checkpoints" / "best.ckpt")[SECTION]
    return results, EnvironmentSpec.from_dict(record["environment"])


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_one_step_of_every_experiment(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "_save", lambda figure, path: None)  # most of the time; pictures have tests of their own
    single = ["planner.horizon=1"] if name.startswith("imitation_") else []  # their windows are single transitions
    learner = name.partition("_")[0]
    narrow = ["learner.hidden_width=8"] if learner in ("iql", "ensemble", "bc", "rebrac") else []
    made = composed("train", f"experiment={name}", "data.dataset_id=hopper-v0", *TINY, *single, *narrow)
    if learner == "behavior":  # which is for embedded sets alone
        with pytest.raises(UserError, match=r"^learner=behavior has no policy for data set hopper-v0; it has one for"):
            schema.typed_train(made)
        return
    options = schema.typed_train(made)
    assert options.experiment_name == name
    if name.startswith("ensemble_") or options.model.goal_conditioned:  # nothing that acts, or no goal in Hopper-v5
        options.evaluation.episodes = 0
        score = run_training(options, RunContext(tmp_path, "python train.py"))
        assert np.isfinite(score)
        assert {path.name for path in tmp_path.iterdir()} >= {"checkpoints", "metrics.csv"}
        assert not (tmp_path / "results.json").exists()
        return
    results, _ = run(options, tmp_path)
    if learner in ("iql", "bc", "dt", "rebrac"):
        policy = {"name": f"{learner}_policy", "horizon": 1, "beam_width": 1, "deadline_ms": None}
        assert results["planner"].items() >= policy.items()
        assert results["learner"]["name"] == learner
        return
    assert results["learner"] == {"name": "transformer"}
    assert results["env_id"] == "Hopper-v5"
    assert [episode["length"] for episode in results["episodes"]] in ([1], [2])
    assert results["planner"]["horizon"] == options.planner.horizon
    assert results["planner"]["window"] == options.planner.window


def test_discrete_observations_and_discrete_actions(tmp_path: Path, seen: list[np.ndarray]) -> None:
    results, environment = run(config("rooms-v0"), tmp_path)
    assert (environment.observation_dim, environment.action_dim) == (1, 1)
    assert len(np.concatenate(seen)) == sum(episode["length"] for episode in results["episodes"])
    assert set(np.concatenate(seen)[:, 0]) <= {2.0, 3.0, 4.0, 5.0, 6.0}  # nobody acts in the last room
    for episode in results["episodes"]:
        assert episode["return"] == float(episode["terminated"])


def test_nested_observations_with_a_goal(tmp_path: Path, seen: list[np.ndarray]) -> None:
    results, environment = run(config("reach-v0"), tmp_path)
    assert environment.observation.names() == [
        "achieved_goal[0]", "achieved_goal[1]", "desired_goal[0]", "desired_goal[1]",
        "observation.clock", "observation.position[0]", "observation.position[1]",
    ]  # fmt: skip
    assert [episode["length"] for episode in results["episodes"]] == [5, 5, 5]
    assert results["summary"]["success_rate"] in (0.0, pytest.approx(1 / 3), pytest.approx(2 / 3), 1.0)
    goals = [np.random.default_rng(episode["seed"]).uniform(-2.0, 2.0, 2) for episode in results["episodes"]]
    shown = np.concatenate(seen)
    np.testing.assert_allclose(np.unique(shown[:, 2:4], axis=0), np.unique(np.array(goals, dtype=np.float32), axis=0))
    np.testing.assert_array_equal(shown[:, :2], shown[:, 5:])


def test_selected_observation_dimensions(tmp_path: Path, seen: list[np.ndarray]) -> None:
    results, environment = run(config("reach-v0", indices=[4, 2]), tmp_path)
    assert environment.observation_dim == 2
    first = [row for row in np.concatenate(seen) if row[0] == 0.0]  # the clock, so that these begin an episode
    goals = [np.random.default_rng(episode["seed"]).uniform(-2.0, 2.0, 2)[0] for episode in results["episodes"]]
    np.testing.assert_allclose(sorted(row[1] for row in first), np.sort(np.array(goals, dtype=np.float32)))
    width = read_checkpoint(tmp_path / "checkpoints" / "best.ckpt")["trajectory_transformer"]["model"]["transition_dim"]
    assert width == 2 + 2 + 2


@pytest.mark.slow
def test_goals_from_data_to_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few walks in the smallest maze; the model is hopeless, but its goals are the environment's."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    collect(find_recipe("goal_umaze"), steps=4000, progress=False, processes=1)
    small = [option for option in TINY if not option.startswith("data.observation_indices")]
    options = schema.typed_train(composed("train", "experiment=goal_umaze", *small))
    aims: list[np.ndarray] = []
    aim = Agent.aim
    monkeypatch.setattr(Agent, "aim", lambda agent, goals: (aims.append(goals.copy()), aim(agent, goals))[1])
    results, environment = run(options, tmp_path / "run")
    assert environment.goal_dimensions == (0, 1)
    assert environment.env_id == "trajectory_transformer/PairMaze_UMaze-v0"
    assert results["summary"]["success_rate"] in (0.0, 1.0)
    assert results["planner"]["name"] == "goal"
    assert (tmp_path / "run" / "plots" / "trajectories.png").stat().st_size > 0
    assert len(aims) == results["episodes"][0]["length"]
    model = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")[SECTION]["model"]
    assert model["goal_conditioned"]
    assert model["block_size"] == 5 * 6 - 1  # four transitions and the goal
