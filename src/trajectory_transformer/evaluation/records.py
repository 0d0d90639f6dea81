"""Interfaces between agent, rollout and reports: the protocol of agents, and records of episodes."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..environments.spec import EnvironmentSpec
from ..planning.plan import PlanCounts


class PlannerRecord(Protocol):
    """Options of a planner or policy; a dataclass, all of whose fields are recorded."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...
    @property
    def horizon(self) -> int: ...  # steps that a plan looks ahead, at least 1
    @property
    def beam_width(self) -> int: ...  # plans that the search keeps, at least 1
    @property
    def deadline_ms(self) -> float | None: ...  # time limit of an action


class PredictedPlan(Protocol):
    """The predicted observations of a plan; row i belongs to environment i."""

    @property
    def observations(self) -> np.ndarray: ...  # (env, horizon, observation_dim), current one first; NaN past its end


class ActingAgent(Protocol):
    """An agent that can be evaluated: a planner, or a policy."""

    @property
    def environment(self) -> EnvironmentSpec: ...
    @property
    def settings(self) -> PlannerRecord: ...
    @property
    def needs_goal(self) -> bool: ...  # True if ``aim`` must be called
    @property
    def imitates(self) -> bool: ...  # True if its return is reported as a share of the data's
    @property
    def last_plan(self) -> PredictedPlan: ...
    @property
    def planned(self) -> np.ndarray: ...  # (env,) bool: the last ``act`` made a new plan
    @property
    def counts(self) -> PlanCounts: ...  # of the plans since the last ``reset``
    def reset(self, num_envs: int, seeds: Sequence[int] | None = None) -> None: ...
    def begin_episode(self, env_index: int, seed: int) -> None: ...
    def aim(self, goals: np.ndarray) -> None: ...
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray: ...
    def observe(self, actions: np.ndarray, rewards: np.ndarray, done: np.ndarray) -> None: ...


class Recorder(Protocol):
    """Recorder of an episode's frames; it calls ``render`` only for frames that it keeps."""

    def capture(self, episode: int, step: int, render: Callable[[], object]) -> None: ...


@dataclass(frozen=True)
class EpisodeRecord:
    """One finished episode."""

    seed: int  # seed of the environment and of the agent's random numbers
    episode_return: float  # sum of rewards, undiscounted
    length: int  # steps
    terminated: bool  # ended by the environment; False if truncated
    success: bool | None  # success at any step; None if the environment never reports it


@dataclass(frozen=True)
class PlanTrace:
    """A plan made at ``step`` of an episode: observations (horizon, observation_dim), NaN past the plan's end."""

    step: int
    observations: np.ndarray


@dataclass(frozen=True)
class EpisodeTrace:
    """The observations of an episode, (T + 1, observation_dim), and the plans made in it."""

    episode: int
    observations: np.ndarray
    plans: tuple[PlanTrace, ...]


@dataclass(frozen=True)
class EpisodePath:
    """The path of an episode, in the coordinates of the environment's goals."""

    episode: int
    positions: np.ndarray  # (T + 1, goal_dim) achieved goals
    goals: np.ndarray  # (T + 1, goal_dim) desired goals


@dataclass(frozen=True)
class RolloutRecord:
    """All episodes in the order of their seeds, with timings."""

    episodes: tuple[EpisodeRecord, ...]
    plan_seconds: np.ndarray  # of each call of ``agent.act`` that made plans, for all active rows; at least one
    env_steps: int  # total over all environments
    seconds: float  # wall time of planning and stepping, without rendering
    traces: tuple[EpisodeTrace, ...]  # of the first ``RolloutOptions.traces`` episodes
    counts: PlanCounts
    paths: tuple[EpisodePath, ...] = ()  # of the first ``RolloutOptions.paths`` episodes, if the environment has goals
    max_episode_steps: int | None = None  # time limit of an episode


@dataclass(frozen=True)
class RolloutOptions:
    """Options of a rollout: records to keep besides its episodes, limits and callbacks."""

    progress: bool = True  # show a progress bar
    traces: int = 0  # number of episodes whose observations and plans are kept
    recorder: Recorder | None = None
    paths: int = 0  # number of episodes whose positions are kept
    max_episode_steps: int | None = None  # time limit of an episode; None: the environment's own
    longest_episode: int | None = None  # steps of the data's longest episode, used as limit if there is no other
    finished: Callable[[EpisodeRecord], None] | None = None  # called with each finished episode
    # called after each step with the number of finished episodes and their formatted mean return; may raise to stop
    stepped: Callable[[int, str], None] | None = None
