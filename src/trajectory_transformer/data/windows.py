"""All training windows of a set of episodes: tokenised once, kept on one device, gathered there by index."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .discretizer import Discretizer
from .transitions import TransitionTable

ROWS_PER_CHUNK = 65_536


class WindowBatch(NamedTuple):
    """Windows of L transitions of D tokens (``sequence_length``, and one more for a goal), ready for the model."""

    trajectories: Tensor  # (batch, L * D - 1) int64 input tokens
    targets: Tensor  # the same, of the token after each
    mask: Tensor  # the same, float32: 1 where the target counts in the loss, 0 after a truncated episode


class TokenWindows:
    """Every transition starts a window; a window that reaches past its episode's end is filled with stop tokens.

    ::

        tokens  | episode 0 | L-1 stop rows | episode 1 | L-1 stop rows | …       each row (D,), uint8 or int16
        counts  |  1 1 … 1  |  1 … 1: terminated, 0 … 0: truncated      | …       each row one bool

    Stop rows after a terminated episode are trained on; after a truncated one, where nobody knows what would have come,
    they are masked. ``sequence_length`` is L, at least 1. ``goals`` (episodes, D) are int64 tokens of one transition
    more, which every window of an episode begins with, and which is not trained on.
    """

    # Differs from the original: every transition starts a window, an episode's last one too.
    # Differs from the original: padding after truncation is masked, whatever the length of the episode.

    def __init__(
        self,
        table: TransitionTable,
        discretizer: Discretizer,
        sequence_length: int,
        device: torch.device | str = "cpu",
        goals: Tensor | None = None,
    ) -> None:
        if sequence_length < 1:
            raise ValueError(f"sequence_length must be at least 1, got {sequence_length}")
        self.sequence_length = sequence_length
        self.transition_dim = table.values.shape[1]
        padding = sequence_length - 1
        shifts = np.arange(len(table.lengths)) * padding
        starts = torch.from_numpy(np.arange(len(table.values)) + np.repeat(shifts, table.lengths))

        dtype = torch.uint8 if discretizer.num_bins < 256 else torch.int16
        rows = len(table.values) + len(table.lengths) * padding
        tokens = torch.full((rows, self.transition_dim), discretizer.stop_token, dtype=dtype)
        values = torch.from_numpy(table.values)
        for first in range(0, len(values), ROWS_PER_CHUNK):
            chunk = slice(first, first + ROWS_PER_CHUNK)
            tokens[starts[chunk]] = discretizer.encode(values[chunk]).to("cpu", dtype)
        counts = torch.from_numpy(np.repeat(table.terminated, table.lengths + padding))
        counts[starts] = True

        self._tokens = tokens.to(device)
        self._counts = counts.to(device)
        self._starts = starts.to(device)
        self._steps = torch.arange(sequence_length, device=device)
        self._goals = None
        if goals is not None:
            self._goals = goals.to(device, dtype).repeat_interleave(torch.from_numpy(table.lengths).to(device), dim=0)

    def __len__(self) -> int:
        """Windows: one for each transition."""
        return len(self._starts)

    @property
    def device(self) -> torch.device:
        return self._tokens.device

    @property
    def memory_bytes(self) -> int:
        """Bytes held on the device."""
        tensors = (self._tokens, self._counts, self._starts, self._goals)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def gather(self, indices: Tensor) -> WindowBatch:
        """The windows with these numbers (batch,) in [0, len), on :attr:`device`; IndexError for others (on a CPU)."""
        indices = indices.to(self.device)
        rows = self._starts[indices][:, None] + self._steps  # (batch, L)
        tokens, counts = self._tokens[rows], self._counts[rows]
        if self._goals is not None:
            tokens = torch.cat([self._goals[indices].unsqueeze(1), tokens], dim=1)
            counts = torch.cat([torch.zeros_like(counts[:, :1]), counts], dim=1)
        tokens = tokens.flatten(1).to(torch.int64)
        # Differs from the original: its mask belongs to the inputs (mask[:-1]), this one to the targets.
        mask = counts.repeat_interleave(self.transition_dim, dim=1)[:, 1:]
        return WindowBatch(tokens[:, :-1], tokens[:, 1:], mask.to(torch.float32))
