"""Episodes as plain arrays, and what is known about the set they come from."""

from dataclasses import dataclass

import numpy as np

from ..environments.spec import EnvironmentSpec


@dataclass(frozen=True)
class Episode:
    """One validated episode of T ≥ 1 steps.

    Attributes:
        observations: (T + 1, observation_dim) float32, the last one following the last action.
        actions: (T, action_dim) float32.
        rewards: (T,) float32.
        terminated: the environment ended it (a truncated episode has False).
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class OfflineData:
    """All that training and evaluation need to know of one data set, or of several joined.

    Attributes:
        dataset_ids: names of the sources, which are Minari ids where they have one, in the order joined.
        episodes: validated episodes, in the order stored.
        environment: how to rebuild the environment, and its spaces.
        reference_scores: (minimum, maximum) return for normalised scores, or None.
        reference_source: where they come from: "dataset", "d4rl" or "none".
        fingerprint: SHA-256 over all arrays, in hexadecimal: tells two sets of one name apart.
    """

    dataset_ids: list[str]
    episodes: list[Episode]
    environment: EnvironmentSpec
    reference_scores: tuple[float, float] | None
    reference_source: str
    fingerprint: str

    @property
    def returns(self) -> np.ndarray:
        """(episodes,) undiscounted returns of the behaviour, float64."""
        return np.array([episode.rewards.sum(dtype=np.float64) for episode in self.episodes])
