"""Data sets in Minari's format as sources of episodes, downloaded or simulated if they are not on disk."""

import difflib
import os
import sys
from abc import abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from typing_extensions import override

from .. import reachability
from ..dataset_folders import dataset_folder, dataset_root, ids_on_disk, is_on_disk
from ..errors import UserError
from ..files import FolderInUseError, FolderLock
from ..simulation import REGISTRY
from .episode_source import EpisodeSource, StoredSet

if TYPE_CHECKING:
    from ..environments.spec import EnvironmentSpec


@dataclass
class LocalSet(EpisodeSource):
    """A data set in Minari's folder, obtained if it is not there."""

    dataset_id: str
    """Minari id of the set."""

    @abstractmethod
    def require_obtainable(self) -> None:
        """Raise UserError if the set cannot be obtained."""

    @abstractmethod
    def obtain(self, progress: bool) -> None:
        """Download or simulate the set and store it on disk."""

    @property
    @override
    def name(self) -> str:
        return self.dataset_id

    @override
    def folders(self) -> list[Path]:
        return [dataset_folder(self.dataset_id)]

    @override
    def require_available(self) -> None:
        if not is_on_disk(self.dataset_id):
            self.require_obtainable()

    @override
    def read(self, progress: bool) -> StoredSet:
        if not is_on_disk(self.dataset_id):
            self.require_obtainable()
            self.obtain(progress)
        from .minari_reading import read_set

        return read_set(self.dataset_id)

    def absent(self, why: str, remedy: str) -> UserError:
        """Return an error that names the most similar of the sets on disk and, if one resembles it, an embedded one."""
        near = difflib.get_close_matches(self.dataset_id, REGISTRY, n=1, cutoff=0.8)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        there = difflib.get_close_matches(self.dataset_id, ids_on_disk(), n=3, cutoff=0.0)
        known = f" (which has {', '.join(there)})" if there else ""
        return UserError(f"data set '{self.dataset_id}' is not in '{dataset_root()}'{known} and {why}{hint}; {remedy}")


@dataclass
class EmbeddedSet(LocalSet):
    """The data set of an embedded recipe, simulated if it is not on disk."""

    @override
    def require_obtainable(self) -> None:
        if self.dataset_id not in REGISTRY:
            near = difflib.get_close_matches(self.dataset_id, REGISTRY, n=3, cutoff=0.0)
            command = f"python -m trajectory_transformer.data.collect recipe={REGISTRY[near[0]].name}"
            why = f"not one of the embedded sets, such as {', '.join(near)}"
            raise self.absent(why, f"`{command}` makes '{near[0]}'")

    @override
    def obtain(self, progress: bool) -> None:
        from .collect import collect

        recipe = REGISTRY[self.dataset_id]
        with self._turn(f".simulating-{recipe.name}.lock"):
            if is_on_disk(self.dataset_id):  # another process has simulated it
                return
            try:
                collect(recipe, progress=progress)
            except UserError:
                if not is_on_disk(self.dataset_id):  # otherwise a process on another machine was faster
                    raise

    def _turn(self, file: str) -> FolderLock:
        """Lock the set for simulation, waiting while another process, such as another job of a sweep, simulates it."""
        root = dataset_root()
        try:
            root.mkdir(parents=True, exist_ok=True)
            return FolderLock(root, file)
        except FolderInUseError:
            print(f"{self.dataset_id} is being simulated by another process; waiting for it", file=sys.stderr)
            return FolderLock(root, file, wait=True)
        except OSError as error:
            raise UserError(
                f"data set {self.dataset_id} cannot be written below {root}: {error.strerror or error}"
            ) from error


@dataclass
class MinariSet(LocalSet):
    """A Minari data set, downloaded if it is not on disk and ``download`` permits it."""

    download: bool = True
    """Download the set if it is not on disk."""
    env_id: str | None = None
    """Gymnasium id of the environment to act in; null is the one that the set names."""

    @override
    def require_available(self) -> None:
        super().require_available()
        self._environment()

    @override
    def read(self, progress: bool) -> StoredSet:
        stored, made = super().read(progress), self._environment()
        if made is None:
            return stored
        environment = replace(stored.environment, env_id=made.env_id, spec_json=made.spec_json)
        return replace(stored, environment=environment)

    def _environment(self) -> "EnvironmentSpec | None":
        """Return the spec of ``env_id``, or None if that is null; raises UserError if it cannot be made."""
        if self.env_id is None:
            return None
        from ..environments.make import environment_spec  # imported here because it takes 0.2 s

        return environment_spec(self.env_id)

    @override
    def require_obtainable(self) -> None:
        reason = unreachable() if self.download else "data.download=false"
        stem = self.dataset_id.rpartition("-v")[0].replace("-", "_")
        if any(recipe.name == stem for recipe in REGISTRY.values()):  # such as hopper-medium-v2
            raise self.absent("its name is one of D4RL, not of Minari", f"data={stem} is a simulated set like it")
        if reason is not None:
            near = difflib.get_close_matches(self.dataset_id, REGISTRY, n=3, cutoff=0.6)
            embedded = f", such as {', '.join(near)}" if near else " (`python train.py --help data` lists them)"
            raise self.absent(
                f"cannot be downloaded ({reason})",
                f"run `minari download {self.dataset_id}` on a machine with a network (MINARI_DATASETS_PATH "
                f"names the folder), or take an embedded set, which needs none{embedded}",
            )

    @override
    def obtain(self, progress: bool) -> None:
        import minari

        try:
            minari.download_dataset(self.dataset_id)
        except Exception as error:  # the network and the remote's client raise any exception
            reason = " ".join(str(error).split())
            if isinstance(error, ImportError):
                raise UserError(f"downloading '{self.dataset_id}' needs another package: {reason}") from error
            remedy = f"try again with `minari download {self.dataset_id}`"
            raise self.absent(f"its download failed ({reason})", remedy) from error


def unreachable() -> str | None:
    """Return the reason why Minari's server cannot be reached, or None if it answers within a second."""
    if os.environ.get("MINARI_REMOTE", "").startswith("gcp://"):
        return reachability.unreachable("https://storage.googleapis.com")
    return reachability.hub_unreachable("/api/datasets?limit=1")
