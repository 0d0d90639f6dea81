"""The seam for data: a source of episodes is one subclass of :class:`EpisodeSource` and one YAML in ``configs/data``.

A source only reads. Validation, joining, the selection of observation dimensions and the fingerprint are the same for
all of them, in :func:`~.sources.load_offline_data`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..environments.spec import EnvironmentSpec


@dataclass(frozen=True)
class StoredEpisode:
    """One episode of T steps as it is stored, not yet to be trusted.

    Attributes:
        place: begins every message about the episode, such as "data set 'a-v0', episode 3".
        observations: (T + 1, …) array, or nested dicts of them, as the space has them; or (T + 1, observation_dim)
            flattened as :class:`~..environments.spec.SpaceSpec` does.
        actions: (T, …), likewise.
        rewards: (T,).
        terminations: (T,) flags, or one flag for the last step: the environment ended the episode there.
        truncations: likewise, of a time limit; None: not stored.
        total_steps: T as stated elsewhere, to be compared; None: not stated.
    """

    place: str
    observations: object
    actions: object
    rewards: object
    terminations: object
    truncations: object = None
    total_steps: int | None = None


@dataclass(frozen=True)
class StoredSet:
    """The episodes and facts that a source reads.

    Attributes:
        episodes: read one after the other, once; whatever is raised in between is let through.
        num_episodes: how many there are.
        environment: the environment that they were recorded in, with all observation dimensions.
        metadata: facts of the set; ``ref_min_score`` and ``ref_max_score``, the returns that count as 0 and 100 %, are
            made use of.
        remedy: ends every message about an episode: what to do about it.
    """

    episodes: Iterable[StoredEpisode]
    num_episodes: int
    environment: EnvironmentSpec
    metadata: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""


class EpisodeSource(ABC):
    """One set of episodes; its options are the fields of a dataclass, named ``data.source.*`` on the command line."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Names the set in messages, results and checkpoints; a Minari id where it has one."""

    def require_available(self) -> None:
        """Refuse what is not available, in less than 2 s and without importing torch or Minari.

        Raises:
            UserError: naming what is missing, where it was looked for, and how to get it.
        """
        return None

    @abstractmethod
    def read(self, progress: bool) -> StoredSet:
        """The set's episodes and environment.

        Args:
            progress: show the progress of making or downloading it; that of reading is shown elsewhere.

        Raises:
            UserError: it is not available, or not be read.
        """

    def folders(self) -> list[Path]:
        """The set's folders on this machine, for experiment trackers to refer to."""
        return []
