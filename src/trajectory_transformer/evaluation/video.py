"""Videos of the first episodes; a single warning if rendering does not work."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import in_one_line
from .ghosts import find_renderer

log = logging.getLogger(__name__)
logging.getLogger("OpenGL").setLevel(logging.WARNING)  # otherwise it reports a missing accelerator at every start

_PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"
_FRAMES_PER_SECOND = 25.0  # maximum: rendering a frame in software takes as long as many steps


def mujoco_rendering_works() -> bool:
    """Return True if MuJoCo can render without a display; sets ``MUJOCO_GL`` to a back end that works.

    Each back end is tried in a subprocess, because a missing one may crash. If ``MUJOCO_GL`` is set, only that one is
    tried.
    """
    chosen = os.environ.get("MUJOCO_GL")
    for backend in [chosen] if chosen else ["egl", "osmesa"] if sys.platform == "linux" else [None]:
        if _probe(backend):
            if backend is not None:
                os.environ["MUJOCO_GL"] = backend
            return True
    return False


def _probe(backend: str | None) -> bool:
    environment = dict(os.environ) if backend is None else {**os.environ, "MUJOCO_GL": backend}
    try:
        done = subprocess.run([sys.executable, "-c", _PROBE], env=environment, capture_output=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def unavailable_reason(environment: Any) -> str | None:
    """Return the reason why a Gymnasium environment cannot be recorded, or None if it can."""
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        return "imageio and imageio-ffmpeg are not installed (pip install 'trajectory-transformer[video]')"
    if "rgb_array" not in (environment.metadata.get("render_modes") or []):
        return "the environment cannot render frames (it has no render mode rgb_array)"
    if find_renderer(environment.unwrapped) is not None and not mujoco_rendering_works():
        return "MuJoCo cannot render here (MUJOCO_GL=egl and osmesa were tried; install libegl1 or libosmesa6)"
    return None


class VideoRecorder:
    """Recorder of the first ``episodes`` as ``episode_<i>.mp4``, frame by frame, at about real-time speed.

    The first failure stops the recording with a warning; the episodes continue.
    """

    def __init__(self, directory: Path, episodes: int, steps_per_second: float) -> None:
        self.directory, self.episodes = directory, episodes
        self.stride = max(1, round(steps_per_second / _FRAMES_PER_SECOND))
        self.frames_per_second = steps_per_second / self.stride
        self.writers: dict[int, Any] = {}
        self.failed = False

    def capture(self, episode: int, step: int, render: Callable[[], object]) -> None:
        """Add a frame, if this step of this episode is recorded."""
        if self.failed or episode >= self.episodes or step % self.stride:
            return
        try:
            if episode not in self.writers:
                self.writers[episode] = self._open(episode)
            frame = np.asarray(render())
            height, width = (side // 2 * 2 for side in frame.shape[:2])  # the codec needs even sides
            self.writers[episode].append_data(frame[:height, :width])
        except Exception as error:  # drivers, codecs and environments raise any exception
            self.failed = True
            self.close()
            log.warning("no video: %s", in_one_line(error))

    def _open(self, episode: int) -> Any:
        import imageio.v2 as imageio  # optional dependency

        self.directory.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"fps": self.frames_per_second, "codec": "libx264", "macro_block_size": 1}
        return imageio.get_writer(self.directory / f"episode_{episode}.mp4", format="FFMPEG", **options)

    def close(self) -> None:
        """Finish the videos."""
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
