"""Atomic storage of simulated episodes as a Minari data set."""

import contextlib
import errno
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.storage import get_dataset_path

from ..configuration import require
from ..dataset_folders import dataset_root, is_on_disk
from ..errors import UserError
from ..files import staging_folder
from .recipe import Recipe
from .simulate import SimulatedEpisode

STAGING_PREFIX = ".collecting-"
SPARE_BYTES = 2**19  # size of the metadata and the file's structure
EPISODE_BYTES = 32 * 2**10  # size of an episode's HDF5 group, without its numbers


@contextlib.contextmanager
def disk_errors(recipe: Recipe) -> Iterator[None]:
    """Convert OSErrors into a UserError that names the data set and the folder."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"data set {recipe.dataset_id} cannot be written below {dataset_root()}: {reason}") from error


@contextlib.contextmanager
def collecting_folder(recipe: Recipe, overwrite: bool) -> Iterator[Path]:
    """Make a staging folder on the data sets' file system; raises UserError if the set already exists."""
    with contextlib.ExitStack() as stack:
        with disk_errors(recipe):
            root, path = get_dataset_path(), get_dataset_path(recipe.dataset_id)
            require(
                overwrite or not is_on_disk(recipe.dataset_id),
                f"data set {recipe.dataset_id} already exists in {path}; add overwrite=true to replace it",
            )
            staging = stack.enter_context(staging_folder(root, STAGING_PREFIX))
        yield staging


def require_space(recipe: Recipe, episodes: Sequence[SimulatedEpisode], staging: Path) -> None:
    """Raise UserError if the data set will not fit on the disk, because HDF5 crashes the process on a full disk.

    The space is allocated for a moment, because a quota or reserved blocks can make less available than is free.
    """
    needed = SPARE_BYTES + sum(EPISODE_BYTES + _num_bytes(vars(episode)) for episode in episodes) * 5 // 4
    reserve = staging / "reserve"
    try:
        with reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, needed)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            reserve.unlink(missing_ok=True)
            free = shutil.disk_usage(staging).free
            raise UserError(
                f"data set {recipe.dataset_id} cannot be written below {dataset_root()}: {os.strerror(error.errno)}; "
                f"it needs {needed:,} bytes and {free:,} are free"
            ) from error
    reserve.unlink(missing_ok=True)


def _num_bytes(value: object) -> int:
    """Return the bytes of all arrays in nested mappings."""
    if isinstance(value, Mapping):
        return sum(map(_num_bytes, value.values()))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def write_dataset(recipe: Recipe, episodes: Sequence[SimulatedEpisode], seed: int, staging: Path) -> None:
    """Write the Minari data set below ``staging`` instead of Minari's folder; raises as :func:`require_space`."""
    require_space(recipe, episodes, staging)
    with (
        _minari_folder(staging),
        warnings.catch_warnings(),
        recipe.environment() as environment,
        recipe.evaluation_environment() or contextlib.nullcontext() as evaluation,
    ):
        warnings.filterwarnings("ignore", message=r"`(eval_env|author_email)` is set to None")
        dataset = minari.create_dataset_from_buffers(
            recipe.dataset_id,
            [_buffer(episode) for episode in episodes],
            env=environment,
            eval_env=evaluation,
            algorithm_name=f"trajectory_transformer.simulation: {recipe.name}",
            author="trajectory-transformer",
            code_permalink=f"python -m trajectory_transformer.data.collect recipe={recipe.name} seed={seed}",
            description=f"{recipe.description} Reference scores: {recipe.reference_note}.",
        )
        # Set here because the call above would make another environment for them.
        minimum, maximum = recipe.reference_scores
        dataset.storage.update_metadata({"ref_min_score": minimum, "ref_max_score": maximum})
        dataset.storage.update_episode_metadata([{"behavior": episode.behavior} for episode in episodes])


def publish(recipe: Recipe, staging: Path, overwrite: bool) -> Path:
    """Move the finished data set and the metadata of its namespaces into Minari's folder; returns its path."""
    root, path = get_dataset_path(), get_dataset_path(recipe.dataset_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    for namespace in Path(recipe.dataset_id).parents[:-1]:
        metadata = namespace / NAMESPACE_METADATA_FILENAME
        if not (root / metadata).exists():
            os.replace(staging / metadata, root / metadata)
    if overwrite and path.exists():
        os.rename(path, staging / "replaced")
    try:
        os.rename(staging / recipe.dataset_id, path)
    except OSError:
        if not is_on_disk(recipe.dataset_id):  # otherwise another process was faster with the same data
            raise
    return path


def _buffer(episode: SimulatedEpisode) -> EpisodeBuffer:
    last = np.arange(len(episode)) == len(episode) - 1
    arrays: Any = {  # Minari accepts arrays, although its annotations permit only lists
        "observations": episode.observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminations": last & episode.terminated,
        "truncations": last & (not episode.terminated),
    }
    return EpisodeBuffer(seed=episode.seed, **arrays)


@contextlib.contextmanager
def _minari_folder(folder: Path) -> Iterator[None]:
    """Set Minari's folder for the duration of the block, by the environment variable that Minari reads."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before
