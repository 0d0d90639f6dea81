"""Decoding with the model itself, on any device: static shapes, so that one compiled step serves the whole plan."""

import shutil
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.gpt import TrajectoryTransformer
from ..model.memory import CausalMemory
from ..model.numerical_embedding import NumericalEmbedding
from .decoder import BeamDecoder, gather_rows


class StaticMemory:
    """An :class:`~..model.memory.AttentionMemory` of fixed size, for one new token of each row at a time.

    What all rows of an environment begin with is stored once, and read once for all of them.

    Args:
        model: whose keys and values are remembered.
        capacity: tokens of a row.
        environments, rows: that there is room for, and rows of each environment.
        whole: read all of it at every token, so that shapes do not change; else only what has been written.
    """

    def __init__(self, model: TrajectoryTransformer, capacity: int, environments: int, rows: int, whole: bool) -> None:
        config, like, self._whole = model.config, model.pos_emb, whole
        heads, size = config.n_head, config.n_embd // config.n_head
        self._common = like.new_zeros(config.n_layer, 2, environments, heads, capacity, size)
        self._own = like.new_zeros(config.n_layer, 2, environments * rows, heads, capacity, size)
        # Of each row's present transition: its tokens so far, and what a numerical embedding adds to the newest.
        self._transition = torch.zeros(
            environments * rows, config.transition_dim, dtype=torch.int64, device=like.device
        )
        self._added = like.new_zeros(environments * rows, 1, config.n_embd)
        self._numbers = model.numbers
        for stored in (self._common, self._own, self._added):
            torch._dynamo.mark_static_address(stored)  # so that CUDA graphs may write to it
        self._width, self._value = config.transition_dim, model.layout.value
        self._index = torch.arange(capacity, device=like.device)
        # Of the newest token, and of the first that is a row's own.
        self.position, self._first = torch.zeros(2, 1, dtype=torch.int64, device=like.device)
        self.environments = environments  # whose rows are in use
        self._length = 0  # of what is common
        self._seen = [capacity, capacity]
        self._unseen: Tensor | None = None

    def move(self, position: int, tokens: Tensor) -> None:
        """These tokens (rows,) are about to be appended there."""
        self.position.fill_(position)
        if self._numbers is not None:
            self._append(self._numbers, tokens, position % self._width)
        if not self._whole:
            self._seen = [self._length, position + 1 - self._length]
            self._unseen = self._hidden(*self._seen)  # once for all layers

    def positions(self, time: int) -> Tensor:
        assert time == 1
        return self.position

    def embed_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        return self._added[: len(tokens)]

    def _append(self, numbers: NumericalEmbedding, tokens: Tensor, place: int) -> None:
        """Tokens (rows,) become number ``place`` of their transitions."""
        transition, added = self._transition[: len(tokens)], self._added[: len(tokens), 0]
        transition[:, place] = tokens
        if place == numbers.observed - 1:
            added.copy_(numbers.of_observation(transition))
        elif place == numbers.acted - 1:
            added.copy_(numbers.of_transition(transition))
        elif place == 0:
            added.zero_()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        assert dropout == 0.0
        rows, heads, _, size = query.shape
        query = query / size**0.5
        common, own = self._seen
        grouped = (self.environments, rows // self.environments, heads)
        keys, values = self._own[layer, :, :rows]
        keys.index_copy_(2, self.position - self._first, key)
        values.index_copy_(2, self.position - self._first, value)
        common_keys, common_values = self._common[layer, :, : self.environments, :, :common]
        # All rows of an environment at once: (environment, head, rows of it, ...)
        together = query.reshape(*grouped, size).transpose(1, 2) @ common_keys.transpose(2, 3)
        scores = [together.transpose(1, 2).reshape(rows, heads, 1, common), query @ keys[:, :, :own].transpose(2, 3)]
        hidden = self._hidden(common, own) if self._unseen is None else self._unseen
        weights = torch.cat(scores, dim=3).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        together = weights[..., :common].reshape(*grouped, common).transpose(1, 2) @ common_values
        return together.transpose(1, 2).reshape(query.shape) + weights[..., common:] @ values[:, :, :own]

    def _hidden(self, common: int, own: int) -> Tensor:
        """(common + own,) which slots the newest token may not see: unused ones, and value tokens."""
        positions = torch.cat([self._index[:common], self._index[:own] + self._first])
        unused = torch.cat([self._index[:common] >= self._first, positions[common:] > self.position])
        return unused | (positions % self._width == self._value)

    def fill(self, memory: CausalMemory, environments: int, rows: Tensor) -> None:
        """Begin with the first tokens of the given rows, which are common where each environment has one row."""
        stored, places = self._own, rows
        if len(rows) == environments:
            stored, places = self._common, torch.arange(environments, device=rows.device)
        if self._whole:  # what is not visible has weight 0, and must be finite
            self._common.zero_()
            self._own.zero_()
        for layer, pair in enumerate(memory.cache):
            for part, tokens in enumerate(pair):
                stored[layer, part, places, :, : tokens.shape[2]] = tokens
        if self._numbers is not None and (unfinished := memory.cache.unfinished) is not None:
            self._transition[rows, : unfinished.shape[1]] = unfinished
            self._added[rows] = self._numbers(unfinished)[:, -1:]
        self._length = memory.cache.length if stored is self._common else 0
        self._first.fill_(self._length)

    def select(self, rows: Tensor, length: int) -> None:
        """Make the given rows the first rows; the first ``length`` tokens of each are there."""
        own = length - self._length
        if own > 0:
            self._own[:, :, : len(rows), :, :own] = self._own[:, :, rows, :, :own]
        if self._numbers is not None:
            self._transition[: len(rows)] = self._transition[rows]
            self._added[: len(rows)] = self._added[rows]


class TransformerDecoder(BeamDecoder):
    """:class:`BeamDecoder` in PyTorch.

    Args:
        model: in evaluation mode; it decodes in its own device and precision.
        window: transitions that the model may see at once.
        sliding: what happens when a sequence grows past ``window``. True: it is cropped by whole transitions and
            positions start at 0 again, at every transition, as in the original; the window is then encoded anew.
            False: it must not grow past it.
        rows: the most sequences that one environment will have at once.
        compiled: compile the step, which then computes all rows that there is room for, and reads its whole memory, at
            every token: one graph serves all steps. With one warning, it is not compiled where that needs a C++
            compiler that is not there.
    """

    def __init__(
        self, model: TrajectoryTransformer, window: int, sliding: bool, rows: int, compiled: bool = False
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
        if self._memory is None or len(tokens) > self._room:
            self._room = len(tokens)
            self._memory = StaticMemory(self._model, self._limit, self._room, self._most_rows, self._compiled)
        self._encode(tokens[:, -(-excess // self._transition_dim) * self._transition_dim :].unsqueeze(1))

    def _encode(self, window: Tensor) -> None:
        """Begin anew with (environment, rows, time) whole sequences."""
        assert self._memory is not None
        start = time.perf_counter()
        environments, rows, self._length = window.shape
        causal = CausalMemory(self._model.mask, past=None, keep=True, keep_weights=False)
        hidden = self._model.hidden(window.flatten(0, 1), causal)
        logits = self._model.head(hidden[:, -1:], (self._length - 1) % self._transition_dim)[:, 0]
        self._lay_out(environments, rows)
        self._memory.fill(causal, environments, self._flat(torch.arange(rows, device=window.device)))
        self._logits, self._window = logits.float().view(environments, rows, -1), window
        self.model_seconds += time.perf_counter() - start

    def _lay_out(self, environments: int, rows: int) -> None:
        """That many rows are in use. In memory, an environment's rows begin at multiples of ``_stride``."""
        assert self._memory is not None
        self._environments, self._rows = environments, rows
        self._stride = self._most_rows if self._compiled else rows
        self._memory.environments = self._room if self._compiled else environments

    def _flat(self, rows: Tensor) -> Tensor:
        """Places in memory of (environment, rows) or (rows,) rows of each environment, flattened."""
        first = self._stride * torch.arange(self._environments, device=rows.device).unsqueeze(1)
        return (first + rows).flatten()

    def _pad(self, values: Tensor) -> Tensor:
        """(environment, rows) values, or 0, for each row of the memory that is in use."""
        assert self._memory is not None
        missing = (0, self._stride - values.shape[1], 0, self._memory.environments - len(values))
        return F.pad(values, missing).flatten()

    @torch.inference_mode()
    def expand(self, candidates: int) -> None:
        index = torch.arange(self._rows, device=self._logits.device).repeat_interleave(candidates)
        self._select(index.expand(self._environments, -1))

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self._select(rows)

    def _select(self, rows: Tensor) -> None:
        assert self._memory is not None
        sources = self._flat(rows).view(rows.shape)
        self._lay_out(*rows.shape)
        self._memory.select(self._pad(sources), self._length)
        self._logits = gather_rows(self._logits, rows)
        if self._sliding:
            self._window = gather_rows(self._window, rows)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> None:
        assert self._memory is not None
        if self._sliding:
            self._window = torch.cat([self._window, tokens.unsqueeze(2)], dim=2)
            if self._length + 1 == self._limit:
                self._encode(self._window[:, :, self._transition_dim :])
                return
        if self._length == self._model.config.block_size:
            raise ValueError(f"{self._length + 1} tokens exceed block_size={self._length}")
        start = time.perf_counter()
        padded = self._pad(tokens)
        self._memory.move(self._length, padded)
        self._length += 1
        logits = self._run(padded, self._memory).float()
        in_memory = logits.view(self._memory.environments, self._stride, -1)
        self._logits = in_memory[: self._environments, : self._rows].clone()  # CUDA graphs reuse what they return
        self.model_seconds += time.perf_counter() - start

    @property
    def logits(self) -> Tensor:
        return self._logits


def _compiler_found(device: torch.device) -> bool:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        warnings.warn(
            "planner.decoder=compiled needs a C++ compiler on the CPU; planning goes on without", stacklevel=4
        )
        return False
    return True
