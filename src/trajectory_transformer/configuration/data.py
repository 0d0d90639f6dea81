"""Options of the data: its source, and the windows of tokens that it becomes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .validation import LARGEST, require, require_choice, validate, within

MAX_BINS = 32766  # tokens are kept in 16 bits


@dataclass
class DiscretizerConfig:
    """Options of the discretiser, which turns real values into tokens."""

    strategy: str = "quantile"  # quantile: bins of equal mass; uniform: bins of equal width
    num_bins: int = within(100, 2, MAX_BINS)  # tokens per dimension, the paper's V

    def __post_init__(self) -> None:
        validate("data.discretizer.", self)
        require_choice("data.discretizer.strategy", self.strategy, ("quantile", "uniform"))


DEFAULT_DATASET_ID = "embedded/hopper/mixed-v0"


@dataclass
class DataConfig:
    """Options of the data: its source, and the windows of tokens that it becomes."""

    dataset_id: Any = DEFAULT_DATASET_ID  # a Minari id, or a list of ids to be joined; null beside a source
    source: Any = None  # null: dataset_id's; an EpisodeSource's _target_ and options, or a list of them to be joined
    download: bool = True  # fetch a set that is neither on disk nor embedded
    observation_keys: list[str] | None = None  # keep these keys of a Dict observation, as "goal.position"; null: all
    observation_indices: list[int] | None = None  # keep these dimensions of the flattened observation; null: all
    discretizer: DiscretizerConfig = field(default_factory=DiscretizerConfig)
    sequence_length: int = within(4, 1, 1_000_000)  # transitions in a training window
    discount: float = within(0.99, high=1.0, above=0.0)  # of the return-to-go
    # replaces the reward of a terminating step; null: keep the reward
    termination_penalty: float | None = within(-100.0, -LARGEST, LARGEST)
    validation_fraction: float = within(0.1, above=0.0, below=1.0)  # of the episodes
    # folder where a set that memory need not hold lies as tokens; null: all is in memory
    cache: str | None = None
    batch_size: int = within(256, 1, 2**31 - 1)  # windows in an update, over all devices together

    def __post_init__(self) -> None:
        validate("data.", self)
        if self.source is None:
            ids = self.dataset_ids
            require(
                len(ids) > 0 and all(isinstance(i, str) and i for i in ids),
                f"data.dataset_id={self.dataset_id!r} must be a Minari id or a list of ids",
            )
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
        if (keys := self.observation_keys) is not None:
            distinct = len(keys) > 0 and all(keys) and len(set(keys)) == len(keys)
            require(distinct, f"data.observation_keys={keys} must be distinct keys of the observation, one at least")
        if (chosen := self.observation_indices) is not None:
            require(
                len(chosen) > 0,
                "data.observation_indices=[] hides every dimension of the observation; name one at least, or null for "
                "all",
            )
            distinct = min(chosen) >= 0 and len(set(chosen)) == len(chosen)
            require(distinct, f"data.observation_indices={chosen} must be distinct indices from 0")

    @property
    def dataset_ids(self) -> list[str]:
        """``dataset_id`` as a list, empty beside a source."""
        if self.source is not None:
            return []
        return list(self.dataset_id) if isinstance(self.dataset_id, (list, tuple)) else [self.dataset_id]
