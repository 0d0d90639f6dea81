"""Videos of actual and predicted episodes side by side, rendered by MuJoCo in the observed states."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ..environments.batch import make_environments
from ..environments.mujoco_state import hidden_positions, states_of
from ..environments.spec import EnvironmentSpec
from ..evaluation.video import VideoRecorder, log, unavailable_reason
from ..progress import WorkProgress

_STEPS_PER_SECOND = 25.0  # a frame per step; at real-time speed a hundred steps of Hopper would last less than a second


def film_predictions(
    environment: EnvironmentSpec,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    directory: Path,
    progress: bool = True,
) -> None:
    """Write ``episode_<i>.mp4`` for each pair of (steps, observation_dim): actual on the left, predicted on the right.

    If observations do not contain the whole state, or rendering does not work, a warning is logged instead.
    """
    if not pairs:
        return
    with make_environments(environment, 1) as batch:  # before rendering, because the check may choose a back end
        batch.reset(0, 0)
        single = batch.environments[0]
        hidden = hidden_positions(single.unwrapped, batch.observations[0], environment)
        reason = unavailable_reason(single)
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
            for index, pair in enumerate(bar.track(pairs, description="recording video")):
                states = [states_of(observations, hidden, single.unwrapped) for observations in pair]
                for step, both in enumerate(zip(*states, strict=True)):
                    recorder.capture(index, step, lambda both=both: _side_by_side(single, both))


def _side_by_side(environment: Any, states: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    frames = []
    for position, velocity in states:
        environment.unwrapped.set_state(position, velocity)
        frames.append(np.asarray(environment.render()))
    return np.concatenate(frames, axis=1)
