"""Options of the data: its source, and the training windows made of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from .validation import LARGEST, Range, one_of, require, shown, validate, validate_value, within

MAX_BINS = 32766  # tokens are kept in 16 bits


@dataclass
class DiscretizerConfig:
    """Options of the discretiser, which turns real values into tokens."""

    strategy: str = one_of("quantile", ("quantile", "uniform"))
    """Placement of the bins: quantile gives bins of equal mass, uniform bins of equal width."""
    num_bins: int = within(100, 2, MAX_BINS)
    """Number of bins, and so of tokens, per dimension (the paper's V)."""

    def __post_init__(self) -> None:
        validate("data.discretizer.", self)


ORIGINAL_PENALTY = -100.0  # the original's reward of a terminating step
DEFAULT_DATASET_ID = "embedded/hopper/mixed-v0"


@dataclass
class DataConfig:
    """Options of the data: its source, and the training windows made of it."""

    dataset_id: Any = DEFAULT_DATASET_ID
    """Minari id of the data set, or a list of ids to join; null if a source is given."""
    source: Any = None
    """Source of episodes instead of a Minari id: the _target_ and options of an EpisodeSource, or a list of such
    sources to join; null reads dataset_id."""
    download: bool = True
    """Download a data set that is neither on disk nor embedded."""
    observation_keys: list[str] | None = None
    """Keys of a Dict observation to keep, such as goal.position; null keeps all."""
    observation_indices: list[int] | None = None
    """Dimensions of the flattened observation to keep, counted from 0; null keeps all."""
    discretizer: DiscretizerConfig = field(default_factory=DiscretizerConfig)
    """Conversion of real values to tokens."""
    sequence_length: int = within(4, 1, 1_000_000)
    """Length of a training window in transitions."""
    discount: float = within(0.99, high=1.0, above=0.0)
    """Discount factor per step of the return-to-go."""
    termination_penalty: Any = "auto"
    """Reward that replaces the recorded one in a terminating step, a number; null keeps the recorded reward; auto is
    -100, or null where the data's own rewards tell what the end of an episode is worth."""
    continue_truncated: bool = False
    """Count the return-to-go of an episode that a time limit cut as if its last rewards went on for ever, which needs a
    discount below 1; false counts nothing after the cut."""
    validation_fraction: float = within(0.1, above=0.0, below=1.0)
    """Fraction of the episodes held out for validation."""
    cache: str | None = None
    """Folder for the tokens of a data set that does not fit into memory; null keeps all tokens in memory."""
    batch_size: int = within(256, 1, 2**31 - 1)
    """Windows (or transitions) per update, summed over all devices."""
    train_batches: int | None = within(None, 1)
    """Train repeatedly on this many batches only, to see whether a model can fit them; null uses all data."""

    def __post_init__(self) -> None:
        validate("data.", self)
        if self.source is None:
            ids = self.dataset_ids
            require(
                len(ids) > 0 and all(isinstance(i, str) and i for i in ids),
                f"data.dataset_id={self.dataset_id!r} must be a Minari id or a list of ids, as in "
                "data.dataset_id=mujoco/hopper/medium-v0",
            )
            twice = next((name for number, name in enumerate(ids) if name in ids[:number]), None)
            require(twice is None, f"data.dataset_id names {twice} more than once; name each data set once")
        else:
            specs = self.source if isinstance(self.source, (list, tuple)) else [self.source]
            require(
                len(specs) > 0 and all(isinstance(spec, Mapping) and "_target_" in spec for spec in specs),
                f"data.source={self.source!r} must name a class, as in data.source._target_=my_package.MySource",
            )
            require(
                self.dataset_id in (None, DEFAULT_DATASET_ID),
                f"data.dataset_id={self.dataset_id} has no effect beside data.source; leave out one of them",
            )
            self.dataset_id = None
        if (penalty := self.termination_penalty) != "auto":
            require(
                not isinstance(penalty, str),
                f"data.termination_penalty={shown(penalty)} must be a number, null or auto",
            )
            validate_value("data.termination_penalty", penalty, float | None, Range(-LARGEST, LARGEST))
        require(
            self.discount < 1.0 or not self.continue_truncated,
            "data.discount=1 gives an episode that a time limit cut an infinite return-to-go: set a discount below 1, "
            "or data.continue_truncated=false",
        )
        require(self.cache != "", "data.cache= names no folder: give data.cache=DIR, or null to keep all in memory")
        if (keys := self.observation_keys) is not None:
            distinct = len(keys) > 0 and all(keys) and len(set(keys)) == len(keys)
            require(distinct, f"data.observation_keys={keys} must be one or more distinct keys of the observation")
        if (chosen := self.observation_indices) is not None:
            require(
                len(chosen) > 0,
                "data.observation_indices=[] hides every dimension of the observation; name at least one, or null for "
                "all",
            )
            distinct = min(chosen) >= 0 and len(set(chosen)) == len(chosen)
            require(distinct, f"data.observation_indices={chosen} must be distinct indices from 0")

    def resolve_penalty(self, ends_have_rewards: bool) -> Self:
        """Return the options with ``termination_penalty=auto`` resolved: None if the data reward ends, otherwise -100.

        Differs from the paper and the original, which penalise every end of an episode, also that of a solved task.
        """
        if self.termination_penalty != "auto":
            return self
        return replace(self, termination_penalty=None if ends_have_rewards else ORIGINAL_PENALTY)

    @property
    def dataset_ids(self) -> list[str]:
        """Return ``dataset_id`` as a list, which is empty if a source is given."""
        if self.source is not None:
            return []
        return list(self.dataset_id) if isinstance(self.dataset_id, (list, tuple)) else [self.dataset_id]
