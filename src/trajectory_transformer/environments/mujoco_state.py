"""Reconstruction of MuJoCo states from observations."""

from typing import Any

import numpy as np

from .spec import EnvironmentSpec

_VELOCITY_LIMIT = 10.0  # Gymnasium's Hopper and Walker2d clip the velocities in observations to it


def hidden_positions(simulation: Any, observation: np.ndarray, environment: EnvironmentSpec) -> int | None:
    """Return the number of leading position coordinates missing from an observation, or None if others are missing.

    The (observation_dim,) observation, taken right after a reset, must begin with all further positions and then all
    velocities, as in Hopper, HalfCheetah, Walker2d and Humanoid. The simulation is an environment without wrappers.
    """
    if environment.observation_indices is not None or not hasattr(simulation, "set_state"):
        return None
    position, velocity = simulation.data.qpos, simulation.data.qvel
    for hidden in (1, 2):
        expected = np.concatenate([position[hidden:], np.clip(velocity, -_VELOCITY_LIMIT, _VELOCITY_LIMIT)])
        if len(observation) >= len(expected) and np.allclose(observation[: len(expected)], expected, atol=1e-5):
            return hidden
    return None


def states_of(observations: np.ndarray, hidden: int, simulation: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the (position, velocity) of each of (steps, observation_dim) observations of a simulation.

    The missing ``hidden`` coordinates are integrated from their velocities.
    """
    positions, velocities = simulation.model.nq, simulation.model.nv
    seen = observations.astype(np.float64)
    velocity = seen[:, positions - hidden : positions - hidden + velocities]
    travelled = np.cumsum(velocity[:, :hidden] * simulation.dt, axis=0) - velocity[:1, :hidden] * simulation.dt
    position = np.concatenate([travelled, seen[:, : positions - hidden]], axis=1)
    return list(zip(position, velocity, strict=True))
