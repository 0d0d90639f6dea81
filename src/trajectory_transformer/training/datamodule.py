"""Episodes split, discretised and tokenised once; batches gathered on the device in an order known beforehand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import lightning as L
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import DataConfig
from ..data.discretizer import Discretizer, make_discretizer
from ..data.episodes import Episode, OfflineData
from ..data.goals import goal_transitions
from ..data.sources import load_offline_data
from ..data.transitions import TransitionTable, join_episodes
from ..data.windows import TokenWindows, WindowBatch
from ..errors import UserError
from ..layout import TransitionLayout

_SPLIT, _TRAIN, _VALIDATION = range(3)  # what a random stream is for


@dataclass
class BatchOrder:
    """Which windows each update sees: a pure function of the seed and the update's number.

    Every epoch is a new permutation. Its last incomplete batch is dropped, unless there is no complete one.

    Attributes:
        num_windows: windows to choose from, at least 1.
        batch_size: windows of an update, over all processes.
        seed: of the run.
        rank, world_size: this process takes every ``world_size``-th window of a batch, from ``rank`` on.

    Raises:
        UserError: the processes' shares would differ in size or be empty.
    """

    num_windows: int
    batch_size: int
    seed: int
    rank: int = 0
    world_size: int = 1
    _epoch: int = field(default=-1, init=False)
    _permutation: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long), init=False)

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.num_windows)
        if self.batch_size % self.world_size:
            raise UserError(
                f"data.batch_size={self.batch_size} windows do not divide among {self.world_size} processes; "
                "choose a multiple of trainer.devices × trainer.num_nodes"
            )

    @property
    def steps_per_epoch(self) -> int:
        return self.num_windows // self.batch_size

    def indices(self, step: int) -> Tensor:
        """This process's windows of the update after ``step`` updates: (batch_size / world_size,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, _permutation(self.num_windows, self.seed, _TRAIN, epoch)
        batch = self._permutation[position * self.batch_size : (position + 1) * self.batch_size]
        return batch[self.rank :: self.world_size]


@dataclass
class TrainingBatches:
    """Endless batches from the present update on: iterating anew after a resume goes on exactly where it stopped."""

    windows: TokenWindows
    order: BatchOrder
    steps_done: Callable[[], int]

    def __iter__(self) -> Iterator[WindowBatch]:
        step = self.steps_done()
        while True:
            yield self.windows.gather(self.order.indices(step))
            step += 1


@dataclass
class ValidationBatches:
    """The same batches, in the same order, every time; the last one may be smaller. Processes share each."""

    windows: TokenWindows
    order: BatchOrder

    def __len__(self) -> int:
        order = self.order
        whole, rest = divmod(order.num_windows, order.batch_size)
        return whole + (rest >= order.world_size)  # no process may be left without a window

    def __iter__(self) -> Iterator[WindowBatch]:
        order = self.order
        for batch in _permutation(order.num_windows, order.seed, _VALIDATION).split(order.batch_size)[: len(self)]:
            yield self.windows.gather(batch[order.rank :: order.world_size])


