"""Sets of single transitions, for one-step learners: kept on one device and gathered there by index."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .episodes import Episode
from .transitions import penalized_rewards


class TransitionBatch(NamedTuple):
    """A batch of float32 transitions; a leading axis, if present, is that of an ensemble's members."""

    observations: Tensor  # (…, batch, observation_dim)
    actions: Tensor  # (…, batch, action_dim)
    rewards: Tensor  # (…, batch)
    next_observations: Tensor  # (…, batch, observation_dim)
    terminal: Tensor  # (…, batch), 1 if the environment ended the episode, otherwise 0, also after a time limit


class TransitionSet:
    """All transitions of at least one episode, episode by episode, in the attribute ``all``.

    Args:
        episodes, termination_penalty: as in :func:`~.transitions.join_episodes`.
    """

    _samples: Tensor | None = None

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None) -> None:
        rows = [
            (
                episode.observations[:-1],
                episode.actions,
                penalized_rewards(episode, termination_penalty),
                episode.observations[1:],
                (np.arange(len(episode)) == len(episode) - 1) & episode.terminated,
            )
            for episode in episodes
        ]
        columns = (np.concatenate(column, dtype=np.float32) for column in zip(*rows, strict=True))
        self.all = TransitionBatch(*map(torch.from_numpy, columns))

    def to(self, device: torch.device, samples: Tensor | None = None) -> "TransitionSet":
        """Return the same transitions on another device.

        ``samples``, (members, len) int64 indices, gives each member of an ensemble its own sample of the transitions.
        """
        moved = copy.copy(self)
        moved.all = TransitionBatch(*(column.to(device) for column in self.all))
        moved._samples = None if samples is None else samples.to(device)
        return moved

    def __len__(self) -> int:
        return len(self.all.rewards)

    @property
    def device(self) -> torch.device:
        return self.all.rewards.device

    def gather(self, indices: Tensor) -> TransitionBatch:
        """Return the transitions ``indices`` (batch,), int64 in [0, len), on any device; from each sample, if any."""
        rows = indices.to(self.device)
        if self._samples is not None:
            rows = self._samples[:, rows]
        return TransitionBatch(*(column[rows] for column in self.all))


class FollowedBatch(NamedTuple):
    """A batch of transitions as in :class:`TransitionBatch`, with the next actions."""

    observations: Tensor  # (batch, observation_dim)
    actions: Tensor  # (batch, action_dim)
    rewards: Tensor  # (batch,)
    next_observations: Tensor  # (batch, observation_dim)
    terminal: Tensor  # (batch,)
    next_actions: Tensor  # (batch, action_dim); the transition's own action if there is no next one
    followed: Tensor  # (batch,), 1 if there is a next action, 0 at the last step of an episode


class FollowedTransitions:
    """The transitions of a :class:`TransitionSet` with the next actions; arguments as there."""

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None) -> None:
        self.transitions = TransitionSet(episodes, termination_penalty)
        followed = [np.arange(1, len(episode) + 1) < len(episode) for episode in episodes]
        self._followed = torch.from_numpy(np.concatenate(followed))

    def to(self, device: torch.device) -> "FollowedTransitions":
        """Return the same transitions on another device."""
        moved = copy.copy(self)
        moved.transitions, moved._followed = self.transitions.to(device), self._followed.to(device)
        return moved

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def device(self) -> torch.device:
        return self.transitions.device

    def gather(self, indices: Tensor) -> FollowedBatch:
        """Return transitions by index, as in :meth:`TransitionSet.gather`."""
        rows = indices.to(self.device)
        followed = self._followed[rows]
        next_actions = self.transitions.all.actions[rows + followed]
        return FollowedBatch(*self.transitions.gather(rows), next_actions, followed.to(torch.float32))


def return_range(episodes: Sequence[Episode], termination_penalty: float | None) -> tuple[float, float]:
    """Return the lowest and highest undiscounted return, with the penalty in place of terminating rewards."""
    returns = [float(penalized_rewards(episode, termination_penalty).sum()) for episode in episodes]
    return min(returns), max(returns)
