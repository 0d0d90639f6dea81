"""Where data sets lie, and how one that is not there is made or downloaded."""

import difflib
import os
from collections.abc import Sequence

from .. import reachability
from ..configuration import DataConfig
from ..dataset_folders import dataset_root, is_on_disk
from ..errors import UserError
from ..simulation import REGISTRY

EMBEDDED_NAMESPACE = "embedded/"
COLLECT_COMMAND = "python -m trajectory_transformer.data.collect recipe="


def require_distinct(dataset_ids: Sequence[str]) -> None:
    """Refuse a set that is to be joined with itself: its episodes would be trained on and validated on at once.

    Raises:
        UserError: an id occurs twice.
    """
    repeated = sorted({dataset_id for dataset_id in dataset_ids if dataset_ids.count(dataset_id) > 1})
    if repeated:
        raise UserError(f"data.dataset_id names {', '.join(repeated)} more than once; name each data set once")


def require_available(config: DataConfig) -> None:
    """Refuse data sets that cannot be had, in less than 2 s and without importing torch or Minari.

    Raises:
        UserError: one is not on disk, not embedded, and cannot be downloaded; an id is malformed or named twice.
    """
    require_distinct(config.dataset_ids)
    for dataset_id in config.dataset_ids:
        if not is_on_disk(dataset_id) and dataset_id not in REGISTRY:
            _require_download(dataset_id, config.download)


def obtain(dataset_id: str, download: bool, progress: bool) -> None:
    """Put a data set on disk unless it is there: simulate its recipe, or download it.

    Args:
        dataset_id: Minari id.
        download: whether downloading is allowed.
        progress: show the progress of a simulation; a download always does.

    Raises:
        UserError: it cannot be had; the message says why, where it was looked for, and how to get it.
    """
    if is_on_disk(dataset_id):
        return
    recipe = REGISTRY.get(dataset_id)
    if recipe is None:
        _require_download(dataset_id, download)
        _download(dataset_id)
        return
    from ..simulation.collect import collect

    try:
        collect(recipe, progress=progress)
    except UserError:
        if not is_on_disk(dataset_id):  # otherwise another process was faster
            raise


def _require_download(dataset_id: str, allowed: bool) -> None:
    looked = f"data set '{dataset_id}' is not in '{dataset_root()}'"
    near = difflib.get_close_matches(dataset_id, REGISTRY, n=3, cutoff=0.0)
    embedded = f"such as {', '.join(near)}"
    if dataset_id.startswith(EMBEDDED_NAMESPACE):
        raise UserError(
            f"{looked} and not one of the embedded sets, {embedded}{_near(dataset_id)}; "
            f"`{COLLECT_COMMAND}{REGISTRY[near[0]].name}` makes '{near[0]}'"
        )
    reason = unreachable() if allowed else "data.download=false"
    if reason is not None:
        raise UserError(
            f"{looked} and cannot be downloaded ({reason}){_near(dataset_id)}; fetch it with `minari download "
            f"{dataset_id}` where there is a network (MINARI_DATASETS_PATH names the folder), or take an embedded set "
            f"that needs none, {embedded}"
        )


def unreachable() -> str | None:
    """Why Minari's server cannot be reached, or None if it answers within a second."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + "/api/datasets?limit=1"
    if os.environ.get("MINARI_REMOTE", "").startswith("gcp://"):
        url = "https://storage.googleapis.com"
    return reachability.unreachable(url)


def _download(dataset_id: str) -> None:
    import minari

    try:
        minari.download_dataset(dataset_id)
    except ImportError as error:
        raise UserError(f"downloading '{dataset_id}' needs another package: {' '.join(str(error).split())}") from error
    except Exception as error:  # whatever the network and the remote's client raise
        raise UserError(
            f"data set '{dataset_id}' is not in '{dataset_root()}' and its download failed "
            f"({' '.join(str(error).split())}){_near(dataset_id)}; `minari download {dataset_id}` tries again"
        ) from error


def _near(dataset_id: str) -> str:
    near = difflib.get_close_matches(dataset_id, REGISTRY, n=1, cutoff=0.8)
    return f"; did you mean '{near[0]}'?" if near else ""
