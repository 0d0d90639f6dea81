"""Decoding with the PyTorch model on any device, with static shapes, so that one compiled step serves a whole plan."""

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

    The tokens that all rows of an environment have in common are stored and read once for all of them.

    Args:
        model: the model whose keys and values are stored.
        capacity: maximal number of tokens of a row.
        environments, rows: maximal number of environments, and of rows of each.
        whole: read the whole memory at every token, so that shapes do not change; else only the slots written so far.
    """

    def __init__(self, model: TrajectoryTransformer, capacity: int, environments: int, rows: int, whole: bool) -> None:
        config, like, self._whole = model.config, model.pos_emb, whole
        heads, size = config.n_head, config.n_embd // config.n_head
        self._common = like.new_zeros(config.n_layer, 2, environments, heads, capacity, size)
        self._own = like.new_zeros(config.n_layer, 2, environments * rows, heads, capacity, size)
        # For each row: the tokens of its present transition so far, and the numerical embedding of the newest token.
        self._transition = torch.zeros(
            environments * rows, config.transition_dim, dtype=torch.int64, device=like.device
        )
        self._added = like.new_zeros(environments * rows, 1, config.n_embd)
        self._numbers = model.numbers
        for stored in (self._common, self._own, self._added):
            torch._dynamo.mark_static_address(stored)  # lets CUDA graphs write to it
        self._width, self._value = config.transition_dim, model.layout.value
        self._index = torch.arange(capacity, device=like.device)
        # Positions of the newest token, and of the first token that the rows of an environment do not share.
        self.position, self._first = torch.zeros(2, 1, dtype=torch.int64, device=like.device)
        self.environments = environments  # environments in use
        self._length = 0  # of the common tokens
        self._seen = [capacity, capacity]
        self._unseen: Tensor | None = None

    def move(self, position: int, tokens: Tensor) -> None:
        """Prepare to append tokens (rows,) at a position."""
        self.position.fill_(position)
        if self._numbers is not None:
            self._append(self._numbers, tokens, position % self._width)
        if not self._whole:
            self._seen = [self._length, position + 1 - self._length]
            self._unseen = self._hidden(*self._seen)  # the same for all layers

    def positions(self, time: int) -> Tensor:
        assert time == 1
        return self.position

    def embed_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        return self._added[: len(tokens)]

    def _append(self, numbers: NumericalEmbedding, tokens: Tensor, place: int) -> None:
        """Store tokens (rows,) at index ``place`` of their transitions, and update the numerical embeddings."""
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
        # Products with the common tokens, for all rows of an environment at once: (environment, head, rows, ...)
        together = query.reshape(*grouped, size).transpose(1, 2) @ common_keys.transpose(2, 3)
        scores = [together.transpose(1, 2).reshape(rows, heads, 1, common), query @ keys[:, :, :own].transpose(2, 3)]
        hidden = self._hidden(common, own) if self._unseen is None else self._unseen
        weights = torch.cat(scores, dim=3).masked_fill(hidden, -torch.inf).softmax(dim=-1)
        together = weights[..., :common].reshape(*grouped, common).transpose(1, 2) @ common_values
        return together.transpose(1, 2).reshape(query.shape) + weights[..., common:] @ values[:, :, :own]

    def _hidden(self, common: int, own: int) -> Tensor:
        """Mask (common + own,) of the slots hidden from the newest token: unused ones, and value tokens."""
        positions = torch.cat([self._index[:common], self._index[:own] + self._first])
        unused = torch.cat([self._index[:common] >= self._first, positions[common:] > self.position])
        return unused | (positions % self._width == self._value)

    def fill(self, memory: CausalMemory, environments: int, rows: Tensor) -> None:
        """Start over with the first tokens of the given rows; they are common if each environment has one row."""
        stored, places = self._own, rows
        if len(rows) == environments:
            stored, places = self._common, torch.arange(environments, device=rows.device)
        if self._whole:  # invisible slots are multiplied by 0, so they must be finite
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
        """Move the given rows, of ``length`` tokens each, to the front."""
        own = length - self._length
        if own > 0:
            self._own[:, :, : len(rows), :, :own] = self._own[:, :, rows, :, :own]
        if self._numbers is not None:
            self._transition[: len(rows)] = self._transition[rows]
            self._added[: len(rows)] = self._added[rows]


class TransformerDecoder(BeamDecoder):
    """A :class:`BeamDecoder` in PyTorch.

    Args:
        model: in evaluation mode; decoding uses its device and precision.
        window: maximal number of transitions that the model sees at once.
        sliding: True: a sequence that grows past ``window`` is cropped by whole transitions, at every transition, as in
            the original; its positions start at 0 again, and the window is encoded again. False: sequences must not
            grow past ``window``.
        rows: maximal number of sequences of one environment.
        compiled: compile the step. It then computes all rows that there is room for and reads the whole memory at every
            token, so that one graph serves all steps. If a C++ compiler is needed and missing, one warning is given
            and the step is not compiled.
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
        """Start over with whole sequences (environment, rows, time)."""
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
        """Set the rows in use. In memory, each environment's rows begin at a multiple of ``_stride``."""
        assert self._memory is not None
        self._environments, self._rows = environments, rows
        self._stride = self._most_rows if self._compiled else rows
        self._memory.environments = self._room if self._compiled else environments

    def _flat(self, rows: Tensor) -> Tensor:
        """Flat indices in memory of rows (environment, rows), or of the same rows (rows,) in each environment."""
        first = self._stride * torch.arange(self._environments, device=rows.device).unsqueeze(1)
        return (first + rows).flatten()

    def _pad(self, values: Tensor) -> Tensor:
        """Values (environment, rows) for each row of the memory in use, flattened; 0 for rows without a sequence."""
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
        self._logits = in_memory[: self._environments, : self._rows].clone()  # CUDA graphs reuse their output's memory
        self.model_seconds += time.perf_counter() - start

    @property
    def logits(self) -> Tensor:
        return self._logits


def _compiler_found(device: torch.device) -> bool:
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        warnings.warn(
            "planner.decoder=compiled needs a C++ compiler on the CPU; planning is not compiled", stacklevel=4
        )
        return False
    return True
