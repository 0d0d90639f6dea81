"""Training and validation batches, in an order that depends only on the seed and the number of updates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

SPLIT, _TRAIN, _VALIDATION, BOOTSTRAP, REGRESSION, PRETRAINING, IMPROVEMENT = range(7)  # purposes of random streams

Batch = TypeVar("Batch", covariant=True)


class Examples(Protocol[Batch]):
    """Examples on one device: windows of tokens, or transitions."""

    @property
    def device(self) -> torch.device: ...
    def gather(self, indices: Tensor) -> Batch: ...  # the examples with these indices, on that device
    def __len__(self) -> int: ...


@dataclass
class BatchOrder:
    """Order of the training examples, which depends only on the seed and the number of updates made.

    Every epoch is a new permutation. Its last incomplete batch is dropped, unless it is the only one. UserError if the
    processes' shares would differ in size or be empty.
    """

    num_windows: int  # number of examples (windows, transitions), at least 1
    batch_size: int  # examples of an update, over all processes
    seed: int
    rank: int = 0  # this process takes every ``world_size``-th example of a batch, starting with number ``rank``
    world_size: int = 1
    limit: int | None = None  # batches of an epoch; every epoch then repeats the first ones of the first epoch
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
        whole = self.num_windows // self.batch_size
        return whole if self.limit is None else min(whole, self.limit)

    def indices(self, step: int) -> Tensor:
        """Indices (batch_size / world_size,) int64 of this process's examples in the update after ``step`` updates."""
        epoch, position = divmod(step, self.steps_per_epoch)
        epoch = epoch if self.limit is None else 0
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self.num_windows, self.seed, _TRAIN, epoch)
        batch = self._permutation[position * self.batch_size : (position + 1) * self.batch_size]
        return batch[self.rank :: self.world_size].long()


@dataclass
class TrainingBatches(Generic[Batch]):
    """Endless batches from the present update on, so that a resumed run continues exactly where it stopped.

    The batch of each update is divided into ``parts`` of equal size; UserError if that is not possible.
    """

    examples: Examples[Batch]
    order: BatchOrder
    steps_done: Callable[[], int]
    parts: int = 1

    def __post_init__(self) -> None:
        share = self.order.batch_size // self.order.world_size
        if share % self.parts:
            raise UserError(
                f"trainer.accumulate={self.parts} does not divide the {share} windows or transitions in a process's "
                "share of a batch (data.batch_size, or the whole set)"
            )

    def __iter__(self) -> Iterator[Batch]:
        step = self.steps_done()
        expect = getattr(self.examples, "expect", None)  # examples on disk begin to read the next batch
        while True:
            parts = self.order.indices(step).chunk(self.parts)
            step += 1
            if expect is not None:
                expect(self.order.indices(step))
            for indices in parts:
                yield self.examples.gather(indices)


@dataclass
class ValidationBatches(Generic[Batch]):
    """Validation batches, the same in the same order every time; the last may be smaller. Processes divide each.

    The number of batches is at most ``order.limit``.
    """

    examples: Examples[Batch]
    order: BatchOrder

    def __len__(self) -> int:
        order = self.order
        whole, rest = divmod(order.num_windows, order.batch_size)
        count = whole + (rest >= order.world_size)  # every process must get an example
        return count if order.limit is None else min(count, order.limit)

    def __iter__(self) -> Iterator[Batch]:
        order = self.order
        for batch in permutation(order.num_windows, order.seed, _VALIDATION).split(order.batch_size)[: len(self)]:
            yield self.examples.gather(batch[order.rank :: order.world_size].long())


def derived_seed(*parts: int) -> int:
    """A seed for torch, derived from several integers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def random_stream(seed: int, *stream: int) -> torch.Generator:
    """A random generator that depends only on the arguments, not on global state."""
    return torch.Generator().manual_seed(derived_seed(seed, *stream))


def permutation(count: int, seed: int, *stream: int) -> Tensor:
    """A permutation of range(count) that depends only on the arguments; int32 if that suffices, to save memory."""
    dtype = torch.int32 if count < 2**31 else torch.int64  # both give the same permutation
    return torch.randperm(count, generator=random_stream(seed, *stream), dtype=dtype)
