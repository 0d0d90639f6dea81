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
    """Transitions, one a row; a leading axis before the rows, where there is one, is that of an ensemble's members.

    Attributes:
        observations: (…, batch, observation_dim) float32.
        actions: (…, batch, action_dim) float32.
        rewards: (…, batch) float32.
        next_observations: (…, batch, observation_dim) float32.
        terminal: (…, batch) float32, 1 where the environment ended the episode, 0 elsewhere, after a time limit too.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    terminal: Tensor


class TransitionSet:
    """All transitions of some episodes, one episode after the other.

    Args:
        episodes: at least one.
        termination_penalty: reward of the last step of a terminated episode, instead of the recorded one; or None.

    Attributes:
        all: every transition, in order.
    """

    all: TransitionBatch

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None) -> None:
        terminal = [np.zeros(len(episode), dtype=np.float32) for episode in episodes]
        for flags, episode in zip(terminal, episodes, strict=True):
            flags[-1] = episode.terminated
        columns = (
            [episode.observations[:-1] for episode in episodes],
            [episode.actions for episode in episodes],
            [penalized_rewards(episode, termination_penalty).astype(np.float32) for episode in episodes],
            [episode.observations[1:] for episode in episodes],
            terminal,
        )
        self.all = TransitionBatch(*(torch.from_numpy(np.concatenate(column)) for column in columns))

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
