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

    def to(self, device: torch.device) -> "TransitionSet":
        """The same transitions on another device."""
        moved = copy.copy(self)
        moved.all = TransitionBatch(*(column.to(device) for column in self.all))
        return moved

    def __len__(self) -> int:
        return len(self.all.rewards)

    @property
    def device(self) -> torch.device:
        return self.all.rewards.device

    def gather(self, indices: Tensor) -> TransitionBatch:
        """Transitions by number: ``indices`` of any shape, int64 in [0, len), on any device."""
        rows = indices.to(self.device)
        return TransitionBatch(*(column[rows] for column in self.all))


class BootstrappedTransitions:
    """Each member of an ensemble sees its own sample of the transitions, drawn with replacement and as large.

    Args:
        transitions: to draw from.
        samples: (members, len(transitions)) int64 indices of them.
    """

    def __init__(self, transitions: TransitionSet, samples: Tensor) -> None:
        self.transitions, self._samples = transitions, samples.to(transitions.device)

    def __len__(self) -> int:
        return len(self.transitions)

    @property
    def device(self) -> torch.device:
        return self.transitions.device

    def gather(self, indices: Tensor) -> TransitionBatch:
        """(members, batch, …): for each member, the transitions that lie at ``indices`` (batch,) of its own sample."""
        return self.transitions.gather(self._samples[:, indices.to(self.device)])


def return_range(episodes: Sequence[Episode], termination_penalty: float | None) -> tuple[float, float]:
    """Worst and best undiscounted return of the episodes, with the penalty in place of terminating rewards."""
    returns = [float(penalized_rewards(episode, termination_penalty).sum()) for episode in episodes]
    return min(returns), max(returns)
