"""Episodes as plain arrays, and the facts about their data set."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..environments.spec import EnvironmentSpec
from .on_disk import forget

SAMPLED_REWARDS = 1_000_000  # of a larger set, about as many rewards at equal distances are looked at


@dataclass(frozen=True)
class Episode:
    """One validated episode of T ≥ 1 steps."""

    observations: np.ndarray  # (T + 1, observation_dim) float32; the last one follows the last action
    actions: np.ndarray  # (T, action_dim) float32
    rewards: np.ndarray  # (T,) float32
    terminated: bool  # ended by the environment, not by a time limit

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class OfflineData:
    """Episodes of one data set, or of several joined, with the facts that training and evaluation need."""

    dataset_ids: list[str]  # names of the sources (Minari ids if they have one), in the order joined
    episodes: list[Episode]  # in the order stored
    environment: EnvironmentSpec
    reference_scores: tuple[float, float] | None  # (minimum, maximum) return for normalised scores
    reference_source: str  # origin of the scores: "dataset", "d4rl" or "none"
    fingerprint: str  # SHA-256 over all arrays, in hexadecimal; distinguishes sets of one name

    @property
    def returns(self) -> np.ndarray:
        """(episodes,) undiscounted returns of the behaviour, float64."""
        sums = []
        for episode in self.episodes:
            sums.append(episode.rewards.sum(dtype=np.float64))
            forget(episode.rewards)
        return np.array(sums)

    @cached_property
    def ends_have_rewards(self) -> bool:
        """True if the rewards tell what the end of an episode is worth, so that no penalty has to.

        That is so if at least a hundredth of the terminating steps have rewards that stand out: the distance to the
        range from the 5 % to the 95 % quantile of all other rewards is more than twice its width. It is also so if no
        reward is positive, because then an end stops costs. On locomotion, where a fall is a step like others,
        neither holds.
        """
        others, last = [], []
        stride = 1 + sum(map(len, self.episodes)) // SAMPLED_REWARDS
        for episode in self.episodes:
            count = len(episode) - episode.terminated
            others.append(np.array(episode.rewards[:count:stride]))
            last.extend(episode.rewards[count:].tolist())
            forget(episode.rewards)
        sample, ends = np.concatenate(others), np.array(last)
        if len(ends) == 0:
            return False
        if len(sample) == 0 or max(sample.max(), ends.max()) <= 0.0:
            return True
        low, high = np.quantile(sample, (0.05, 0.95))
        away = np.maximum(low - ends, ends - high)
        return float(np.mean(away > 2.0 * (high - low))) >= 0.01

    @property
    def longest_episode(self) -> int:
        """Steps of the longest episode."""
        return max(map(len, self.episodes))
