"""Interfaces between an agent, the rollout and its reports: the agent's protocol, and records of episodes."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..environments.spec import EnvironmentSpec
from ..planning.plan import PlanCounts


class PlannerRecord(Protocol):
    """Options of a planner, or of a policy that acts in its place; a dataclass, all of whose fields are recorded."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def horizon(self) -> int: ...  # steps that a plan looks ahead, at least 1
    @property
    def beam_width(self) -> int: ...  # plans that the search keeps, at least 1
    @property
    def deadline_ms(self) -> float | None: ...  # time that an action may take


class PredictedPlan(Protocol):
    """Observations that a plan expects; row i belongs to environment i."""

    @property
    def observations(self) -> np.ndarray: ...  # (env, horizon, observation_dim), the present first; NaN where cut short


class ActingAgent(Protocol):
    """An agent that can be evaluated: one that plans, or one that follows a policy."""

    @property
    def environment(self) -> EnvironmentSpec: ...
    @property
    def settings(self) -> PlannerRecord: ...
    @property
    def needs_goal(self) -> bool: ...  # ``aim`` must give it one
    @property
    def imitates(self) -> bool: ...  # its return is reported as a share of its data's
    @property
    def last_plan(self) -> PredictedPlan: ...
    @property
    def planned(self) -> np.ndarray: ...  # (env,) bool: the last ``act`` made a plan, and did not follow an earlier one
    @property
    def counts(self) -> PlanCounts: ...  # of the plans since the last ``reset``
    def reset(self, num_envs: int, seeds: Sequence[int] | None = None) -> None: ...
    def begin_episode(self, env_index: int, seed: int) -> None: ...
    def aim(self, goals: np.ndarray) -> None: ...
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray: ...
    def observe(self, actions: np.ndarray, rewards: np.ndarray, done: np.ndarray) -> None: ...


class Recorder(Protocol):
    """Takes pictures of an episode; ``render`` is called only where one is wanted."""

    def capture(self, episode: int, step: int, render: Callable[[], object]) -> None: ...


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode."""

    seed: int  # of the environment and of the agent's random numbers
    episode_return: float  # sum of rewards, undiscounted
    length: int  # steps
    terminated: bool  # by the environment; False where it was truncated
    success: bool | None  # at any step; None where the environment never reports it


@dataclass(frozen=True)
class PlanTrace:
    """A plan as made at ``step`` of an episode: observations (horizon, observation_dim), NaN where it was cut short."""

    step: int
    observations: np.ndarray


@dataclass(frozen=True)
class EpisodeTrace:
    """Observations of an episode, (T + 1, observation_dim), and the plans made on the way."""

    episode: int
    observations: np.ndarray
    plans: tuple[PlanTrace, ...]


@dataclass(frozen=True)
class EpisodePath:
    """Positions of an episode, in the coordinates of the environment's goals."""

    episode: int
    positions: np.ndarray  # (T + 1, goal_dim), achieved
    goals: np.ndarray  # (T + 1, goal_dim), desired then


@dataclass(frozen=True)
class RolloutRecord:
    """All episodes in the order of their seeds, and how long things took."""

    episodes: tuple[EpisodeRecord, ...]
    plan_seconds: np.ndarray  # of each ``agent.act`` that made a plan, at least one; it serves all active rows
    env_steps: int  # of single environments, together
    seconds: float  # wall time of planning and stepping, without rendering
    traces: tuple[EpisodeTrace, ...]  # of the first episodes, as many as asked for
    counts: PlanCounts
    paths: tuple[EpisodePath, ...] = ()  # the same, where the environment has goals
    max_episode_steps: int | None = None  # after which an episode was truncated


@dataclass(frozen=True)
class RolloutOptions:
    """Records to be kept of a rollout beside its episodes."""

    progress: bool = True  # show a bar
    traces: int = 0  # episodes to keep observations and plans of
    recorder: Recorder | None = None
    paths: int = 0  # episodes to keep the positions of
    max_episode_steps: int | None = None  # of an episode; None: the environment's own limit
    longest_episode: int | None = None  # steps of the data's, which limit episodes where nothing else does
    finished: Callable[[EpisodeRecord], None] | None = None  # is told of each episode as soon as it has ended
    # is told after each step how many episodes have ended, and their mean return in words; what it raises ends it all
    stepped: Callable[[int, str], None] | None = None
