"""Base of Lightning data modules: a data set split by episode, with batches gathered on the training device."""

from collections.abc import Sequence
from typing import Generic

import lightning as L
import torch
from typing_extensions import override

from ..configuration import DataConfig
from ..data.episodes import Episode, OfflineData
from ..data.sources import load_offline_data
from ..errors import UserError
from .batches import SPLIT, Batch, BatchOrder, Examples, TrainingBatches, ValidationBatches, permutation


class OfflineDataModule(L.LightningDataModule, Generic[Batch]):
    """Training and validation examples of a data set that is split by episode; learners define the examples.

    :meth:`setup` must be called before anything else is used.
    """

    data: OfflineData  # the whole set
    num_train: int  # examples, one for each transition
    num_validation: int

    def __init__(self, config: DataConfig, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self._ready = False
        self._examples: dict[str, Examples[Batch]] = {}

    def select(self, train: list[Episode]) -> list[Episode]:
        """Select the episodes of the training part to train on; by default all."""
        return train

    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        """Prepare the data; called once, with the episodes of both parts."""
        raise NotImplementedError

    def make_examples(self, part: str) -> Examples[Batch]:
        """Make the examples of a part, "train" or "validation", on :attr:`device`."""
        raise NotImplementedError

    @override
    def setup(self, stage: str = "fit") -> None:
        """Read and prepare the data, once; UserError if they are not available, corrupt, or only one episode."""
        if self._ready:
            return
        self.data = load_offline_data(self.config)
        self.config = self.config.resolve_penalty(self.data.ends_have_rewards)
        train, validation = split_episodes(self.data, self.config.validation_fraction, self.seed)
        train = self.select(train)
        self.num_train, self.num_validation = (sum(map(len, part)) for part in (train, validation))
        self.prepare(train, validation)
        self._ready = True

    @property
    def device(self) -> torch.device:
        """The device of the batches: the trainer's, or the CPU before there is a trainer."""
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
        limit = self.config.train_batches
        return BatchOrder(self.num_train, self.config.batch_size, self.seed, rank, world_size, limit)

    @override
    def train_dataloader(self) -> TrainingBatches[Batch]:
        assert self.trainer is not None
        trainer = self.trainer
        order = self.train_order(trainer.global_rank, trainer.world_size)
        parts = trainer.accumulate_grad_batches
        return TrainingBatches(self.train_examples, order, lambda: trainer.global_step, parts)

    @override
    def val_dataloader(self) -> ValidationBatches[Batch] | list[ValidationBatches[Batch]]:
        return self.fixed_batches(self.validation_examples)

    def fixed_batches(self, examples: Examples[Batch], limit: int | None = None) -> ValidationBatches[Batch]:
        """Return batches of examples in an order that is the same every time, at most ``limit`` of them."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        batch_size = min(self.config.batch_size, len(examples))
        batch_size = max(batch_size - batch_size % world_size, world_size)
        order = BatchOrder(len(examples), batch_size, self.seed, rank, world_size, limit)
        return ValidationBatches(examples, order)

    # Batch is covariant, for results; this one argument comes from Lightning and is returned unchanged.
    @override
    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # type: ignore[misc]
        return batch  # already on the device


def split_episodes(data: OfflineData, fraction: float, seed: int) -> tuple[list[Episode], list[Episode]]:
    """Split into training and validation episodes, at least one each, in stored order; UserError for a single one.

    ``fraction`` is that of validation.
    """
    count = len(data.episodes)
    if count < 2:
        raise UserError(
            f"data set {', '.join(data.dataset_ids)} has {count} episode; training and validation need one each"
        )
    # Differs from the original, which trains on all episodes and keeps weights by epoch: here validation selects them.
    num_validation = min(max(round(count * fraction), 1), count - 1)
    chosen = set(permutation(count, seed, SPLIT)[:num_validation].tolist())
    train = [episode for index, episode in enumerate(data.episodes) if index not in chosen]
    return train, [data.episodes[index] for index in sorted(chosen)]
