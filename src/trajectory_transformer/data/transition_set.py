"""Single transitions, for learners that look at one step at a time: kept on one device and gathered there by index."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .episodes import Episode
from .transitions import penalized_rewards


class TransitionBatch(NamedTuple):
    """Transitions in float32, one a row; a leading axis, where there is one, is that of an ensemble's members."""

    observations: Tensor  # (…, batch, observation_dim)
    actions: Tensor  # (…, batch, action_dim)
    rewards: Tensor  # (…, batch)
    next_observations: Tensor  # (…, batch, observation_dim)
    terminal: Tensor  # (…, batch), 1 where the environment ended the episode, 0 elsewhere, after a time limit too


class TransitionSet:
    """All transitions of at least one episode, one episode after the other, in ``all``.

    Args:
        episodes, termination_penalty: as of :func:`~.transitions.join_episodes`.
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
        """The same transitions on another device; ``samples``, (members, len) int64 indices: a sample for each member.

        The members are those of an ensemble, each of which sees its own sample only.
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
        """Transitions by number: ``indices`` (batch,), int64 in [0, len), on any device; of each sample, if any."""
        rows = indices.to(self.device)
        if self._samples is not None:
            rows = self._samples[:, rows]
        return TransitionBatch(*(column[rows] for column in self.all))


class FollowedBatch(NamedTuple):
    """Transitions as in :class:`TransitionBatch`, with the action that was taken next."""

    observations: Tensor  # (batch, observation_dim)
    actions: Tensor  # (batch, action_dim)
    rewards: Tensor  # (batch,)
    next_observations: Tensor  # (batch, observation_dim)
    terminal: Tensor  # (batch,)
    next_actions: Tensor  # (batch, action_dim); where none was taken, the transition's own
    followed: Tensor  # (batch,), 1 where one was taken, 0 at the last step of an episode, however it ended


class FollowedTransitions:
    """The transitions of a :class:`TransitionSet`, gathered with the next actions; arguments as there."""

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None) -> None:
        self.transitions = TransitionSet(episodes, termination_penalty)
        followed = [np.arange(1, len(episode) + 1) < len(episode) for episode in episodes]
        self._followed = torch.from_numpy(np.concatenate(followed))

    def to(self, device: torch.device) -> "FollowedTransitions":
        """The same transitions on another device."""
        moved = copy.copy(self)
        moved.transitions, moved._followed = self.transitions.to(device), self._followed.to(device)
        return moved

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def device(self) -> torch.device:
        return self.transitions.device

    def gather(self, indices: Tensor) -> FollowedBatch:
        """As :meth:`TransitionSet.gather`."""
        rows = indices.to(self.device)
        followed = self._followed[rows]
        next_actions = self.transitions.all.actions[rows + followed]
        return FollowedBatch(*self.transitions.gather(rows), next_actions, followed.to(torch.float32))


def return_range(episodes: Sequence[Episode], termination_penalty: float | None) -> tuple[float, float]:
    """Worst and best undiscounted return of the episodes, with the penalty in place of terminating rewards."""
    returns = [float(penalized_rewards(episode, termination_penalty).sum()) for episode in episodes]
    return min(returns), max(returns)
