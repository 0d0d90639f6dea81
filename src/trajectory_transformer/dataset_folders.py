"""Folders of Minari data sets; nothing here imports Minari."""

import os
import re
from pathlib import Path

from .errors import UserError

DATASET_ID = re.compile(r"[-\w]+(/[-\w]+)*-v\d+")


def dataset_root() -> Path:
    """The folder of all data sets: ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``."""
    chosen = os.environ.get("MINARI_DATASETS_PATH")
    return Path(chosen) if chosen else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """The folder of a data set that is on disk.

    Raises:
        UserError: the id is not one.
    """
    if not DATASET_ID.fullmatch(dataset_id):
        raise UserError(f"data.dataset_id='{dataset_id}' is not a Minari id such as mujoco/hopper/medium-v0")
    return dataset_root() / dataset_id


def is_on_disk(dataset_id: str) -> bool:
    """True if there is such a data set, whole or damaged; a damaged one is refused when it is opened, not replaced.

    Raises:
        UserError: the id is not one.
    """
    return (dataset_folder(dataset_id) / "data").exists()
