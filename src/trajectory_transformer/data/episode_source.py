"""Sources of episodes: each is one subclass of :class:`EpisodeSource` and one YAML in ``configs/data``.

A source only reads; :func:`~.sources.load_offline_data` validates, joins and selects for all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..environments.spec import EnvironmentSpec
from ..errors import UserError


@dataclass(frozen=True)
class StoredEpisode:
    """One episode of T steps as it is stored, not yet to be trusted.

    Observations and actions are arrays or nested dicts of them, as the spaces are, or one array flattened as
    :class:`~..environments.spec.SpaceSpec` does.
    """

    place: str  # begins every message about the episode, such as "data set 'a-v0', episode 3"
    observations: object  # (T + 1, …)
    actions: object  # (T, …)
    rewards: object  # (T,)
    terminations: object  # (T,) flags, or one flag for the last step: the environment ended the episode there
    truncations: object = None  # likewise, of a time limit; None: not stored
    total_steps: int | None = None  # T as stated elsewhere, to be compared; None: not stated


@dataclass(frozen=True)
class StoredSet:
    """The episodes and facts that a source reads."""

    episodes: Iterable[StoredEpisode]  # read one after the other, once; whatever is raised in between is let through
    num_episodes: int
    environment: EnvironmentSpec  # that they were recorded in, with all observation dimensions
    # Used of it: ref_min_score and ref_max_score, the returns that count as 0 and 100 %; and total_steps.
    metadata: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""  # ends every message about an episode: what to do about it


SMALL = 64 * 2**20  # bytes that any file may become
MOST_INFLATED = 100  # times a file's own bytes that it may become beyond that; numbers that vary stay far below


def require_modest(place: str, inflated: int, stored: int) -> None:
    """Refuse what a few bytes on disk would make of memory; ``place`` begins the message, and numbers are of bytes.

    Raises:
        UserError: the inflated size is neither small nor in proportion to the stored one.
    """
    if inflated > max(SMALL, MOST_INFLATED * stored):
        raise UserError(f"{place} would become {inflated:,} bytes, of {stored:,} on disk; it was not read")


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
