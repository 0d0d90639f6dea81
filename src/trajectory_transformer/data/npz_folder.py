"""A folder of ``.npz`` files as a source of episodes."""

import itertools
import math
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import gymnasium as gym
import numpy as np
from typing_extensions import override

from ..available_memory import available_memory, require_memory
from ..configuration import require
from ..environments.make import environment_spec, space_spec
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..files import reading_remedy
from .episode_source import EpisodeSource, StoredEpisode, StoredSet, require_modest

NEEDED = ("observations", "actions", "rewards", "terminated")
REMEDY = "; correct that file, or remove it from the folder"


@dataclass
class NpzFolder(EpisodeSource):
    """A folder with one episode of T ≥ 1 steps per file, in natural order: ``episode_2.npz`` before ``episode_10.npz``.

    The arrays of a file, as written by ``numpy.savez`` (objects are refused, and nothing is executed):

    - ``observations`` (T + 1, O): real numbers; the last row follows the last action;
    - ``actions`` (T, A): as executed; a Discrete action is its index, A = 1;
    - ``rewards`` (T,);
    - ``terminated``: one boolean, true if the environment ended the episode, false if a time limit did.

    Other arrays, such as ``truncated``, are not needed and not read.

    Observations and actions are flattened as by :class:`~..environments.spec.SpaceSpec`. Without an environment,
    observations are unbounded, actions are bounded by the data's range, and evaluation is not possible.
    """

    path: str
    """Folder of the files."""
    env_id: str | None = None
    """Gymnasium id of the environment that defines the spaces and is used for evaluation; null is none."""

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
        inflated = sum(map(_inflated_size, files))
        require_memory(
            inflated if self.env_id is None else inflated // 2,  # float64 is converted to float32, file by file
            available_memory(),
            f"the {len(files)} files of data.source.path='{self.path}' take",
            "join fewer of them",
        )
        if self.env_id is not None:
            return StoredSet(map(_read, files), len(files), environment_spec(self.env_id), remedy=REMEDY)
        return StoredSet(map(_read, files), len(files), _unbounded(map(_read, files)), remedy=REMEDY)

    def _files(self) -> list[Path]:
        (folder,) = self.folders()
        require(folder.is_dir(), f"data.source.path='{self.path}' is not a folder; give one that holds .npz files")
        files = sorted(sorted(folder.glob("*.npz")), key=_numbers_within)
        require(bool(files), f"data.source.path='{self.path}' holds no .npz file; write one for each episode")
        return files


def _numbers_within(file: Path) -> list[tuple[str, int]]:
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", file.name)]


def _inflated_size(file: Path) -> int:
    """Return the bytes of a file's arrays from its table of contents; 0 if it is damaged, which reading reports."""
    try:
        with zipfile.ZipFile(file) as archive:
            return sum(entry.file_size for entry in archive.infolist())
    except Exception:  # a damaged file makes zipfile raise any exception
        return 0


def _read(file: Path) -> StoredEpisode:
    arrays: dict[str, np.ndarray] = {}
    place = f"'{file}'"
    try:
        with open(file, "rb") as opened:
            if zipfile.is_zipfile(opened):
                _require_modest(file, opened)
            opened.seek(0)
            stored = np.load(opened, allow_pickle=False)
            if isinstance(stored, np.ndarray):
                raise ValueError("it holds a single array")
            there = list(stored)
            for field in NEEDED:
                place = f"'{file}', {field}:"
                if field in there:
                    arrays[field] = stored[field]
    except UserError:
        raise
    except Exception as error:  # a damaged file makes NumPy and zipfile raise any exception
        remedy = reading_remedy(error, file, "; write it with numpy.savez, of numbers only")
        raise UserError(f"{place} cannot be read ({' '.join(str(error).split())}){remedy}") from error
    for field in NEEDED:
        require(
            field in arrays,
            f"'{file}' has no array '{field}', only {', '.join(there) or 'none at all'}; write it with "
            "numpy.savez(file, observations=…, actions=…, rewards=…, terminated=…)",
        )
    for field, array in arrays.items():
        found = f"'{file}', {field}: has shape {array.shape} and type {array.dtype}, expected"
        if field == "terminated" and (array.shape != () or array.dtype != bool):
            raise UserError(f"{found} one boolean for the episode; save {field}=True or {field}=False")
        if field in ("observations", "actions") and (array.ndim != 2 or array.dtype.kind not in "fiub"):
            columns = f"save {field}[:, None] for one dimension" if array.ndim == 1 else "flatten each into one row"
            raise UserError(f"{found} rows of numbers, one row for each step; {columns}")
    observations, actions, rewards, terminated = (arrays[field] for field in NEEDED)
    return StoredEpisode(f"'{file}'", observations, actions, rewards, terminated)


def _require_modest(file: Path, opened: BinaryIO) -> None:
    """Raise UserError for a disproportionate decompressed size, or headers that declare more than the file holds."""
    with zipfile.ZipFile(opened) as archive:
        for entry in archive.infolist():
            place = f"'{file}', {entry.filename.removesuffix('.npy')}:"
            require_modest(place, entry.file_size, entry.compress_size)
            if not entry.filename.endswith(".npy"):
                continue
            with archive.open(entry) as array:
                version = np.lib.format.read_magic(array)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(array)
            promised = math.prod(shape) * dtype.itemsize
            require(promised <= entry.file_size, f"{place} declares {promised:,} bytes but holds {entry.file_size:,}")


def _unbounded(episodes: Iterator[StoredEpisode]) -> EnvironmentSpec:
    """Return spaces that contain all ``episodes``, with the first one's width; validation refuses other widths."""
    first = next(episodes)
    width = np.asarray(first.actions).shape[1]
    low, high = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
    for episode in itertools.chain((first,), episodes):
        rows = np.asarray(episode.actions, dtype=np.float32)
        if rows.shape[1] == width and len(rows):
            low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    low, high = np.nan_to_num(low, posinf=0.0), np.nan_to_num(high, neginf=0.0)
    observation = space_spec(gym.spaces.Box(-np.inf, np.inf, np.asarray(first.observations).shape[1:], np.float32))
    return EnvironmentSpec("", None, observation, space_spec(gym.spaces.Box(low, high, dtype=np.float32)))
