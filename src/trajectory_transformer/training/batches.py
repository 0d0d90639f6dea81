"""Batches in an order that is a function of the seed and of the number of updates made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import UserError

SPLIT, _TRAIN, _VALIDATION, BOOTSTRAP = range(4)  # what a random stream is for

Batch = TypeVar("Batch", covariant=True)


class Examples(Protocol[Batch]):
    """Training examples kept on one device: windows of tokens, or transitions."""

    @property
    def device(self) -> torch.device: ...
    def gather(self, indices: Tensor) -> Batch: ...  # on that device, the examples with these numbers
    def __len__(self) -> int: ...


@dataclass
class BatchOrder:
    """Order of the training examples: a pure function of the seed and the update's number.

    Every epoch is a new permutation. Its last incomplete batch is dropped, unless there is no complete one. UserError
    if the processes' shares would differ in size or be empty.
    """

    num_windows: int  # examples (windows, transitions) to choose from, at least 1
    batch_size: int  # examples of an update, over all processes
    seed: int
    rank: int = 0  # this process takes every ``world_size``-th example of a batch, from ``rank`` on
    world_size: int = 1
    limit: int | None = None  # batches of an epoch; those of the first are then repeated in every one
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
        """This process's windows of the update after ``step`` updates: (batch_size / world_size,) int64."""
        epoch, position = divmod(step, self.steps_per_epoch)
        epoch = epoch if self.limit is None else 0
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, permutation(self.num_windows, self.seed, _TRAIN, epoch)
        batch = self._permutation[position * self.batch_size : (position + 1) * self.batch_size]
        return batch[self.rank :: self.world_size].long()


@dataclass
class TrainingBatches(Generic[Batch]):
    """Endless batches from the present update on: iterating anew after a resume goes on exactly where it stopped.

    Each update's comes in ``parts`` of equal size; UserError if there are none.
    """

    examples: Examples[Batch]
    order: BatchOrder
    steps_done: Callable[[], int]
    parts: int = 1

    def __post_init__(self) -> None:
        share = self.order.batch_size // self.order.world_size
        if share % self.parts:
            raise UserError(
                f"trainer.accumulate={self.parts} does not divide the {share} windows or transitions of a process's "
                "batch (data.batch_size, or the whole set)"
            )

    def __iter__(self) -> Iterator[Batch]:
        step = self.steps_done()
        expect = getattr(self.examples, "expect", None)  # those on disk begin to read what comes next
        while True:
            parts = self.order.indices(step).chunk(self.parts)
            step += 1
            if expect is not None:
                expect(self.order.indices(step))
            for indices in parts:
                yield self.examples.gather(indices)


@dataclass
class ValidationBatches(Generic[Batch]):
    """The same batches, in the same order, every time; the last one may be smaller. Processes share each."""

    examples: Examples[Batch]
    order: BatchOrder

    def __len__(self) -> int:
        order = self.order
        whole, rest = divmod(order.num_windows, order.batch_size)
        return whole + (rest >= order.world_size)  # no process may be left without a window

    def __iter__(self) -> Iterator[Batch]:
        order = self.order
        for batch in permutation(order.num_windows, order.seed, _VALIDATION).split(order.batch_size)[: len(self)]:
            yield self.examples.gather(batch[order.rank :: order.world_size].long())


def derived_seed(*parts: int) -> int:
    """A seed for torch, mixed from whole numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def random_stream(seed: int, *stream: int) -> torch.Generator:
    """Random numbers that depend on the arguments alone, and on no global state."""
    return torch.Generator().manual_seed(derived_seed(seed, *stream))


def permutation(count: int, seed: int, *stream: int) -> Tensor:
    """A permutation of range(count) that depends on the arguments alone: int32 where that is enough, as of millions."""
    dtype = torch.int32 if count < 2**31 else torch.int64  # which gives the same one
    return torch.randperm(count, generator=random_stream(seed, *stream), dtype=dtype)
