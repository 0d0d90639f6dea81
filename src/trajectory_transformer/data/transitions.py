"""Episodes as rows of [observation | action | reward | value], with discounted returns-to-go as values."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from ..configuration import DataConfig
from ..layout import TransitionLayout
from .episodes import Episode
from .on_disk import forget, joined_rows


def returns_to_go(rewards: np.ndarray, discount: float, last: float = 0.0) -> np.ndarray:
    """Return the discounted sum of rewards (T,) after each step: ``V[t] = r[t+1] + discount * V[t+1]``.

    ``last`` is the value after the last step. The result is (T,) float64; the discount is in [0, 1].
    """
    following = accumulate(
        np.asarray(rewards, dtype=np.float64)[:0:-1].tolist(),
        lambda value, reward: reward + discount * value,
        initial=last,
    )
    return np.fromiter(following, dtype=np.float64)[::-1][: len(rewards)]


def penalized_rewards(episode: Episode, termination_penalty: float | None) -> np.ndarray:
    """Return (T,) float64 rewards; if a penalty is given, it replaces the last reward of a terminated episode."""
    rewards = episode.rewards.astype(np.float64)
    if episode.terminated and termination_penalty is not None:
        rewards[-1] = termination_penalty
    return rewards


def value_after_cut(rewards: np.ndarray, discount: float) -> float:
    """Return the return-to-go after a truncated episode's rewards (T,), as if its last ones went on for ever.

    "The last ones" are the mean of as many rewards as the discount, in [0, 1), looks ahead: ``1 / (1 - discount)``.
    """
    ahead = 1.0 / (1.0 - discount)
    return ahead * float(rewards[-max(1, round(ahead)) :].mean())


def join_transitions(
    episode: Episode, discount: float, termination_penalty: float | None, continue_truncated: bool = False
) -> np.ndarray:
    """Return a row for each step of an episode, (T, transition_dim) float32, columns as in :class:`TransitionLayout`.

    Args:
        episode: T steps.
        discount: discount factor of the return-to-go.
        termination_penalty: replaces the reward of the last step of a terminated episode before returns are computed;
            None keeps the recorded reward. Truncated episodes always keep it.
        continue_truncated: a truncated episode's values include :func:`value_after_cut`, which needs a discount below
            1. Differs from paper and original, where values of its last steps are low, as after a termination.
    """
    layout = TransitionLayout(episode.observations.shape[1], episode.actions.shape[1])
    rewards = penalized_rewards(episode, termination_penalty)
    joined = np.empty((len(episode), layout.transition_dim), dtype=np.float32)
    joined[:, layout.observation] = episode.observations[:-1]
    joined[:, layout.action] = episode.actions
    joined[:, layout.reward] = rewards
    continues = continue_truncated and not episode.terminated
    last = value_after_cut(rewards, discount) if continues else 0.0
    joined[:, layout.value] = returns_to_go(rewards, discount, last)
    return joined


@dataclass(frozen=True)
class TransitionTable:
    """The transitions of several episodes, episode by episode."""

    values: np.ndarray  # (rows, transition_dim) float32: lengths[0] rows of episode 0, lengths[1] of episode 1, …
    lengths: np.ndarray  # (episodes,) int64, steps of each episode
    terminated: np.ndarray  # (episodes,) bool


def following_returns(table: TransitionTable, discount: float) -> np.ndarray:
    """Return the discounted sum of rewards from each row's step on, its own included, (rows,) float32.

    Truncated episodes count as going on (:func:`value_after_cut`).

    Args:
        table: transitions, whose penalties are already in their rewards.
        discount: in [0, 1).
    """
    found, first = np.empty(len(table.values), dtype=np.float32), 0
    for length, terminated in zip(table.lengths.tolist(), table.terminated.tolist(), strict=True):
        rewards = table.values[first : first + length, -2].astype(np.float64)
        last = 0.0 if terminated else value_after_cut(rewards, discount)
        found[first : first + length] = rewards + discount * returns_to_go(rewards, discount, last)
        first += length
    return found


def join_episodes(
    episodes: Sequence[Episode], config: DataConfig, rewarded: bool = True, folder: Path | None = None
) -> TransitionTable:
    """Join the rows of :func:`join_transitions` for all episodes into one table.

    Args:
        episodes: at least one.
        config: how values are computed: discount, continue_truncated and termination_penalty, which must not be auto.
        rewarded: False makes all rewards and values 0.
        folder: folder in which the table is kept on disk; None: in memory.

    Raises:
        ValueError: there is no episode, or the penalty is auto.
        UserError: the folder is not writable.
    """
    if len(episodes) == 0:
        raise ValueError("at least one episode is needed")
    if config.termination_penalty == "auto":
        raise ValueError("termination_penalty=auto needs all episodes: config.resolve_penalty(data.ends_have_rewards)")

    def rows() -> Iterator[np.ndarray]:
        for episode in episodes:
            joined = join_transitions(episode, config.discount, config.termination_penalty, config.continue_truncated)
            if not rewarded:
                joined[:, -2:] = 0.0
            yield joined
            forget(episode.observations)

    return TransitionTable(
        values=joined_rows(rows(), folder),
        lengths=np.array([len(episode) for episode in episodes], dtype=np.int64),
        terminated=np.array([episode.terminated for episode in episodes], dtype=bool),
    )
