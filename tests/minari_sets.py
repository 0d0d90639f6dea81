"""Small Minari data sets, written by Minari itself, for tests that read them."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import gymnasium as gym
import minari
import numpy as np
from minari.data_collector import EpisodeBuffer


@dataclass
class RawEpisode:
    """The contents of one ``EpisodeBuffer``; observations and actions may be nested dicts."""

    observations: object
    actions: object
    rewards: np.ndarray
    terminated: bool = False

    def buffer(self) -> EpisodeBuffer:
        flags = np.zeros(len(self.rewards), dtype=bool)
        terminations, truncations = flags.copy(), flags.copy()
        terminations[-1:], truncations[-1:] = self.terminated, not self.terminated
        return EpisodeBuffer(
            observations=self.observations,  # pyright: ignore[reportArgumentType]
            actions=self.actions,  # pyright: ignore[reportArgumentType]
            rewards=self.rewards,  # pyright: ignore[reportArgumentType]
            terminations=terminations,  # pyright: ignore[reportArgumentType]
            truncations=truncations,  # pyright: ignore[reportArgumentType]
        )


def box(size: int, bound: float = np.inf, dtype: type = np.float64) -> gym.spaces.Box:
    return gym.spaces.Box(-bound, bound, (size,), dtype)


def random_episode(
    steps: int, seed: int = 0, observation_dim: int = 3, action_dim: int = 2, terminated: bool = False
) -> RawEpisode:
    """Normally distributed observations, actions within ±1, and rewards; float64 and float32 as MuJoCo's."""
    generator = np.random.default_rng(seed)
    return RawEpisode(
        generator.standard_normal((steps + 1, observation_dim)),
        generator.uniform(-1, 1, (steps, action_dim)).astype(np.float32),
        generator.standard_normal(steps),
        terminated,
    )


def write_dataset(dataset_id: str, episodes: Sequence[RawEpisode], **arguments: object) -> minari.MinariDataset:
    """Write below ``$MINARI_DATASETS_PATH``; spaces default to those of :func:`random_episode`."""
    if "env" not in arguments:
        arguments = {"observation_space": box(3), "action_space": box(2, 1.0, np.float32)} | arguments
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return minari.create_dataset_from_buffers(
            dataset_id,
            [episode.buffer() for episode in episodes],
            **arguments,  # pyright: ignore[reportArgumentType]
        )
