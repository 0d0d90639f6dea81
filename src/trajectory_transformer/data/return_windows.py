"""Windows of episodes with the return-to-go of each step, for return-conditioned learners."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .episodes import Episode
from .transitions import penalized_rewards, returns_to_go


class ReturnBatch(NamedTuple):
    """A batch of windows of L steps; steps past an episode's end repeat its last step and are masked."""

    returns: Tensor  # (batch, L) float32 sums of the rewards from each step to the end, undiscounted
    observations: Tensor  # (batch, L, observation_dim) float32
    actions: Tensor  # (batch, L, action_dim) float32
    steps: Tensor  # (batch, L) int64 indices of the steps in their episode, from 0
    mask: Tensor  # (batch, L) float32: 1 within the episode, 0 past its end


class ReturnWindows:
    """All windows of ``length`` ≥ 1 steps, one from each step; steps are stored once and gathered by index.

    Args:
        episodes, termination_penalty: as in :func:`~.transitions.join_episodes`.
        length: steps per window.
    """

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None, length: int) -> None:
        rewards = [penalized_rewards(episode, termination_penalty) for episode in episodes]
        columns = (
            np.concatenate([own + returns_to_go(own, 1.0) for own in rewards], dtype=np.float32),
            np.concatenate([episode.observations[:-1] for episode in episodes], dtype=np.float32),
            np.concatenate([episode.actions for episode in episodes], dtype=np.float32),
            np.concatenate([np.arange(len(episode)) for episode in episodes]),
            np.concatenate([np.arange(len(episode), 0, -1) for episode in episodes]),
        )
        self.returns, self.observations, self.actions, self.steps, self._left = map(torch.from_numpy, columns)
        self._ahead = torch.arange(length)

    def to(self, device: torch.device) -> "ReturnWindows":
        """Return the same windows on another device."""
        moved = copy.copy(self)
        vars(moved).update({name: tensor.to(device) for name, tensor in vars(self).items()})
        return moved

    def __len__(self) -> int:
        return len(self.returns)

    @property
    def device(self) -> torch.device:
        return self.returns.device

    def gather(self, indices: Tensor) -> ReturnBatch:
        """Return the windows that begin at steps ``indices`` (batch,), int64 in [0, len), on any device."""
        first = indices.to(self.device)[:, None]
        left = self._left[first]
        rows = first + torch.minimum(self._ahead, left - 1)
        mask = (self._ahead < left).to(torch.float32)
        return ReturnBatch(self.returns[rows], self.observations[rows], self.actions[rows], self.steps[rows], mask)