class TrajectoryDataModule(L.LightningDataModule):
    """Data set → split by episode → discretiser of the training part → windows of tokens.

    :meth:`setup` must be called before anything else is used; the model's sizes follow from :attr:`layout`.

    Args:
        config: which data, and how it is cut.
        seed: of the split and of the order of batches.
        goal_conditioned: windows begin with the state in which their episode ends, and neither reward nor value tells
            anything.

    Attributes:
        data: the whole set.
        layout: positions within a transition.
        discretizer: fitted on the training episodes only.
        train_table, validation_table: transitions of the two parts.
    """

    data: OfflineData
    layout: TransitionLayout
    discretizer: Discretizer
    train_table: TransitionTable
    validation_table: TransitionTable

    def __init__(self, config: DataConfig, seed: int, goal_conditioned: bool = False) -> None:
        super().__init__()
        self.config, self.seed, self.goal_conditioned = config, seed, goal_conditioned
        self._ready = False
        self._windows: dict[str, TokenWindows] = {}
        self._goals: dict[str, Tensor] = {}  # (episodes, goal_dim) real values

    @override
    def setup(self, stage: str = "fit") -> None:
        """Read and discretise the data; a second call does nothing.

        Raises:
            UserError: the data cannot be had, is corrupt, or is a single episode.
        """
        if self._ready:
            return
        self.data = load_offline_data(self.config)
        environment = self.data.environment
        self.layout = TransitionLayout(environment.observation_dim, environment.action_dim)
        train, validation = split_episodes(self.data, self.config.validation_fraction, self.seed)
        discount, penalty = self.config.discount, self.config.termination_penalty
        self.train_table = join_episodes(train, discount, penalty)
        self.validation_table = join_episodes(validation, discount, penalty)
        if self.goal_conditioned:
            # Differs from the paper: it drops rewards from the sequence; constant ones say as little, and one layout
            # serves all models.
            for table in (self.train_table, self.validation_table):
                table.values[:, self.layout.reward :] = 0.0
            dimensions = list(environment.goal_dimensions)
            self._goals = {
                part: torch.from_numpy(np.stack([episode.observations[-1, dimensions] for episode in episodes]))
                for part, episodes in (("train", train), ("validation", validation))
            }
        self.discretizer = make_discretizer(self.config.discretizer).fit(self.train_table.values)
        self._ready = True

    @property
    def device(self) -> torch.device:
        """Where batches are made: the trainer's device, or the CPU before there is one."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def train_windows(self) -> TokenWindows:
        return self._tokenized("train", self.train_table)

    @property
    def validation_windows(self) -> TokenWindows:
        return self._tokenized("validation", self.validation_table)

    def train_order(self, rank: int = 0, world_size: int = 1) -> BatchOrder:
        """The order of training batches; every transition starts a window."""
        return BatchOrder(len(self.train_table.values), self.config.batch_size, self.seed, rank, world_size)

    @override
    def train_dataloader(self) -> TrainingBatches:
        assert self.trainer is not None
        trainer = self.trainer
        order = self.train_order(trainer.global_rank, trainer.world_size)
        return TrainingBatches(self.train_windows, order, lambda: trainer.global_step)

    @override
    def val_dataloader(self) -> ValidationBatches:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batch_size = min(self.config.batch_size, len(self.validation_table.values))
        batch_size = max(batch_size - batch_size % world_size, world_size)
        order = BatchOrder(len(self.validation_table.values), batch_size, self.seed, rank, world_size)
        return ValidationBatches(self.validation_windows, order)

    @override
    def transfer_batch_to_device(self, batch: WindowBatch, device: torch.device, dataloader_idx: int) -> WindowBatch:
        return batch  # it was made there

    def _tokenized(self, part: str, table: TransitionTable) -> TokenWindows:
        windows = self._windows.get(part)
        if windows is None or windows.device != self.device:
            goals = self._goals.get(part)
            if goals is not None:
                dimensions = self.data.environment.goal_dimensions
                goals = goal_transitions(goals, dimensions, self.layout, self.discretizer)
            windows = TokenWindows(table, self.discretizer, self.config.sequence_length, self.device, goals)
            self._windows[part] = windows
        return windows


def split_episodes(data: OfflineData, fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Training and validation episodes, each in the order stored, at least one of each.

    Args:
        data: episodes to split.
        fraction: of the episodes that go to validation, in (0, 1).
        seed: decides which.

    Raises:
        UserError: there is only one episode.
    """
    count = len(data.episodes)
    if count < 2:
        raise UserError(
            f"data set {', '.join(data.dataset_ids)} has {count} episode; training and validation need one each"
        )
    # Differs from the original: it trains on all episodes and keeps weights by epoch; here a part chooses the best.
    num_validation = min(max(round(count * fraction), 1), count - 1)
    chosen = set(_permutation(count, seed, _SPLIT)[:num_validation].tolist())
    train = [episode for index, episode in enumerate(data.episodes) if index not in chosen]
    return train, [data.episodes[index] for index in sorted(chosen)]


def _permutation(count: int, seed: int, *stream: int) -> Tensor:
    """A permutation of range(count) that depends on the arguments alone and touches no global random state."""
    entropy = np.random.SeedSequence([seed, *stream]).generate_state(1, np.uint64)[0]
    return torch.randperm(count, generator=torch.Generator().manual_seed(int(entropy >> 1)))
