"""A folder of ``.npz`` files as a source of episodes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
from typing_extensions import override

from ..environments.make import environment_spec
from ..environments.spaces import space_spec
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .episode_source import EpisodeSource, StoredEpisode, StoredSet

NEEDED = ("observations", "actions", "rewards", "terminated")
REMEDY = "; mend that file, or take it out of the folder"


@dataclass
class NpzFolder(EpisodeSource):
    """One episode of T ≥ 1 steps in each file, in natural order: ``episode_2.npz`` before ``episode_10.npz``.

    The arrays of a file, which ``numpy.savez`` writes (objects are refused, and nothing is executed):

    - ``observations`` (T + 1, O): real numbers, the last one following the last action;
    - ``actions`` (T, A): as executed; a Discrete action is its index, A = 1;
    - ``rewards`` (T,);
    - ``terminated``: one boolean, true where the environment ended the episode, false where a time limit did;
    - ``truncated``: one boolean, optional.

    O and A are the flattened dimensions of the environment's spaces; keys of a Dict are in alphabetical order, depth
    first.

    Attributes:
        path: of the folder.
        env_id: Gymnasium id of the environment, which gives the spaces, and in which a planner is evaluated. None:
            observations are unbounded, actions lie in the range that the data has, and nothing can be evaluated.
    """

    path: str
    env_id: str | None = None

    @property
    @override
    def name(self) -> str:
        return self.path

    @override
    def folders(self) -> list[Path]:
        return [Path(self.path).expanduser()]

    @override
    def require_available(self) -> None:
        self._files()
        if self.env_id is not None:
            environment_spec(self.env_id)

    @override
    def read(self, progress: bool) -> StoredSet:
        files = self._files()
        if self.env_id is not None:
            return StoredSet(map(_read, files), len(files), environment_spec(self.env_id), remedy=REMEDY)
        episodes = [_read(file) for file in files]
        return StoredSet(episodes, len(files), _unbounded(episodes), remedy=REMEDY)

    def _files(self) -> list[Path]:
        (folder,) = self.folders()
        if not folder.is_dir():
            raise UserError(f"data.source.path='{self.path}' is not a folder; give one that holds .npz files")
        files = sorted(sorted(folder.glob("*.npz")), key=_natural)
        if not files:
            raise UserError(f"data.source.path='{self.path}' holds no .npz file; write one for each episode")
        return files


def _natural(file: Path) -> list[tuple[str, int]]:
    """Sorts names by the numbers within them."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", file.name)]


def _read(file: Path) -> StoredEpisode:
    arrays: dict[str, np.ndarray] = {}
    place = f"'{file}'"
    try:
        with open(file, "rb") as opened:
            stored = np.load(opened, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it holds a single array")
            there = list(stored)
            for field in {*NEEDED, "truncated"}.intersection(there):
                place = f"'{file}', {field}:"
                arrays[field] = stored[field]
    except Exception as error:  # whatever a damaged file leads NumPy and zipfile to
        raise UserError(
            f"{place} cannot be read ({' '.join(str(error).split())}); write it with numpy.savez, of numbers only"
        ) from error
    for field in NEEDED:
        if field not in arrays:
            raise UserError(
                f"'{file}' has no array '{field}', only {', '.join(there) or 'none at all'}; numpy.savez(file, "
                "observations=…, actions=…, rewards=…, terminated=…) writes all that are needed"
            )
    for field in {"terminated", "truncated"} & arrays.keys():
        flag = arrays[field]
        if flag.shape != () or flag.dtype != bool:
            raise UserError(
                f"'{file}', {field}: has shape {flag.shape} and type {flag.dtype}, expected one boolean for the "
                f"episode; save {field}=True or {field}=False"
            )
    for field in ("observations", "actions"):
        if arrays[field].ndim != 2 or arrays[field].dtype.kind not in "fiub":
            raise UserError(
                f"'{file}', {field}: has shape {arrays[field].shape} and type {arrays[field].dtype}, expected rows of "
                "numbers, one row for each step; flatten each into one row"
            )
    observations, actions, rewards, terminated = (arrays[field] for field in NEEDED)
    return StoredEpisode(f"'{file}'", observations, actions, rewards, terminated)


def _unbounded(episodes: Sequence[StoredEpisode]) -> EnvironmentSpec:
    """Spaces that hold all of ``episodes``, as wide as the first one's rows; others are refused when validated."""
    observations, first = (np.asarray(field) for field in (episodes[0].observations, episodes[0].actions))
    rows = [np.asarray(episode.actions, dtype=np.float32) for episode in episodes]
    fitting = np.concatenate([some for some in rows if some.shape[1] == first.shape[1]])
    low = np.nan_to_num(fitting.min(axis=0, initial=np.inf), posinf=0.0)
    high = np.nan_to_num(fitting.max(axis=0, initial=-np.inf), neginf=0.0)
    observation = space_spec(gym.spaces.Box(-np.inf, np.inf, observations.shape[1:], np.float32))
    return EnvironmentSpec("", None, observation, space_spec(gym.spaces.Box(low, high, dtype=np.float32)))
