"""Sets of single transitions, for one-step learners: kept on one device and gathered there by index."""

import copy
from collections.abc import Sequence
from typing import Generic, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from .episodes import Episode
from .transitions import penalized_rewards


class TransitionBatch(NamedTuple):
    """A batch of float32 transitions; a leading axis, if present, is that of an ensemble's members."""

    observations: Tensor  # (…, batch, observation_dim)
    actions: Tensor  # (…, batch, action_dim)
    rewards: Tensor  # (…, batch)
    next_observations: Tensor  # (…, batch, observation_dim)
    terminal: Tensor  # (…, batch), 1 if the environment ended the episode, otherwise 0, also after a time limit


class FollowedBatch(NamedTuple):
    """A batch of transitions as in :class:`TransitionBatch`, with the next actions."""

    observations: Tensor  # (batch, observation_dim)
    actions: Tensor  # (batch, action_dim)
    rewards: Tensor  # (batch,)
    next_observations: Tensor  # (batch, observation_dim)
    terminal: Tensor  # (batch,)
    next_actions: Tensor  # (batch, action_dim); the transition's own action if there is no next one
    followed: Tensor  # (batch,), 1 if there is a next action, 0 at the last step of an episode


Kind = TypeVar("Kind", TransitionBatch, FollowedBatch)


class _Transitions(Generic[Kind]):
    """Base of the sets: all transitions of at least one episode, episode by episode, in the attribute ``all``.

    Args:
        episodes, termination_penalty: as in :func:`~.transitions.join_episodes`.
    """

    kind: type[Kind]  # of ``all`` and of batches
    _samples: Tensor | None = None

    def __init__(self, episodes: Sequence[Episode], termination_penalty: float | None) -> None:
        rows = [self._columns(episode, penalized_rewards(episode, termination_penalty)) for episode in episodes]
        columns = (np.concatenate(column, dtype=np.float32) for column in zip(*rows, strict=True))
        self.all = self.kind(*map(torch.from_numpy, columns))

    def _columns(self, episode: Episode, rewards: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return an episode's T rows of each field of :attr:`kind`."""
        terminal = (np.arange(len(episode)) == len(episode) - 1) & episode.terminated
        return episode.observations[:-1], episode.actions, rewards, episode.observations[1:], terminal

    def to(self, device: torch.device, samples: Tensor | None = None) -> Self:
        """Return the same transitions on another device.

        ``samples``, (members, len) int64 indices, gives each member of an ensemble its own sample of the transitions.
        """
        moved = copy.copy(self)
        moved.all = self.kind(*(column.to(device) for column in self.all))
        moved._samples = None if samples is None else samples.to(device)
        return moved

    def __len__(self) -> int:
        return len(self.all.rewards)

    @property
    def device(self) -> torch.device:
        return self.all.rewards.device

    def gather(self, indices: Tensor) -> Kind:
        """Return the transitions ``indices`` (batch,), int64 in [0, len), on any device; from each sample, if any."""
        rows = indices.to(self.device)
        if self._samples is not None:
            rows = self._samples[:, rows]
        return self.kind(*(column[rows] for column in self.all))


class TransitionSet(_Transitions[TransitionBatch]):
    """The transitions of episodes as recorded; arguments and attributes as in the base class."""

    kind = TransitionBatch


class FollowedTransitions(_Transitions[FollowedBatch]):
    """The transitions of episodes with the next actions; arguments and attributes as in the base class."""

    kind = FollowedBatch

    @override
    def _columns(self, episode: Episode, rewards: np.ndarray) -> tuple[np.ndarray, ...]:
        next_actions = np.concatenate([episode.actions[1:], episode.actions[-1:]])
        followed = np.arange(1, len(episode) + 1) < len(episode)
        return *super()._columns(episode, rewards), next_actions, followed


def return_range(episodes: Sequence[Episode], termination_penalty: float | None) -> tuple[float, float]:
    """Return the lowest and highest undiscounted return, with the penalty in place of terminating rewards."""
    returns = [float(penalized_rewards(episode, termination_penalty).sum()) for episode in episodes]
    return min(returns), max(returns)
