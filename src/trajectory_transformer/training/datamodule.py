"""Episodes split, discretised and tokenised once; batches gathered on the device that trains."""

from collections.abc import Sequence
from typing import Generic

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
from .batches import SPLIT, Batch, BatchOrder, Examples, TrainingBatches, ValidationBatches, permutation


class OfflineDataModule(L.LightningDataModule, Generic[Batch]):
    """Data set → split by episode → training and validation examples; what these are is the learner's.

    :meth:`setup` must be called before anything else is used.

    Args:
        config: which data, and how it is cut.
        seed: of the split and of the order of batches.

    Attributes:
        data: the whole set.
        num_train, num_validation: examples, one for each transition.
    """

    data: OfflineData
    num_train: int
    num_validation: int

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self._ready = False
        self._examples: dict[str, Examples[Batch]] = {}

    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        """Called once, with the episodes of the two parts."""
        raise NotImplementedError

    def make_examples(self, part: str) -> Examples[Batch]:
        """Those of "train" or "validation", on :attr:`device`."""
        raise NotImplementedError

    @override
    def setup(self, stage: str = "fit") -> None:
        """Read the data and prepare it; a second call does nothing.

        Raises:
            UserError: the data cannot be had, is corrupt, or is a single episode.
        """
        if self._ready:
            return
        self.data = load_offline_data(self.config)
        train, validation = split_episodes(self.data, self.config.validation_fraction, self.seed)
        self.num_train, self.num_validation = (sum(map(len, part)) for part in (train, validation))
        self.prepare(train, validation)
        self._ready = True

    @property
    def device(self) -> torch.device:
        """Where batches are made: the trainer's device, or the CPU before there is one."""
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    @property
    def train_examples(self) -> Examples[Batch]:
        return self._kept("train")

    @property
    def validation_examples(self) -> Examples[Batch]:
        return self._kept("validation")

    def _kept(self, part: str) -> Examples[Batch]:
        made = self._examples.get(part)
        if made is None or made.device != self.device:
            made = self._examples[part] = self.make_examples(part)
        return made

    def train_order(self, rank: int = 0, world_size: int = 1) -> BatchOrder:
        """The order of training batches."""
        return BatchOrder(self.num_train, self.config.batch_size, self.seed, rank, world_size)

    @override
    def train_dataloader(self) -> TrainingBatches[Batch]:
        assert self.trainer is not None
        trainer = self.trainer
        order = self.train_order(trainer.global_rank, trainer.world_size)
        return TrainingBatches(self.train_examples, order, lambda: trainer.global_step)

    @override
    def val_dataloader(self) -> ValidationBatches[Batch]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batch_size = min(self.config.batch_size, self.num_validation)
        batch_size = max(batch_size - batch_size % world_size, world_size)
        order = BatchOrder(self.num_validation, batch_size, self.seed, rank, world_size)
        return ValidationBatches(self.validation_examples, order)

    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # type: ignore[misc]
        return batch  # it was made there


class TrajectoryDataModule(OfflineDataModule[WindowBatch]):
    """Discretiser of the training part → windows of tokens, one from each transition on.

    The model's sizes follow from :attr:`layout`.

    Args:
        config: which data, and how it is cut.
        seed: of the split and of the order of batches.
        goal_conditioned: windows begin with the state in which their episode ends, and neither reward nor value tells
            anything.

    Attributes:
        layout: positions within a transition.
        discretizer: fitted on the training episodes only.
        train_table, validation_table: transitions of the two parts.
    """

    layout: TransitionLayout
    discretizer: Discretizer
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

    @override
    def make_examples(self, part: str) -> TokenWindows:
        table = self.train_table if part == "train" else self.validation_table
        goals = self._goals.get(part)
        if goals is not None:
            goals = goal_transitions(goals, self.data.environment.goal_dimensions, self.layout, self.discretizer)
        return TokenWindows(table, self.discretizer, self.config.sequence_length, self.device, goals)


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
    chosen = set(permutation(count, seed, SPLIT)[:num_validation].tolist())
    train = [episode for index, episode in enumerate(data.episodes) if index not in chosen]
    return train, [data.episodes[index] for index in sorted(chosen)]
