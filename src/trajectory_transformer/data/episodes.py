"""Episodes as plain arrays, and the facts about their data set."""

from dataclasses import dataclass

import numpy as np

from ..environments.spec import EnvironmentSpec
from .on_disk import forget


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

    @property
    def longest_episode(self) -> int:
        """Steps of the longest episode."""
        return max(map(len, self.episodes))
