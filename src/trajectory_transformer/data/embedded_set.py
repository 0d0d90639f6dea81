"""Embedded recipes as a source of episodes: simulated on first use, then read from disk."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from ..dataset_folders import dataset_folder, dataset_root, is_on_disk
from ..errors import UserError
from ..simulation import REGISTRY
from .episode_source import EpisodeSource, StoredSet

EMBEDDED_NAMESPACE = "embedded/"
COLLECT_COMMAND = "python -m trajectory_transformer.data.collect recipe="


@dataclass
class EmbeddedSet(EpisodeSource):
    """The data set of an embedded recipe.

    Attributes:
        dataset_id: Minari id of the set.
    """

    dataset_id: str

    @property
    @override
    def name(self) -> str:
        return self.dataset_id

    @override
    def require_available(self) -> None:
        if is_on_disk(self.dataset_id) or self.dataset_id in REGISTRY:
            return
        near = nearest_embedded(self.dataset_id)
        raise UserError(
            f"data set '{self.dataset_id}' is not in '{dataset_root()}' and not one of the embedded sets, such as "
            f"{', '.join(near)}{did_you_mean_embedded(self.dataset_id)}; "
            f"`{COLLECT_COMMAND}{REGISTRY[near[0]].name}` makes '{near[0]}'"
        )

    @override
    def read(self, progress: bool) -> StoredSet:
        if not is_on_disk(self.dataset_id):
            self.require_available()
            from ..simulation.collect import collect

            try:
                collect(REGISTRY[self.dataset_id], progress=progress)
            except UserError:
                if not is_on_disk(self.dataset_id):  # otherwise another process was faster
                    raise
        from .minari_reading import read_set

        return read_set(self.dataset_id)

    @override
    def folders(self) -> list[Path]:
        return [dataset_folder(self.dataset_id)]


def nearest_embedded(dataset_id: str) -> list[str]:
    """Three embedded sets, those with the most similar ids."""
    return difflib.get_close_matches(dataset_id, REGISTRY, n=3, cutoff=0.0)


def did_you_mean_embedded(dataset_id: str) -> str:
    """A clause to append to a message, empty where no embedded set is named so similarly that it may be meant."""
    near = difflib.get_close_matches(dataset_id, REGISTRY, n=1, cutoff=0.8)
    return f"; did you mean '{near[0]}'?" if near else ""
