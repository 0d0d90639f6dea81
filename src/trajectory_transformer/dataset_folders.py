"""Folders of Minari data sets; nothing here imports Minari."""

import os
import re
from pathlib import Path

from .errors import UserError


def dataset_root() -> Path:
    """Return the folder of all data sets: ``$MINARI_DATASETS_PATH``, or ``~/.minari/datasets``."""
    chosen = os.environ.get("MINARI_DATASETS_PATH")
    return Path(chosen) if chosen else Path.home() / ".minari" / "datasets"


def dataset_folder(dataset_id: str) -> Path:
    """Return the folder of a data set; raises UserError for a malformed id."""
    if not re.fullmatch(r"[-\w]+(/[-\w]+)*-v\d+", dataset_id):
        raise UserError(f"data.dataset_id='{dataset_id}' is not a Minari id such as mujoco/hopper/medium-v0")
    return dataset_root() / dataset_id


def ids_on_disk() -> list[str]:
    """Return the ids of the data sets on disk, sorted; without those in folders that cannot be read."""
    root, levels = dataset_root(), ("*", "*/*", "*/*/*")  # an id has a namespace of any depth, but rarely of more
    folders = [folder.parent for level in levels for folder in root.glob(f"{level}/data") if folder.is_dir()]
    return sorted(folder.relative_to(root).as_posix() for folder in folders)


def is_on_disk(dataset_id: str) -> bool:
    """Return True if the data set is on disk; a damaged one counts, and is refused when it is opened, not replaced."""
    folder = dataset_folder(dataset_id) / "data"
    try:
        return folder.exists()
    except OSError as error:
        raise UserError(
            f"data set '{dataset_id}' in '{folder}' cannot be read ({error.strerror}); get permission to read that "
            "folder, or name another in MINARI_DATASETS_PATH"
        ) from None
