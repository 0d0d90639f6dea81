"""Films of what happened beside what was predicted, drawn by putting MuJoCo into the observed states."""

import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..environments.batch import make_environments
from ..environments.spec import EnvironmentSpec
from ..evaluation.video import VideoRecorder, log, unavailable_reason
from ..progress import WorkProgress

_STEPS_PER_SECOND = 25.0  # a frame each; in true speed a hundred steps of Hopper would last less than a second
_VELOCITY_LIMIT = 10.0  # Gymnasium's Hopper and Walker2d clip velocities to it in observations


def film_predictions(
    environment: EnvironmentSpec,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    directory: Path,
    progress: bool = True,
) -> None:
    """Write ``episode_<i>.mp4`` for each pair of (steps, observation_dim): what happened, left, and what was predicted.

    One warning, and no film, where the observations do not say the state, or where nothing can be drawn.
    """
    if not pairs:
        return
    with make_environments(environment, 1) as batch:  # before anything draws, as the check may choose a back end
        batch.reset(0, 0)
        single = batch.environments[0]
        hidden = hidden_positions(single.unwrapped, batch.observations[0], environment)
        reason = unavailable_reason(single.metadata, uses_mujoco="mujoco" in sys.modules)
    if hidden is None:
        reason = "the observations that the model sees do not give the whole state of a MuJoCo environment"
    if hidden is None or reason is not None:
        log.warning("no video: %s", reason)
        return
    with make_environments(environment, 1, render=True) as batch:
        batch.reset(0, 0)
        single = batch.environments[0]
        text = "{task.completed:.0f}/{task.total:.0f} episodes"
        recorder = VideoRecorder(directory, len(pairs), _STEPS_PER_SECOND)
        with closing(recorder), WorkProgress(text, progress) as bar:
            for index, pair in enumerate(bar.track(pairs, description="filming")):
                states = [states_of(observations, hidden, single.unwrapped) for observations in pair]
                for step, both in enumerate(zip(*states, strict=True)):
                    recorder.capture(index, step, lambda both=both: _side_by_side(single, both))


def hidden_positions(simulation: Any, observation: np.ndarray, environment: EnvironmentSpec) -> int | None:
    """Number of the position's leading coordinates that an observation leaves out, or None where it lacks others.

    The (observation_dim,) observation, just reset to, must begin with all further positions, then all velocities, as
    those of Hopper, HalfCheetah, Walker2d and Humanoid do. The simulation has no wrappers.
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
    """(position, velocity) of each of (steps, observation_dim) observations of a simulation.

    The ``hidden`` coordinates that are left out are integrated from their velocities.
    """
    positions, velocities = simulation.model.nq, simulation.model.nv
    seen = observations.astype(np.float64)
    velocity = seen[:, positions - hidden : positions - hidden + velocities]
    travelled = np.cumsum(velocity[:, :hidden] * simulation.dt, axis=0) - velocity[:1, :hidden] * simulation.dt
    position = np.concatenate([travelled, seen[:, : positions - hidden]], axis=1)
    return list(zip(position, velocity, strict=True))


def _side_by_side(environment: Any, states: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    frames = []
    for position, velocity in states:
        environment.unwrapped.set_state(position, velocity)
        frames.append(np.asarray(environment.render()))
    return np.concatenate(frames, axis=1)
