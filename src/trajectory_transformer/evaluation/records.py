"""Interfaces between an agent, the rollout and its reports: the agent's protocol, and records of episodes."""

from collections.abc import Callable, Sequence
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from ..environments.spec import EnvironmentSpec
from ..planning.plan import PlanCounts


class PlannerRecord(Protocol):
    """Options of a planner, or of a policy that acts in its place; a dataclass, all of whose fields are recorded.

    Attributes:
        name: of the planner.
        horizon: steps that a plan looks ahead, at least 1.
        beam_width: plans that the search keeps, at least 1.
        deadline_ms: time that an action may take, or None.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def name(self) -> str: ...

    @property
    def horizon(self) -> int: ...

    @property
    def beam_width(self) -> int: ...

    @property
    def deadline_ms(self) -> float | None: ...


class PredictedPlan(Protocol):
    """Observations that a plan expects; row i belongs to environment i."""

    @property
    def observations(self) -> np.ndarray:
        """(env, horizon, observation_dim); the first is the observation that the plan starts from.

        NaN beyond a plan that a deadline cut short.
        """
        ...


class ActingAgent(Protocol):
    """An agent that can be evaluated: one that plans, or one that follows a policy."""

    @property
    def environment(self) -> EnvironmentSpec: ...

    @property
    def settings(self) -> PlannerRecord: ...

    @property
    def needs_goal(self) -> bool:
        """True if ``aim`` must give it a goal."""
        ...

    @property
    def imitates(self) -> bool:
        """True if it imitates its data, so that its return is reported as a share of theirs."""
        ...

    @property
    def last_plan(self) -> PredictedPlan: ...

    @property
    def planned(self) -> np.ndarray:
        """(env,) bool: whether the last ``act`` made a plan, rather than following an earlier one."""
        ...

    @property
    def counts(self) -> PlanCounts:
        """Of the plans since the last ``reset``."""
        ...

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
    """One finished episode.

    Attributes:
        seed: of the environment and of the agent's random numbers.
        episode_return: sum of rewards, undiscounted.
        length: steps.
        terminated: the environment ended it; False where it was truncated.
        success: whether any step reported success, or None where the environment never reports it.
    """

    seed: int
    episode_return: float
    length: int
    terminated: bool
    success: bool | None


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
    """Positions of an episode, in the coordinates of the environment's goals.

    Attributes:
        episode: which.
        positions: (T + 1, goal_dim), what was achieved.
        goals: (T + 1, goal_dim), what was desired then.
    """

    episode: int
    positions: np.ndarray
    goals: np.ndarray


@dataclass(frozen=True)
class RolloutRecord:
    """All episodes in the order of their seeds, and how long things took.

    Attributes:
        episodes: one record per episode.
        plan_seconds: time of each ``agent.act`` that made a plan, at least one; it serves all active rows.
        env_steps: steps of single environments, together.
        seconds: wall time of planning and stepping, without rendering.
        traces: of the first episodes, as many as asked for.
        counts: of the plans, and what a deadline did to them.
        paths: of the first episodes, as many as asked for, where the environment has goals.
    """

    episodes: tuple[EpisodeRecord, ...]
    plan_seconds: np.ndarray
    env_steps: int
    seconds: float
    traces: tuple[EpisodeTrace, ...]
    counts: PlanCounts
    paths: tuple[EpisodePath, ...] = ()


@dataclass(frozen=True)
class RolloutOptions:
    """Records to be kept of a rollout beside its episodes.

    Attributes:
        progress: show a progress bar.
        traces: episodes to keep observations and plans of.
        recorder: takes pictures, if given.
        paths: episodes to keep the positions of.
    """

    progress: bool = True
    traces: int = 0
    recorder: Recorder | None = None
    paths: int = 0
