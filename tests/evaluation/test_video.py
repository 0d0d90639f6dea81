"""Videos if frames can be drawn; otherwise exactly one warning and no exception."""

import importlib.util
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest

from trajectory_transformer.evaluation import video
from trajectory_transformer.evaluation.video import VideoRecorder, mujoco_rendering_works, unavailable_reason


class Shell:
    """An environment with these render modes; with ``body``, that of a maze."""

    def __init__(self, modes: list[str] | None, body: Any = None) -> None:
        self.metadata = {} if modes is None else {"render_modes": modes}
        self.unwrapped = SimpleNamespace(point_env=body)


FRAMES = Shell(["human", "rgb_array"])


def frame(shade: int = 0) -> np.ndarray:
    return np.full((33, 47, 3), shade, dtype=np.uint8)


def decode(path: Path, height: int, width: int) -> tuple[np.ndarray, str]:
    """Frames (n, height, width, 3) of a video, and ffmpeg's description of it."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, check=True, capture_output=True)
    return np.frombuffer(done.stdout, dtype=np.uint8).reshape(-1, height, width, 3), done.stderr.decode()


def test_frames_become_a_film_at_true_speed(tmp_path: Path) -> None:
    recorder = VideoRecorder(tmp_path / "videos", episodes=1, steps_per_second=50.0)
    rendered = []
    for step in range(40):
        recorder.capture(0, step, lambda step=step: rendered.append(step) or frame(6 * step))
        recorder.capture(1, step, lambda: pytest.fail("episode 1 is not to be filmed"))
    recorder.close()
    assert rendered == list(range(0, 40, 2))  # 50 steps in a second, 25 frames
    assert [path.name for path in (tmp_path / "videos").iterdir()] == ["episode_0.mp4"]
    frames, log = decode(tmp_path / "videos" / "episode_0.mp4", height=32, width=46)
    assert "46x32" in log  # the codec wants even sides
    assert "25 fps" in log
    assert len(frames) == 20
    assert abs(float(frames[10].mean()) - 120) < 12


def test_a_failure_ends_filming_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> object:
        raise AttributeError("no attribute\n'opengl_context'")

    recorder = VideoRecorder(tmp_path, episodes=2, steps_per_second=25.0)
    recorder.capture(0, 0, frame)
    recorder.capture(0, 1, broken)
    recorder.capture(1, 0, broken)
    recorder.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no attribute 'opengl_context'" in caplog.records[0].message


@pytest.mark.parametrize("package", ["imageio", "imageio_ffmpeg"])
def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == package else find(name))
    assert "trajectory-transformer[video]" in (unavailable_reason(FRAMES) or "")


def test_environment_that_cannot_draw() -> None:
    assert "rgb_array" in (unavailable_reason(Shell(["human"])) or "")
    assert "rgb_array" in (unavailable_reason(Shell(None)) or "")
    assert unavailable_reason(FRAMES) is None


def test_mujoco_is_asked_only_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "mujoco_rendering_works", lambda: False)
    assert "mujoco" in sys.modules
    assert unavailable_reason(gymnasium.make("CartPole-v1")) is None
    assert unavailable_reason(FRAMES) is None
    hopper = gymnasium.make("Hopper-v5")
    for environment in (hopper, Shell(["rgb_array"], hopper.unwrapped)):
        assert "MUJOCO_GL" in (unavailable_reason(environment) or "")


@pytest.mark.parametrize(
    ("preset", "working", "tried", "chosen"),
    [
        (None, {"egl", "osmesa"}, ["egl"], "egl"),
        (None, {"osmesa"}, ["egl", "osmesa"], "osmesa"),
        (None, set(), ["egl", "osmesa"], None),
        ("glfw", {"egl"}, ["glfw"], None),
        ("osmesa", {"egl", "osmesa"}, ["osmesa"], "osmesa"),
    ],
)
def test_back_ends_are_tried_in_order(
    monkeypatch: pytest.MonkeyPatch, preset: str | None, working: set[str], tried: list[str], chosen: str | None
) -> None:
    seen: list[str | None] = []

    def probe(backend: str | None) -> bool:
        seen.append(backend)
        return backend in working

    monkeypatch.setenv("MUJOCO_GL", preset or "")
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(video, "_probe", probe)
    assert mujoco_rendering_works() == (chosen is not None)
    assert seen == tried
    assert os.environ["MUJOCO_GL"] == (chosen or preset or "")


def test_a_back_end_that_does_not_exist_fails_the_probe() -> None:
    assert not video._probe("none-such")


@pytest.mark.parametrize("error", [OSError("no process"), subprocess.TimeoutExpired("python", 1)])
def test_a_probe_that_cannot_run_fails(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def run(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(subprocess, "run", run)
    assert not video._probe("egl")
