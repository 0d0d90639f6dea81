"""An agent that follows a policy, without planning."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..configuration import require
from ..environments.spec import EnvironmentSpec
from ..planning.plan import PlanCounts


@dataclass(frozen=True)
class PolicySettings:
    """Planner options of a policy's agent: one step, one candidate, no deadline."""

    name: str
    horizon: int = 1
    beam_width: int = 1
    deadline_ms: float | None = None


@dataclass(frozen=True)
class PolicyStep:
    """The plan of a policy's agent: the present observations only."""

    observations: np.ndarray  # (environment, 1, observation_dim)


class PolicyAgent:
    """An agent that takes a deterministic policy's action in each environment.

    ``policy`` maps observations (n, observation_dim) to actions (n, action_dim), both in the spaces' own units;
    ``name`` is its name in results.
    """

    needs_goal = imitates = False
    planned: np.ndarray  # (environment,) bool: rows for which the last :meth:`act` chose an action
    counts: PlanCounts  # actions chosen since the last :meth:`reset`, as plans of one step

    def __init__(
        self, policy: Callable[[Tensor], Tensor], environment: EnvironmentSpec, device: str, name: str
    ) -> None:
        self._policy, self.environment, self._device = policy, environment, device
        self.settings = PolicySettings(name)
        self.reset(1)

    def reset(self, num_envs: int, seeds: Sequence[int] | None = None) -> None:
        """Begin ``num_envs`` episodes."""
        self.planned = np.zeros(num_envs, dtype=bool)
        self.counts = PlanCounts()
        self._observations = np.zeros((num_envs, self.environment.observation_dim), dtype=np.float32)

    def begin_episode(self, env_index: int, seed: int) -> None:
        """Do nothing: a policy has no past."""

    def aim(self, goals: np.ndarray) -> None:
        """Do nothing: for a policy, the goal is part of the observation."""

    @torch.no_grad()
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        """The next actions (environment, action_dim) float32 for real-valued observations.

        Rows that are not ``active`` (None: all are) get 0; UserError if the shape of observations or of the policy's
        action is wrong, or an active row not finite.
        """
        expected = self._observations.shape
        require(observations.shape == expected, f"observations have shape {observations.shape}, expected {expected}")
        self.planned = np.ones(len(observations), dtype=bool) if active is None else np.array(active, dtype=bool)
        bad = np.flatnonzero(self.planned & ~np.isfinite(observations).all(axis=1)).tolist()
        require(not bad, f"the observation of environment {bad} has NaN or infinite values")
        self._observations = np.array(observations, dtype=np.float32)
        self.counts = PlanCounts(self.counts.plans + int(self.planned.sum()))
        actions = np.zeros((len(observations), self.environment.action_dim), dtype=np.float32)
        values = torch.from_numpy(self._observations).to(self._device)
        for row in np.flatnonzero(self.planned):  # one by one: in a batch, rounding depends on the other rows
            action = self.choose(int(row), values[row : row + 1])
            require(
                action.shape == actions[row].shape,
                f"the policy's actions have shape {tuple(action.shape)}, expected {actions[row].shape}",
            )
            actions[row] = action.cpu().numpy()
        return actions

    def choose(self, row: int, observation: Tensor) -> Tensor:
        """The action (action_dim,) of one environment for its observation (1, observation_dim)."""
        return self._policy(observation)[0]

    def observe(self, actions: np.ndarray, rewards: np.ndarray, done: np.ndarray) -> None:
        """Do nothing: the next action depends on the next observation alone."""

    @property
    def last_plan(self) -> PolicyStep:
        return PolicyStep(self._observations[:, None])
