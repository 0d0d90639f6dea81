"""Sources of episodes: each is a subclass of :class:`EpisodeSource` and a YAML file in ``configs/data``.

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
    """One episode of T steps as stored, not yet validated.

    Observations and actions are arrays or nested dicts of them, like the spaces, or one array flattened as by
    :class:`~..environments.spec.SpaceSpec`.
    """

    place: str  # beginning of every message about the episode, such as "data set 'a-v0', episode 3"
    observations: object  # (T + 1, …)
    actions: object  # (T, …)
    rewards: object  # (T,)
    terminations: object  # (T,) flags, or one flag for the last step: the environment ended the episode
    truncations: object = None  # likewise for a time limit; None: not stored
    total_steps: int | None = None  # T according to the metadata, for comparison; None: not stated


@dataclass(frozen=True)
class StoredSet:
    """The episodes and metadata that a source reads."""

    episodes: Iterable[StoredEpisode]  # iterated over once; exceptions raised while iterating are not caught
    num_episodes: int
    environment: EnvironmentSpec  # environment of the recording, with all observation dimensions
    # Keys used: ref_min_score and ref_max_score, the returns that count as 0 and 100 %; and total_steps.
    metadata: Mapping[str, object] = field(default_factory=dict)
    remedy: str = ""  # end of every message about an episode: what to do


SMALL = 64 * 2**20  # decompressed bytes that are accepted for any file
MOST_INFLATED = 100  # maximum ratio of decompressed to stored bytes beyond that; real data stays far below


def require_modest(place: str, inflated: int, stored: int) -> None:
    """Raise UserError if a file's ``inflated`` bytes are neither small nor in proportion to those ``stored``.

    ``place`` begins the message.
    """
    if inflated > max(SMALL, MOST_INFLATED * stored):
        raise UserError(f"{place} would decompress from {stored:,} bytes on disk to {inflated:,}; it was not read")


class EpisodeSource(ABC):
    """A set of episodes; its options are the fields of a dataclass, named ``data.source.*`` on the command line."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the set in messages, results and checkpoints; its Minari id if it has one."""

    def require_available(self) -> None:
        """Raise UserError if the set is not available, in less than 2 s and without importing torch or Minari.

        The message says what is missing, where it was looked for, and how to get it.
        """
        return None

    @abstractmethod
    def read(self, progress: bool) -> StoredSet:
        """Read the set's episodes and environment.

        Args:
            progress: show the progress of simulating or downloading; that of reading is shown by the caller.

        Raises:
            UserError: it is not available, or cannot be read.
        """

    def folders(self) -> list[Path]:
        """Return the set's folders on this machine, to which experiment trackers refer."""
        return []
