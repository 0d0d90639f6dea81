"""Decoding with the model itself, on any device: static shapes, so that one compiled step serves the whole plan."""

import shutil
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..model.gpt import TrajectoryTransformerModel
from ..model.memory import CausalMemory
from .decoder import BeamDecoder


class StaticMemory:
    """An :class:`~..model.memory.AttentionMemory` of fixed size, for one new token of each row at a time.

    Args:
        model: whose keys and values are remembered.
        capacity: tokens of a row.
        rows: that there is room for.
    """

    def __init__(self, model: TrajectoryTransformerModel, capacity: int, rows: int) -> None:
        config, like = model.config, model.pos_emb
        shape = (config.n_layer, 2, rows, config.n_head, capacity, config.n_embd // config.n_head)
        self._stored = like.new_zeros(shape)
        torch._dynamo.mark_static_address(self._stored)  # so that CUDA graphs may write to it
        self._visible = model.mask[-1].new_ones(capacity)
        self._visible[model.layout.value :: config.transition_dim] = False
        self._index = torch.arange(capacity, device=like.device)
        self.position = torch.zeros((), dtype=torch.int64, device=like.device)  # of the newest token
        self.rows, self.seen = rows, capacity  # how much of it is in use, and read

    def positions(self, time: int) -> Tensor:
        assert time == 1
        return self.position.view(1)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        assert dropout == 0.0
        keys, values = self._stored[layer, :, : self.rows]
        keys.index_copy_(2, self.position.view(1), key)
        values.index_copy_(2, self.position.view(1), value)
        hidden = ~(self._visible & (self._index <= self.position))[: self.seen]
        scores = query @ keys[:, :, : self.seen].transpose(2, 3) / query.shape[3] ** 0.5
        return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1) @ values[:, :, : self.seen]

    def fill(self, memory: CausalMemory) -> None:
        """Take over the first tokens of all rows."""
        for layer, (key, value) in enumerate(memory.cache):
            self.rows, length = len(key), key.shape[2]
            self._stored[layer, 0, : self.rows, :, :length] = key
            self._stored[layer, 1, : self.rows, :, :length] = value

    def select(self, rows: Tensor, length: int) -> None:
        """Make the given rows the new rows; the first ``length`` tokens of each are there."""
        self.rows = len(rows)
        self._stored[:, :, : self.rows, :, :length] = self._stored[:, :, rows, :, :length]


class TransformerDecoder(BeamDecoder):
    """:class:`BeamDecoder` in PyTorch.

    Args:
        model: in evaluation mode; it decodes in its own device and precision.
        window: transitions that the model may see at once.
        sliding: what happens when a sequence grows past ``window``. True: it is cropped by whole transitions and
            positions start at 0 again, at every transition, as in the original; the window is then encoded anew.
            False: it must not grow past it.
        rows: the most sequences that one environment will have at once.
        compiled: compile the step, which then reads its whole memory at every token. With one warning, it is not
            compiled where that needs a C++ compiler that is not there.
    """

    def __init__(
        self, model: TrajectoryTransformerModel, window: int, sliding: bool, rows: int, compiled: bool = False
    ) -> None:
        self._model, self._sliding, self._most_rows = model, sliding, rows
        self._transition_dim = model.config.transition_dim
        self._limit = window * self._transition_dim
        self._memory: StaticMemory | None = None
        self._compiled = compiled and _compiler_found(model.pos_emb.device)
        self._run: Callable[[Tensor, StaticMemory], Tensor] = self._forward
        if self._compiled:
            mode = "reduce-overhead" if model.pos_emb.device.type == "cuda" else None
            self._run = torch.compile(self._forward, fullgraph=True, dynamic=False, mode=mode)

    def _forward(self, tokens: Tensor, memory: StaticMemory) -> Tensor:
        """Logits (rows, vocabulary) after one new token of each row (rows,)."""
        hidden = self._model.hidden(tokens.unsqueeze(1), memory)
        return self._model.head(hidden, memory.position % self._transition_dim)[:, 0]

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> None:
        excess = max(0, tokens.shape[1] - (self._limit - 1))
        rows = len(tokens) * self._most_rows
        if self._memory is None or self._memory.position.numel() == 0 or rows > self._room:
            self._memory, self._room = StaticMemory(self._model, self._limit, rows), rows
        self._encode(tokens[:, -(-excess // self._transition_dim) * self._transition_dim :].unsqueeze(1))

    def _encode(self, window: Tensor) -> None:
        """Begin anew with (environment, rows, time) whole sequences."""
        assert self._memory is not None
        self._shape, self._length, self._window = window.shape[:2], window.shape[2], window
        causal = CausalMemory(self._model.mask, past=None, keep=True, keep_weights=False)
        hidden = self._model.hidden(window.flatten(0, 1), causal)
        self._memory.fill(causal)
        self._logits = self._model.head(hidden[:, -1:], (self._length - 1) % self._transition_dim)[:, 0].float()

    @torch.inference_mode()
    def expand(self, candidates: int) -> None:
        environments, rows = self._shape
        index = torch.arange(rows, device=self._logits.device).repeat_interleave(candidates)
        self._select(index.expand(environments, -1))

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self._select(rows)

    def _select(self, rows: Tensor) -> None:
        assert self._memory is not None
        environments, old = self._shape
        index = (rows + old * torch.arange(environments, device=rows.device).unsqueeze(1)).flatten()
        self._memory.select(index, self._length)
        self._logits, self._shape = self._logits[index], torch.Size((environments, rows.shape[1]))
        if self._sliding:
            self._window = self._window.flatten(0, 1)[index].view(*self._shape, -1)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> None:
        assert self._memory is not None
        if self._sliding:
            self._window = torch.cat([self._window, tokens.unsqueeze(2)], dim=2)
            if self._length + 1 == self._limit:
                self._encode(self._window[:, :, self._transition_dim :])
                return
        self._memory.position.fill_(self._length)
        self._length += 1
        self._memory.seen = self._limit if self._compiled else self._length
        self._logits = self._run(tokens.flatten(), self._memory).float()

    @property
    def logits(self) -> Tensor:
        return self._logits.view(*self._shape, -1)


def _compiler_found(device: torch.device) -> bool:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        warnings.warn(
            "planner.decoder=compiled needs a C++ compiler on the CPU; planning goes on without", stacklevel=4
        )
        return False
    return True
