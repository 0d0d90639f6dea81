"""Behaviours that follow policies trained by ``train_behavior``, stored as plain arrays in this package."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from .recipe import Controller, Environment

Arrays = dict[str, np.ndarray]


@cache
def load_policy(file: str, snapshot: str) -> Arrays:
    """Load the float32 arrays ``SNAPSHOT/LAYER`` of an ``.npz`` beside this module, by layer; weights are (out, in).

    Raises:
        KeyError: the file has no such snapshot.
    """
    prefix = f"{snapshot}/"
    with np.load(Path(__file__).parent / file) as arrays:
        policy = {key.removeprefix(prefix): arrays[key].astype(np.float32) for key in arrays if key.startswith(prefix)}
    if not policy:
        raise KeyError(f"{file} holds no snapshot {snapshot}")
    return policy


def action_distribution(policy: Arrays, observation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (action_dim,) of the policy's Gaussian, before :func:`bounded`."""
    rectified = is_soft(policy)
    hidden = observation.astype(np.float32)
    layer = 0
    while f"hidden_{layer}_weight" in policy:
        hidden = policy[f"hidden_{layer}_weight"] @ hidden + policy[f"hidden_{layer}_bias"]
        hidden = np.maximum(hidden, 0.0) if rectified else np.tanh(hidden)
        layer += 1
    mean = policy["mean_weight"] @ hidden + policy["mean_bias"]
    log_std = policy["log_std_weight"] @ hidden + policy["log_std_bias"] if rectified else policy["log_std"]
    return mean, np.exp(np.clip(log_std, -20.0, 2.0))


def bounded(policy: Arrays, drawn: np.ndarray) -> np.ndarray:
    """Return the drawn action (action_dim,) bounded to [-1, 1]: squashed by tanh (soft actor-critic), or clipped."""
    return np.tanh(drawn) if is_soft(policy) else np.clip(drawn, -1.0, 1.0)


def is_soft(policy: Arrays) -> bool:
    """Return True for soft actor-critic, whose deviation depends on the observation; else it is a PPO policy."""
    return "log_std_weight" in policy


@dataclass(frozen=True)
class PolicyBehavior:
    """A Gaussian policy, optionally with action noise."""

    file: str  # see load_policy
    snapshot: str
    weight: float
    temperature: float = 1.0  # factor on the policy's own standard deviation; 0 acts deterministically
    noise: float = 0.0  # standard deviation of Gaussian noise on the action, as a fraction of half the action range

    @property
    def name(self) -> str:
        return f"{self.snapshot} temperature={self.temperature:g} noise={self.noise:g}"

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        from gymnasium.spaces import Box

        space = environment.action_space
        assert isinstance(space, Box)
        policy = load_policy(self.file, self.snapshot)
        middle, half_range = (space.high + space.low) / 2.0, (space.high - space.low) / 2.0

        def act(observation: np.ndarray) -> np.ndarray:
            mean, std = action_distribution(policy, observation)
            action = bounded(policy, mean + self.temperature * std * generator.standard_normal(mean.shape))
            return middle + half_range * (action + self.noise * generator.standard_normal(mean.shape))

        return act
