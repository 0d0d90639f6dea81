"""Training windows of tokens: tokenised once, kept on one device or on disk, and gathered there by index."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .discretizer import Discretizer
from .on_disk import forget, in_random_order, kept_rows, read_ahead, rows_digest
from .transitions import TransitionTable

ROWS_PER_CHUNK = 65_536


class WindowBatch(NamedTuple):
    """A batch of windows of L transitions (``sequence_length``, plus one for a goal) of D tokens each."""

    trajectories: Tensor  # (batch, L * D - 1) int64 input tokens
    targets: Tensor  # same shape: the next token at each position
    mask: Tensor  # same shape, float32: 1 if the target counts in the loss, 0 after a truncated episode


class TokenWindows:
    """All windows of a set of episodes, one from each transition, padded with stop tokens past an episode's end.

    ::

        tokens  | episode 0 | episode 1 | …     each row (D,), uint8 or int16
        window  [t t t]
                      [t s s]                   s: stop tokens, L - 1 at most

    Stop tokens after a terminated episode are trained on; after a truncated one, whose continuation is unknown, they
    are masked.

    Args:
        table: the transitions.
        discretizer: converts them to tokens.
        sequence_length: L, at least 1.
        device: device of the batches.
        goals: (episodes, D) int64 tokens of an additional transition that begins every window of an episode and is not
            trained on.
        cache: folder in which the tokens are kept on disk and read for each batch; None: on the device.

    Raises:
        UserError: the cache cannot be written.
    """

    # Differs from the original: every transition starts a window, including an episode's last one.
    # Differs from the original: padding after truncation is masked, for episodes of any length.

    def __init__(
        self,
        table: TransitionTable,
        discretizer: Discretizer,
        sequence_length: int,
        device: torch.device | str = "cpu",
        goals: Tensor | None = None,
        cache: Path | None = None,
    ) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        self.sequence_length = sequence_length
        self.transition_dim = table.values.shape[1]
        dtype = torch.uint8 if discretizer.num_bins < 256 else torch.int16
        self._stop = discretizer.stop_token

        def chunks() -> Iterator[np.ndarray]:
            for first in range(0, len(table.values), ROWS_PER_CHUNK):
                values = torch.from_numpy(table.values[first : first + ROWS_PER_CHUNK])
                yield discretizer.encode(values).to("cpu", dtype).numpy()
                forget(table.values)

        self._mapped: np.ndarray | None = None
        if cache is None:
            self._tokens = torch.from_numpy(np.concatenate(list(chunks()))).to(device)
        else:
            numbers = np.dtype(np.uint8 if dtype == torch.uint8 else np.int16)
            edges = discretizer.edges.cpu().numpy()
            key = "-".join(rows_digest(rows, ROWS_PER_CHUNK)[:32] for rows in (table.values, edges))
            self._mapped = kept_rows(cache, key, chunks, numbers, table.values.shape)
            in_random_order(self._mapped)
            self._tokens = torch.from_numpy(self._mapped)
        self._ends = torch.from_numpy(np.cumsum(table.lengths)).to(device)  # (episodes,) end row of each episode
        self._terminated = torch.from_numpy(table.terminated).to(device)
        self._steps = torch.arange(sequence_length, device=device)
        self._goals = None if goals is None else goals.to(device, dtype)

    def __len__(self) -> int:
        """Return the number of windows, one for each transition."""
        return len(self._tokens)

    @property
    def device(self) -> torch.device:
        return self._ends.device

    def expect(self, indices: Tensor) -> None:
        """Start reading from disk the windows that will be gathered soon."""
        if self._mapped is not None:
            read_ahead(self._mapped, indices.tolist(), self.sequence_length)

    def transitions(self, indices: Tensor) -> Tensor:
        """Return the tokens (n, D) int64 of the transitions ``indices`` (n,) in [0, len), on :attr:`device`."""
        indices = indices.to(self._tokens.device, non_blocking=True)  # the CPU need not wait for a GPU
        tokens = self._tokens[indices].to(self.device, torch.int64)
        if self._mapped is not None:
            forget(self._mapped)
        return tokens

    def gather(self, indices: Tensor) -> WindowBatch:
        """Return the windows ``indices`` (batch,) in [0, len), on :attr:`device`; IndexError for others (on a CPU)."""
        indices = indices.to(self.device, non_blocking=True)  # the CPU need not wait for a GPU
        episodes = torch.searchsorted(self._ends, indices, right=True)
        ends = self._ends[episodes, None]
        rows = indices[:, None] + self._steps  # (batch, L)
        inside = rows < ends
        read = torch.minimum(rows, ends - 1).to(self._tokens.device)
        tokens = self._tokens[read].to(self.device).masked_fill_(~inside[..., None], self._stop)
        counts = inside | self._terminated[episodes, None]
        if self._mapped is not None:
            forget(self._mapped)
        if self._goals is not None:
            tokens = torch.cat([self._goals[episodes, None], tokens], dim=1)
            counts = torch.cat([torch.zeros_like(counts[:, :1]), counts], dim=1)
        tokens = tokens.flatten(1).to(torch.int64)
        # Differs from the original: its mask belongs to the inputs (mask[:-1]), this one to the targets.
        mask = counts.unsqueeze(2).expand(-1, -1, self.transition_dim).flatten(1)[:, 1:]
        return WindowBatch(tokens[:, :-1], tokens[:, 1:], mask.to(torch.float32))
