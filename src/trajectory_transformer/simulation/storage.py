"""Simulated episodes as a Minari data set on disk, whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import minari
import numpy as np
from minari.data_collector import EpisodeBuffer
from minari.namespace import NAMESPACE_METADATA_FILENAME
from minari.storage import get_dataset_path

from ..configuration import require
from ..dataset_folders import dataset_root, is_on_disk
from ..errors import UserError
from .recipe import Recipe
from .simulate import SimulatedEpisode

STAGING_PREFIX = ".collecting-"
STALE_SECONDS = 24 * 3600.0


@contextlib.contextmanager
def disk_errors(recipe: Recipe) -> Iterator[None]:
    """OSErrors as one sentence that names the data set and the folder."""
    try:
        yield
    except OSError as error:
        raise UserError(f"data set {recipe.dataset_id} cannot be written below {dataset_root()}: {error}") from error


@contextlib.contextmanager
def staging_folder(recipe: Recipe, overwrite: bool) -> Iterator[Path]:
    """A hidden folder beside the data sets, on their file system, removed at the end.

    Made before the simulation starts, so that a folder that cannot be written to is noticed at once. What a killed
    process left behind is removed by a later one.
    """
    with disk_errors(recipe):
        root, path = get_dataset_path(), get_dataset_path(recipe.dataset_id)
        require(
            overwrite or not is_on_disk(recipe.dataset_id),
            f"data set {recipe.dataset_id} exists already in {path}; add overwrite=true to replace it",
        )
        for stale in root.glob(f"{STAGING_PREFIX}*"):
            if time.time() - stale.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(stale, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=root))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_dataset(recipe: Recipe, episodes: Sequence[SimulatedEpisode], seed: int, staging: Path) -> None:
    """Write the Minari data set below ``staging`` instead of Minari's folder."""
    buffers = [  # arrays: Minari takes them, although its annotations know lists only
        EpisodeBuffer(
            seed=episode.seed,
            observations=episode.observations,  # type: ignore[arg-type]  (an array)
            actions=episode.actions,  # type: ignore[arg-type]  (an array)
            rewards=episode.rewards,  # type: ignore[arg-type]  (an array)
            terminations=_flags(len(episode), episode.terminated),  # type: ignore[arg-type]  (an array)
            truncations=_flags(len(episode), not episode.terminated),  # type: ignore[arg-type]  (an array)
        )
        for episode in episodes
    ]
    environment, evaluation = recipe.environment(), recipe.evaluation_environment()
    with _minari_folder(staging), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"`(eval_env|author_email)` is set to None")
        dataset = minari.create_dataset_from_buffers(
            recipe.dataset_id,
            buffers,
            env=environment,
            eval_env=evaluation,
            algorithm_name=f"trajectory_transformer.simulation: {recipe.name}",
            author="trajectory-transformer",
            code_permalink=f"python -m trajectory_transformer.data.collect recipe={recipe.name} seed={seed}",
            description=f"{recipe.description} Reference scores: {recipe.reference_note}.",
        )
        # Set here and not by the call above, which would make one more environment for them.
        minimum, maximum = recipe.reference_scores
        dataset.storage.update_metadata({"ref_min_score": minimum, "ref_max_score": maximum})
        dataset.storage.update_episode_metadata([{"behavior": episode.behavior} for episode in episodes])
    for made in (environment, evaluation):
        if made is not None:
            made.close()


def publish(recipe: Recipe, staging: Path, overwrite: bool) -> Path:
    """Move the finished data set and the metadata of its namespaces into Minari's folder; returns where it is."""
    root, path = get_dataset_path(), get_dataset_path(recipe.dataset_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    for namespace in Path(recipe.dataset_id).parents[:-1]:
        if not (root / namespace / NAMESPACE_METADATA_FILENAME).exists():
            os.replace(
                staging / namespace / NAMESPACE_METADATA_FILENAME, root / namespace / NAMESPACE_METADATA_FILENAME
            )
    if overwrite and path.exists():
        os.rename(path, staging / "replaced")
    try:
        os.rename(staging / recipe.dataset_id, path)
    except OSError:
        if not is_on_disk(recipe.dataset_id):  # otherwise another process was faster with the same data
            raise
    return path


def _flags(steps: int, last: bool) -> np.ndarray:
    """(steps,) booleans, False but for the last."""
    flags = np.zeros(steps, dtype=bool)
    flags[-1] = last
    return flags


@contextlib.contextmanager
def _minari_folder(folder: Path) -> Iterator[None]:
    """Minari reads its folder from the environment and takes no argument for it."""
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(folder)
    try:
        yield
    finally:
        del os.environ["MINARI_DATASETS_PATH"]
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before
