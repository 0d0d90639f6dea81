"""The Decision Transformer's agent, which keeps the remaining target return and the steps of its network's input."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..environments.spec import EnvironmentSpec
from .dt_network import DecisionTransformer
from .policy_agent import PolicyAgent, PolicySettings


@dataclass(frozen=True)
class DecisionSettings(PolicySettings):
    """Settings of a policy, with the number of steps in its input and its target return."""

    context: int = 1
    target_return: float = 0.0


@dataclass
class _Past:
    """One environment's episode so far."""

    steps: deque[tuple[float, np.ndarray, np.ndarray]]  # the latest ones: remaining target, observation, action
    remaining: float  # target of the sum of all further rewards
    length: int = 0  # steps made


class DecisionAgent(PolicyAgent):
    """Predicts actions from the last steps and the remaining target return: the target minus the rewards received."""

    def __init__(
        self, network: DecisionTransformer, environment: EnvironmentSpec, device: str, target_return: float
    ) -> None:
        self._network, self._context, self._target = network, network.options.context, target_return
        super().__init__(network, environment, device, "dt_policy")
        self.settings = DecisionSettings("dt_policy", context=self._context, target_return=target_return)

    @override
    def reset(self, num_envs: int, seeds: Sequence[int] | None = None) -> None:
        """Begin ``num_envs`` episodes."""
        super().reset(num_envs, seeds)
        self._pasts = [self._new_past() for _ in range(num_envs)]

    @override
    def begin_episode(self, env_index: int, seed: int) -> None:
        """Forget one environment's past."""
        self._pasts[env_index] = self._new_past()

    def _new_past(self) -> _Past:
        return _Past(deque(maxlen=self._context - 1), self._target)

    @override
    def choose(self, row: int, observation: Tensor) -> Tensor:
        """The action (action_dim,) of one environment for its observation (1, observation_dim)."""
        past = self._pasts[row]
        # The zeros are a placeholder for the present action, which the network does not see.
        present = past.remaining, self._observations[row], np.zeros(self.environment.action_dim)
        columns = zip(*past.steps, present, strict=True)
        returns, observations, actions = (
            torch.from_numpy(np.array(column, dtype=np.float32)).to(observation).unsqueeze(0) for column in columns
        )
        steps = torch.arange(past.length - len(past.steps), past.length + 1, device=observation.device)
        return self._network(returns, observations, actions, steps.unsqueeze(0))[0, -1]

    @override
    def observe(self, actions: np.ndarray, rewards: np.ndarray, done: np.ndarray) -> None:
        """Record the last step of each environment, and forget the past of those that are ``done``."""
        for row in np.flatnonzero(self.planned):
            past = self._pasts[row]
            past.steps.append((past.remaining, self._observations[row], np.array(actions[row])))
            past.remaining -= float(rewards[row])
            past.length += 1
            if done[row]:
                self._pasts[row] = self._new_past()
