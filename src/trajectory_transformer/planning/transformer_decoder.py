"""Decoding with the PyTorch model on any device, with static shapes, so that one compiled step serves a whole plan."""

import functools
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


class StoredTokens:
    """Keys and values of tokens in a buffer of fixed size. Each stored row is read by equally many rows of a search.

    Args:
        like: a tensor of the type and device to use.
        shape: (layers, heads, tokens, head_dim) of a stored row.
        rows: maximal number of stored rows.
    """

    def __init__(self, like: Tensor, shape: tuple[int, int, int, int], rows: int) -> None:
        layers, *row = shape
        self.buffer = like.new_zeros(layers, 2, rows, *row)
        torch._dynamo.mark_static_address(self.buffer)  # lets CUDA graphs write to it
        self.rows, self.length = rows, shape[2]  # in use; the length counts tokens

    def scores(self, layer: int, query: Tensor) -> Tensor:
        """Products (rows, heads, 1, length) of queries (rows, heads, 1, head_dim) with the keys that each row reads."""
        return self._product(query, self.buffer[layer, 0, : self.rows, :, : self.length].transpose(2, 3))

    def sums(self, layer: int, weights: Tensor) -> Tensor:
        """Sums (rows, heads, 1, head_dim) of the values that each row reads, by weights (rows, heads, 1, length)."""
        return self._product(weights, self.buffer[layer, 1, : self.rows, :, : self.length])

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """Multiply (rows, heads, 1, n) by (stored rows, heads, n, m), for all rows that read a stored row at once."""
        rows, heads, _, size = left.shape
        together = left.reshape(self.rows, rows // self.rows, heads, size).transpose(1, 2) @ right
        return together.transpose(1, 2).reshape(rows, heads, 1, right.shape[3])


class SearchMemory:
    """An :class:`~..model.memory.AttentionMemory` of fixed size, for one new token of each row at a time.

    ::

        common   the prefix             stored once for each environment
        shared   the plan so far        once for each sequence, while several candidates continue it
        own      the tokens after that  once for each row

    Args:
        model: the model whose keys and values are stored.
        capacity: maximal number of tokens of a row.
        environments, rows: maximal number of environments, and of rows of each.
        whole: read all of ``common`` and ``own`` at every token, so that shapes do not change, and share nothing else.
            Otherwise only what was written is read, and value tokens, which no token may see, are not stored.
    """

    def __init__(self, model: TrajectoryTransformer, capacity: int, environments: int, rows: int, whole: bool) -> None:
        config, like, self._whole = model.config, model.pos_emb, whole
        shape = (config.n_layer, config.n_head, capacity, config.n_embd // config.n_head)
        self._common = StoredTokens(like, shape, environments)
        self._own = StoredTokens(like, shape, environments * rows)
        self._shared = StoredTokens(like, shape, 0 if whole else environments * rows)
        # For each row: the tokens of its present transition so far, and the numerical embedding of the newest token.
        self._transition = torch.zeros(
            environments * rows, config.transition_dim, dtype=torch.int64, device=like.device
        )
        self._added = like.new_zeros(environments * rows, 1, config.n_embd)
        torch._dynamo.mark_static_address(self._added)
        self._numbers = model.numbers
        # With numerical_dynamics, also what the transition before predicts of each dimension of the observation, and
        # the part of it that belongs to the newest token.
        self._predicted, self._prediction = self._added.new_zeros(0), torch.zeros_like(self._added)
        if model.numbers is not None and model.numbers.dynamics is not None:
            self._predicted = like.new_zeros(environments * rows, config.observation_dim, config.n_embd)
        torch._dynamo.mark_static_address(self._prediction)
        self._width, self._value = config.transition_dim, model.layout.value
        self._index = torch.arange(capacity, device=like.device)
        # Position of the newest token, its place among the row's own, and the position of the first of those.
        self.position, self._place, self._first = torch.zeros(3, 1, dtype=torch.int64, device=like.device)
        self._rows = 0  # in use
        self._written = 0  # number of each row's own tokens
        self._storing = True  # store the newest token
        self._read = [self._common, self._own]  # by the newest token

    def move(self, position: int, tokens: Tensor) -> None:
        """Prepare to append tokens (rows,) at a position."""
        self.position.fill_(position)
        self._place.fill_(self._written)
        if self._numbers is not None:
            self._append(self._numbers, tokens, position % self._width)
        self._storing = self._whole or position % self._width != self._value
        self._written += self._storing
        if not self._whole:
            self._own.rows, self._own.length = len(tokens), self._written
            self._read = [part for part in (self._common, self._shared, self._own) if part.length > 0]

    def positions(self, time: int) -> Tensor:
        assert time == 1
        return self.position

    def embed_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        return self._added[: len(tokens)]

    def predict_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        return self._prediction[: len(tokens)]

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
        if numbers.dynamics is not None:
            predicted, prediction = self._predicted[: len(tokens)], self._prediction[: len(tokens), 0]
            if place == self._width - 1:
                predicted.copy_(numbers.of_next_observation(transition))
            following = (place + 1) % self._width
            prediction.copy_(predicted[:, following]) if following < numbers.observed else prediction.zero_()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        assert dropout == 0.0
        if self._storing:
            keys, values = self._own.buffer[layer, :, : len(query)]
            keys.index_copy_(2, self._place, key)
            values.index_copy_(2, self._place, value)
        query = query / query.shape[3] ** 0.5
        scores = torch.cat([part.scores(layer, query) for part in self._read], dim=3)
        if self._whole:
            scores = scores.masked_fill(self._hidden(), -torch.inf)
        weights = scores.softmax(dim=-1).split([part.length for part in self._read], dim=3)
        sums = [part.sums(layer, weight) for part, weight in zip(self._read, weights, strict=True)]
        return functools.reduce(torch.add, sums)

    def _hidden(self) -> Tensor:
        """Mask (2 * capacity,) of the slots hidden from the newest token: unused ones, and value tokens."""
        own = self._index + self._first
        unused = torch.cat([self._index >= self._first, own > self.position])
        return unused | (torch.cat([self._index, own]) % self._width == self._value)

    def fill(self, memory: CausalMemory, environments: int, rows: Tensor) -> None:
        """Start over with the first tokens of the given rows; they are common if each environment has one row."""
        length, common = memory.cache.length, len(rows) == environments
        visible = torch.arange(length, device=rows.device)
        if self._whole:  # invisible slots are multiplied by 0, so they must be finite
            self._common.buffer.zero_()
            self._own.buffer.zero_()
        else:  # without a mask: its number of True would have to be read, which no CUDA graph can
            visible = visible[: length - length // self._width]
            visible = visible + visible // (self._width - 1)
            self._common.rows, self._common.length = environments, len(visible) if common else 0
            self._shared.length = 0
        stored, places = (self._common, torch.arange(environments, device=rows.device)) if common else (self._own, rows)
        for layer, pair in enumerate(memory.cache):
            for part, tokens in enumerate(pair):
                stored.buffer[layer, part, places, :, : len(visible)] = tokens[:, :, visible]
        if self._numbers is not None and (recent := memory.cache.recent) is not None:
            if (unfinished := recent[:, recent.shape[1] - length % self._width :]).shape[1] > 0:
                self._transition[rows, : unfinished.shape[1]] = unfinished
                self._added[rows] = self._numbers(unfinished)[:, -1:]
            if self._numbers.dynamics is not None:
                self._predicted.zero_()  # of the first transition, which follows none
                if recent.shape[1] >= self._width:
                    self._predicted[rows] = self._numbers.of_next_observation(recent[:, : self._width])
        self._first.fill_(length if common else 0)
        self._written, self._rows = 0 if common else len(visible), len(rows)

    def branch(self, rows: Tensor) -> None:
        """Copy each row into as many candidates, which are adjacent; row ``i`` of them comes from ``rows[i]``."""
        if self._whole or self._shared.length > 0 or self._written == 0:
            self.select(rows)
            return
        self._own, self._shared = self._shared, self._own
        self._shared.rows, self._shared.length, self._written = self._rows, self._written, 0
        self._move_numbers(rows)

    def select(self, rows: Tensor) -> None:
        """Move the given rows to the front."""
        own, before = self._own.buffer[:, :, : len(rows)], 0 if self._whole else self._shared.length
        if self._written > 0:
            own[..., before : before + self._written, :] = self._own.buffer[:, :, rows, :, : self._written]
        if before > 0:
            sources = rows // (self._rows // self._shared.rows)
            own[..., :before, :] = self._shared.buffer[:, :, sources, :, :before]
            self._shared.length = 0
        self._written += before
        self._move_numbers(rows)

    def _move_numbers(self, rows: Tensor) -> None:
        if self._numbers is not None:
            self._transition[: len(rows)] = self._transition[rows]
            self._added[: len(rows)] = self._added[rows]
            if self._numbers.dynamics is not None:
                self._predicted[: len(rows)] = self._predicted[rows]
        self._rows = len(rows)


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
        self._memory: SearchMemory | None = None
        self._compiled = compiled and _compiler_found(model.pos_emb.device)
        self._run: Callable[[Tensor, SearchMemory], Tensor] = self._forward
        if self._compiled:
            mode = "reduce-overhead" if model.pos_emb.device.type == "cuda" else None
            self._run = torch.compile(self._forward, fullgraph=True, dynamic=False, mode=mode)

    def _forward(self, tokens: Tensor, memory: SearchMemory) -> Tensor:
        """Logits (rows, vocabulary) after one new token of each row (rows,)."""
        hidden = self._model.hidden(tokens.unsqueeze(1), memory)
        return self._model.head(hidden, memory.position % self._transition_dim)[:, 0]

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> None:
        excess = max(0, tokens.shape[1] - (self._limit - 1))
        if self._memory is None or len(tokens) > self._room:
            self._room = len(tokens)
            self._memory = SearchMemory(self._model, self._limit, self._room, self._most_rows, self._compiled)
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
        self._environments, self._rows = environments, rows
        self._stride = self._most_rows if self._compiled else rows
        self._padded_environments = self._room if self._compiled else environments

    def _flat(self, rows: Tensor) -> Tensor:
        """Flat indices in memory of rows (environment, rows), or of the same rows (rows,) in each environment."""
        first = self._stride * torch.arange(self._environments, device=rows.device).unsqueeze(1)
        return (first + rows).flatten()

    def _pad(self, values: Tensor) -> Tensor:
        """Values (environment, rows) for each row of the memory in use, flattened; 0 for rows without a sequence."""
        missing = (0, self._stride - values.shape[1], 0, self._padded_environments - len(values))
        return F.pad(values, missing).flatten()

    @torch.inference_mode()
    def expand(self, candidates: int) -> None:
        index = torch.arange(self._rows, device=self._logits.device).repeat_interleave(candidates)
        self._select(index.expand(self._environments, -1), branch=True)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self._select(rows)

    def _select(self, rows: Tensor, branch: bool = False) -> None:
        assert self._memory is not None
        if rows.shape[1] > self._most_rows:
            raise ValueError(
                f"{rows.shape[1]} sequences exceed planner.beam_width * planner.n_expand = {self._most_rows}"
            )
        sources = self._flat(rows).view(rows.shape)
        self._lay_out(*rows.shape)
        move = self._memory.branch if branch else self._memory.select
        move(self._pad(sources))
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
        in_memory = logits.view(self._padded_environments, self._stride, -1)
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
