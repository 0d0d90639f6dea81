"""Videos of predicted states, in MuJoCo's own environments."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.evaluation.scripted import WALK, environment_spec
from trajectory_transformer import progress
from trajectory_transformer.analysis import state_video
from trajectory_transformer.analysis.state_video import film_predictions


def pair(steps: int) -> tuple[np.ndarray, np.ndarray]:
    standing = np.zeros((steps, 11), dtype=np.float32)
    standing[:, 0] = 1.25
    leaning = standing.copy()
    leaning[:, 1] = np.linspace(0.0, 1.0, steps)
    return standing, leaning


def test_a_film_shows_both_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames: list[np.ndarray] = []
    told: list[bool] = []
    monkeypatch.setattr(progress, "PLAIN_LINE_SECONDS", 0.001)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")

    class Kept:
        def __init__(self, *_: object) -> None: ...

        def capture(self, episode: int, step: int, render: Any) -> None:
            frames.append(render())
            deadline = time.monotonic() + 20
            while "recording video  0/1 episodes" not in capsys.readouterr().err and time.monotonic() < deadline:
                time.sleep(0.001)
            told.append(time.monotonic() < deadline)

        def close(self) -> None: ...

    monkeypatch.setattr(state_video, "VideoRecorder", Kept)
    monkeypatch.setattr(state_video, "unavailable_reason", lambda *_, **__: None)
    drawn = state_video._side_by_side
    monkeypatch.setattr(state_video, "_side_by_side", lambda environment, states: np.array(states[1][0] - states[0][0]))
    film_predictions(environment_spec("Hopper-v5"), [pair(3)], tmp_path)
    assert told == [True] * 3  # without a terminal, a line now and then
    np.testing.assert_allclose([frame[2] for frame in frames], [0.0, 0.5, 1.0])  # qpos is x, z, then the angle
    shades: list[float] = []

    class Drawing:
        """Draws the angle that was set."""

        unwrapped: Any

        def __init__(self) -> None:
            self.unwrapped = self

        def set_state(self, position: np.ndarray, velocity: np.ndarray) -> None:
            shades.append(float(position[2]))

        def render(self) -> np.ndarray:
            return np.full((4, 6, 3), shades[-1])

    frame = drawn(Drawing(), [(np.array([0.0, 1.0, 0.25]), np.zeros(3)), (np.array([0.0, 1.0, 0.75]), np.zeros(3))])
    assert frame.shape == (4, 12, 3)
    assert (frame[:, :6] == 0.25).all()
    assert (frame[:, 6:] == 0.75).all()


@pytest.mark.parametrize("masked", [True, False])
def test_no_film_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, masked: bool) -> None:
    spec = replace(environment_spec("Hopper-v5"), observation_indices=tuple(range(11)))
    film_predictions(spec if masked else environment_spec(WALK), [pair(2)], tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "whole state" in caplog.records[0].message
    assert not list(tmp_path.iterdir())


def test_no_film_asked_for_needs_no_environment(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    film_predictions(replace(environment_spec(WALK), env_id="Nowhere-v0", spec_json=None), [], tmp_path)
    assert not caplog.records
