"""A small environment and an agent that needs no model, for the tests of this folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec

from trajectory_transformer.checkpoint import DatasetRecord, TrainingRecord
from trajectory_transformer.configuration import DataConfig, PlannerConfig
from trajectory_transformer.environments.make import make_environment, space_spec
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceSpec
from trajectory_transformer.evaluation.results import EvaluationRequest
from trajectory_transformer.planning.plan import PlanCounts

WALK, DISCRETE_WALK = "evaluation-tests/Walk-v0", "evaluation-tests/DiscreteWalk-v0"


class Walk(gymnasium.Env):
    """A noisy walk on a line that ends beyond ±2. Reward is the step taken; success is to leave on the right."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012 - as Gymnasium has it

    def __init__(
        self,
        render_mode: str | None = None,
        reports_success: bool = True,
        bad_reward_at: int = -1,
        bad_reward: float = np.nan,
        success_at: int = -1,
    ) -> None:
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Dict(
            {
                "position": gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float64),
                "clock": gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float64),
            }
        )
        self.action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.reports_success, self.success_at = reports_success, success_at
        self.bad_reward_at, self.bad_reward = bad_reward_at, bad_reward
        self.position, self.clock = 0.0, 0

    def _observation(self) -> dict[str, np.ndarray]:
        return {"position": np.array([self.position]), "clock": np.array([float(self.clock)])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position, self.clock = float(self.np_random.uniform(-0.5, 0.5)), 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        before = self.position
        self.position += float(action[0]) * 0.5 + float(self.np_random.normal(0.0, 0.3))
        self.clock += 1
        reward = self.bad_reward if self.clock == self.bad_reward_at else self.position - before
        info = (
            {"success": np.bool_(self.position > 2.0 or self.clock == self.success_at)} if self.reports_success else {}
        )
        return self._observation(), reward, abs(self.position) > 2.0, False, info

    def render(self) -> Any:
        return np.full((33, 47, 3), 40 * (self.clock % 6), dtype=np.uint8)


class DiscreteWalk(Walk):
    """The same with the actions 5 (left), 6 (stay) and 7 (right)."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.action_space = gymnasium.spaces.Discrete(3, start=5)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        return super().step([int(action) - 6])


class EndlessWalk(Walk):
    """The same without an end, and without a time limit."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, info


gymnasium.register("evaluation-tests/EndlessWalk-v0", f"{__name__}:EndlessWalk")
for _name in ("Walk", "DiscreteWalk"):
    gymnasium.register(f"evaluation-tests/{_name}-v0", f"{__name__}:{_name}", max_episode_steps=30)


def environment_spec(env_id: str, **arguments: Any) -> EnvironmentSpec:
    """The spec of a registered environment, as a data set of it would carry it."""
    return _spec_of(gymnasium.make(env_id, disable_env_checker=True, **arguments))


def maze_spec(env_id: str, **arguments: Any) -> EnvironmentSpec:
    """The same of a maze, which is registered only when it is needed."""
    return _spec_of(make_environment(env_id, disable_env_checker=True, **arguments))


def training_on(
    returns: Sequence[float], reference: tuple[float, float] | None = None, source: str = "none", **learner: Any
) -> TrainingRecord:
    """The record of a training on data of these returns."""
    dataset = DatasetRecord(("tests/walk-v0", "b-v1"), "0f" * 32, torch.tensor(returns), reference, source)
    spaces = EnvironmentSpec("Walk-v0", None, SpaceSpec(()), SpaceSpec(()))
    return TrainingRecord("bc", {"_target_": "tests.Learner", **learner}, spaces, dataset, DataConfig(), 4)


def request_of(episodes: int, num_envs: int, seed: int, training: TrainingRecord | None = None) -> EvaluationRequest:
    training = training or training_on([0.0, 0.0])
    model, recorded = {"n_embd": 64}, ("best.ckpt", "ab" * 32)
    command = ("python evaluate.py", "a" * 40)
    return EvaluationRequest(training, *recorded, model, *command, episodes, num_envs, seed, seed, progress=False)


def _spec_of(environment: gymnasium.Env) -> EnvironmentSpec:
    spec = environment.spec
    assert isinstance(spec, EnvSpec)
    observation, action = space_spec(environment.observation_space), space_spec(environment.action_space)
    environment.close()
    return EnvironmentSpec(spec.id, spec.to_json(), observation, action)


@dataclass(frozen=True)
class ScriptedPlan:
    observations: np.ndarray


class ScriptedAgent:
    """Draws actions from each row's own generator and records the calls of the rollout.

    Its plan continues the last observation in a straight line.
    """

    def __init__(self, environment: EnvironmentSpec, settings: PlannerConfig | None = None) -> None:
        self.environment = environment
        self.settings = PlannerConfig(horizon=5) if settings is None else settings
        self.needs_goal, self.imitates = self.settings.name == "goal", self.settings.name == "imitation"
        self.generators: list[np.random.Generator] = []
        self.begun: list[tuple[int, int]] = []
        self.observed: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self.active: list[np.ndarray] = []
        self.aims: list[np.ndarray] = []
        self.last_observations = np.zeros((0, environment.observation_dim))
        self.planned = np.zeros(0, dtype=bool)
        self.counts = PlanCounts()
        self.ages = np.zeros(0, dtype=int)

    def reset(self, num_envs: int, seeds: Sequence[int] | None = None) -> None:
        assert seeds is not None
        assert len(seeds) == num_envs
        self.generators = [np.random.default_rng(seed) for seed in seeds]
        self.begun = [(row, seed) for row, seed in enumerate(seeds)]
        self.ages = np.zeros(num_envs, dtype=int)

    def begin_episode(self, env_index: int, seed: int) -> None:
        self.generators[env_index] = np.random.default_rng(seed)
        self.begun.append((env_index, seed))

    def aim(self, goals: np.ndarray) -> None:
        self.aims.append(goals.copy())

    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        assert active is not None
        self.active.append(active.copy())
        self.planned = active & (self.ages % self.settings.plan_freq == 0)
        self.last_observations = observations.copy()
        low, high = self.environment.action.low, self.environment.action.high
        actions = np.zeros((len(observations), self.environment.action_dim), dtype=np.float32)
        for row in np.flatnonzero(active):
            # beyond the bounds on purpose
            actions[row] = self.generators[row].uniform(1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low)
        return actions

    def observe(self, actions: np.ndarray, rewards: np.ndarray, done: np.ndarray) -> None:
        self.observed.append((actions.copy(), rewards.copy(), done.copy()))
        self.ages = np.where(done, 0, self.ages + 1)

    @property
    def last_plan(self) -> ScriptedPlan:
        ahead = np.arange(self.settings.horizon)[None, :, None]
        return ScriptedPlan(self.last_observations[:, None, :] * (1 + 0.01 * ahead))
