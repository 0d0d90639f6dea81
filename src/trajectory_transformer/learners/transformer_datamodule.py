"""Lightning data module of the transformer: windows of tokens from episodes that are discretised once."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import DataConfig
from ..configuration.data import MAX_BINS
from ..data.discretizer import LARGEST_INDEX, Discretizer, make_discretizer
from ..data.episodes import Episode
from ..data.goals import goal_transitions
from ..data.on_disk import forget
from ..data.transitions import TransitionTable, join_episodes
from ..data.windows import TokenWindows, WindowBatch
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..layout import TransitionLayout
from ..training.batches import ValidationBatches
from ..training.datamodule import OfflineDataModule


class TrajectoryDataModule(OfflineDataModule[WindowBatch]):
    """Windows of tokens, one beginning at each transition, and the discretiser fitted on the training episodes.

    With ``goal_conditioned``, windows begin with the goal, the final state of their episode, and rewards and values are
    constant.
    """

    layout: TransitionLayout  # determines the model's sizes
    discretizer: Discretizer  # fitted on the training episodes only
    train_table: TransitionTable
    validation_table: TransitionTable

    def __init__(self, config: DataConfig, seed: int, goal_conditioned: bool = False) -> None:
        super().__init__(config, seed)
        self.goal_conditioned = goal_conditioned
        self._goals: dict[str, Tensor] = {}  # (episodes, goal_dim) real values

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        environment = self.data.environment
        self.layout = TransitionLayout(environment.observation_dim, environment.action_dim)
        indices = index_ranges(environment, self.config.discretizer.num_bins)
        # Differs from the paper, which drops rewards from sequences with goals: constant ones carry no information
        # either, and all models have the same layout.
        self.train_table, self.validation_table = (
            join_episodes(episodes, self.config, rewarded=not self.goal_conditioned, folder=self._cache)
            for episodes in (train, validation)
        )
        if self.goal_conditioned:
            dimensions = list(environment.goal_dimensions)
            self._goals = {
                part: torch.from_numpy(np.stack([episode.observations[-1, dimensions] for episode in episodes]))
                for part, episodes in (("train", train), ("validation", validation))
            }
        self.discretizer = make_discretizer(self.config.discretizer).fit(self.train_table.values, indices)
        forget(self.train_table.values)

    @override
    def make_examples(self, part: str) -> TokenWindows:
        table = self.train_table if part == "train" else self.validation_table
        goals = self._goals.get(part)
        if goals is not None:
            goals = goal_transitions(goals, self.data.environment.goal_dimensions, self.layout, self.discretizer)
        return TokenWindows(table, self.discretizer, self.config.sequence_length, self.device, goals, self._cache)

    @property
    def train_windows(self) -> TokenWindows:
        """All training windows, on :attr:`device`."""
        windows = self.train_examples
        assert isinstance(windows, TokenWindows)
        return windows

    @override
    def val_dataloader(self) -> list[ValidationBatches[WindowBatch]]:
        """Batches of held-out windows, and as many of a fixed sample of the training windows."""
        held_out = self.fixed_batches(self.validation_examples)
        return [held_out, self.fixed_batches(self.train_examples, len(held_out))]

    @property
    def _cache(self) -> Path | None:
        return None if self.config.cache is None else Path(self.config.cache).expanduser()


def index_ranges(environment: EnvironmentSpec, num_bins: int) -> dict[int, tuple[float, float]]:
    """Ranges of integer values with one token each: column of [observation | action] -> (first, last).

    These are the columns of all Discrete spaces, and of integer Boxes with no more values than bins.

    Raises:
        UserError: a Discrete space has more values than bins, or values that float32 cannot represent.
    """
    seen, size = environment.observation_indices, environment.observation.size
    found = {}
    for kind, space, dimensions, offset in (
        ("observation", environment.observation, range(size) if seen is None else seen, 0),
        ("action", environment.action, range(environment.action_dim), environment.observation_dim),
    ):
        low, high, whole, discrete = space.low, space.high, space.whole, space.discrete
        for column, index in enumerate(dimensions, offset):
            if not whole[index]:
                continue
            first, last = float(low[index]), float(high[index])
            count, far = last - first + 1, max(-first, last) > LARGEST_INDEX
            if count <= num_bins and not far:
                found[column] = first, last
            elif discrete[index]:
                raise UserError(_no_token(kind, space.names()[index], first, last, num_bins))
    return found


def _no_token(kind: str, name: str, first: float, last: float, num_bins: int) -> str:
    """Message that the values of a Discrete dimension cannot have a token each."""
    count = last - first + 1
    what = f"{kind} dimension '{name}' holds {count:.0f} Discrete values, {first:.0f} to {last:.0f}"
    leave = "leave it out by data.observation_indices" if kind == "observation" else "record other actions"
    if max(-first, last) > LARGEST_INDEX:
        return f"{what}, but only values up to ±{LARGEST_INDEX} can become tokens; {leave}"
    more = f"set data.discretizer.num_bins={count:.0f}, or " if count <= MAX_BINS else ""
    shared = f"more than data.discretizer.num_bins={num_bins}, so that some would share a token"
    return f"{what}, {shared}; {more}{leave}"
