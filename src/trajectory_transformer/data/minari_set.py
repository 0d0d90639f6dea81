"""Minari data sets as a source of episodes: read from disk, downloaded where they are not there."""

import os
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from .. import reachability
from ..dataset_folders import dataset_folder, dataset_root, is_on_disk
from ..errors import UserError
from .embedded_set import did_you_mean_embedded, nearest_embedded
from .episode_source import EpisodeSource, StoredSet


@dataclass
class MinariSet(EpisodeSource):
    """One Minari data set.

    Attributes:
        dataset_id: Minari id.
        download: fetch it where it is not on disk.
    """

    dataset_id: str
    download: bool = True

    @property
    @override
    def name(self) -> str:
        return self.dataset_id

    @override
    def require_available(self) -> None:
        if is_on_disk(self.dataset_id):
            return
        reason = unreachable() if self.download else "data.download=false"
        if reason is not None:
            raise UserError(
                f"data set '{self.dataset_id}' is not in '{dataset_root()}' and cannot be downloaded ({reason})"
                f"{did_you_mean_embedded(self.dataset_id)}; fetch it with `minari download {self.dataset_id}` where "
                "there is a network (MINARI_DATASETS_PATH names the folder), or take an embedded set that needs none, "
                f"such as {', '.join(nearest_embedded(self.dataset_id))}"
            )

    @override
    def read(self, progress: bool) -> StoredSet:
        if not is_on_disk(self.dataset_id):
            self.require_available()
            self._fetch()
        from .minari_reading import read_set

        return read_set(self.dataset_id)

    @override
    def folders(self) -> list[Path]:
        return [dataset_folder(self.dataset_id)]

    def _fetch(self) -> None:
        import minari

        try:
            minari.download_dataset(self.dataset_id)
        except ImportError as error:
            raise UserError(
                f"downloading '{self.dataset_id}' needs another package: {' '.join(str(error).split())}"
            ) from error
        except Exception as error:  # whatever the network and the remote's client raise
            raise UserError(
                f"data set '{self.dataset_id}' is not in '{dataset_root()}' and its download failed "
                f"({' '.join(str(error).split())}){did_you_mean_embedded(self.dataset_id)}; `minari download "
                f"{self.dataset_id}` tries again"
            ) from error


def unreachable() -> str | None:
    """Why Minari's server cannot be reached, or None if it answers within a second."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    url = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/") + "/api/datasets?limit=1"
    if os.environ.get("MINARI_REMOTE", "").startswith("gcp://"):
        url = "https://storage.googleapis.com"
    return reachability.unreachable(url)
