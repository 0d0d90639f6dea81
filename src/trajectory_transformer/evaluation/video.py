"""Films of the first episodes, where rendering works; one warning where it does not."""

import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

log = logging.getLogger(__name__)
logging.getLogger("OpenGL").setLevel(logging.WARNING)  # it reports at every start that an accelerator is missing

_PROBE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"
_FRAMES_PER_SECOND = 25.0  # at most: drawing a frame in software takes as long as many steps


def mujoco_rendering_works() -> bool:
    """True if MuJoCo can draw without a display; sets ``MUJOCO_GL`` to the back end that works.

    Each is tried in a process of its own, as a missing one may crash; one that is set already is the only one tried.
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


def unavailable_reason(metadata: dict[str, Any], uses_mujoco: bool) -> str | None:
    """The reason why no video can be made of an environment with this metadata, or None if it can."""
    if importlib.util.find_spec("imageio") is None or importlib.util.find_spec("imageio_ffmpeg") is None:
        return "imageio and imageio-ffmpeg are not installed (pip install 'trajectory-transformer[video]')"
    if "rgb_array" not in (metadata.get("render_modes") or []):
        return "the environment cannot draw frames (it has no render mode rgb_array)"
    if uses_mujoco and not mujoco_rendering_works():
        return "MuJoCo cannot draw here (MUJOCO_GL=egl and osmesa were tried; install libegl1 or libosmesa6)"
    return None


class VideoRecorder:
    """Writes ``episode_<i>.mp4`` of the first ``episodes``, frame by frame, at about true speed.

    The first failure ends recording with one warning; the episodes go on.
    """

    def __init__(self, directory: Path, episodes: int, steps_per_second: float) -> None:
        self.directory, self.episodes = directory, episodes
        self.stride = max(1, round(steps_per_second / _FRAMES_PER_SECOND))
        self.frames_per_second = steps_per_second / self.stride
        self.writers: dict[int, Any] = {}
        self.failed = False

    def capture(self, episode: int, step: int, render: Callable[[], object]) -> None:
        """Take a frame, if this step of this episode is filmed."""
        if self.failed or episode >= self.episodes or step % self.stride:
            return
        try:
            if episode not in self.writers:
                self.writers[episode] = self._open(episode)
            frame = np.asarray(render())
            height, width = (side // 2 * 2 for side in frame.shape[:2])  # the codec wants even sides
            self.writers[episode].append_data(frame[:height, :width])
        except Exception as error:  # drivers, codecs and environments fail in their own ways
            self.failed = True
            self.close()
            log.warning("no video: %s", " ".join(f"{type(error).__name__}: {error}".split()))

    def _open(self, episode: int) -> Any:
        import imageio.v2 as imageio  # an extra

        self.directory.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"fps": self.frames_per_second, "codec": "libx264", "macro_block_size": 1}
        return imageio.get_writer(self.directory / f"episode_{episode}.mp4", format="FFMPEG", **options)

    def close(self) -> None:
        """Finish the films."""
        for writer in self.writers.values():
            writer.close()
        self.writers.clear()
