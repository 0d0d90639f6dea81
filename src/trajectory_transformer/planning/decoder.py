"""What the search asks of a sequence model, and the Transformer's answer: beams on a cache that share their context."""

from typing import Protocol

import torch
from torch import Tensor

from ..model.gpt import TrajectoryTransformerModel
from ..model.memory import CausalMemory


class BeamDecoder(Protocol):
    """Next-token logits for beams of sequences, in several environments at once."""

    def prefill(self, tokens: Tensor) -> Tensor:
        """Begin anew with one sequence for each environment.

        Args:
            tokens: (environment, time) integers.

        Returns:
            (environment, 1, vocabulary) logits of the next token.
        """
        ...

    def select(self, rows: Tensor) -> None:
        """Keep, repeat or reorder sequences within each environment.

        Args:
            rows: (environment, new rows) int64 indices into the present rows.
        """
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append one token to each sequence.

        Args:
            tokens: (environment, rows) integers.

        Returns:
            (environment, rows, vocabulary) logits of the next token.
        """
        ...


class BeamMemory:
    """Keys and values of planned tokens, one set for each beam, behind a context that beams share.

    Value tokens are hidden from all later positions, so none is stored. Shapes: the context is
    (contexts, head, context time, head_dim) for each layer; beams lie contiguously, ``rows // contexts`` to a context.

    Args:
        context: (key, value) of each layer, without value tokens.
        length: tokens of the context, value tokens included: the position of the next one.
        capacity: planned tokens to make room for.
    """

    def __init__(self, context: list[tuple[Tensor, Tensor]], length: int, capacity: int) -> None:
        self._context, self._length = context, length
        self._stored, self.store = 0, True
        key = context[0][0]
        self._plan = key.new_empty(len(context), 2, key.shape[0], key.shape[1], capacity, key.shape[3])

    @property
    def length(self) -> int:
        return self._length

    @property
    def num_contexts(self) -> int:
        return len(self._context[0][0])

    def advance(self) -> None:
        """Count the token that all layers have just seen."""
        self._length += 1
        self._stored += self.store

    def select(self, rows: Tensor, shared: bool) -> None:
        """Gather beams; contexts too unless they stay ``shared``.

        Args:
            rows: (new rows,) indices into the beams of all contexts.
            shared: every beam stays with its context, in contiguous order.
        """
        plan = self._plan
        self._plan = plan.new_empty(*plan.shape[:2], len(rows), *plan.shape[3:])
        self._plan[..., : self._stored, :] = plan[:, :, rows, :, : self._stored]
        if not shared:
            self._context = [(key[rows], value[rows]) for key, value in self._context]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention of one new token of each beam; see :class:`~..model.memory.AttentionMemory`."""
        rows, heads, _, size = query.shape
        context_key, context_value = self._context[layer]
        contexts = self.num_contexts
        end = self._stored
        if self.store:
            self._plan[layer, 0, :, :, end] = key[:, :, 0]
            self._plan[layer, 1, :, :, end] = value[:, :, 0]
            end += 1
        plan_key, plan_value = self._plan[layer, 0, :, :, :end], self._plan[layer, 1, :, :, :end]
        scaled = query * size**-0.5
        grouped = scaled.view(contexts, rows // contexts, heads, size).transpose(1, 2)
        context_scores = (grouped @ context_key.transpose(2, 3)).transpose(1, 2).reshape(rows, heads, 1, -1)
        weights = torch.cat([context_scores, scaled @ plan_key.transpose(2, 3)], dim=3).softmax(dim=3)
        split = context_key.shape[2]
        context_weights = weights[..., :split].view(contexts, rows // contexts, heads, split).transpose(1, 2)
        from_context = (context_weights @ context_value).transpose(1, 2).reshape(rows, heads, 1, size)
        return from_context + weights[..., split:] @ plan_value


class TransformerDecoder:
    """:class:`BeamDecoder` on a Trajectory Transformer.

    Args:
        model: in evaluation mode.
        window: transitions that the model may see at once.
        sliding: what happens when a sequence grows past ``window``. True: it is cropped by whole transitions and
            positions start at 0 again, at every transition, as in the original; this computes the window anew for each
            beam. False: it must not grow past it.
    """

    def __init__(self, model: TrajectoryTransformerModel, window: int, sliding: bool) -> None:
        self._model, self._sliding = model, sliding
        self._transition_dim = model.config.transition_dim
        self._limit = window * self._transition_dim

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> Tensor:
        self._history = tokens.unsqueeze(1)
        self._shape = (len(tokens), 1)
        return self._prime(tokens).unsqueeze(1)

    def _prime(self, tokens: Tensor) -> Tensor:
        """Encode (row, time) tokens, cropped to the window, as the context; the logits (row, vocabulary) after them."""
        excess = max(0, tokens.shape[1] - (self._limit - 1))
        tokens = tokens[:, -(-excess // self._transition_dim) * self._transition_dim :]
        memory = CausalMemory(self._model.mask, past=None, keep=True, keep_weights=False)
        hidden = self._model.hidden(tokens, memory)
        time = tokens.shape[1]
        kept = torch.arange(time, device=tokens.device) % self._transition_dim != self._model.layout.value
        context = [(key[:, :, kept], value[:, :, kept]) for key, value in memory.cache]
        self._memory = BeamMemory(context, time, capacity=self._limit - time)
        return self._model.head(hidden[:, -1:], (time - 1) % self._transition_dim)[:, 0]

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        environments, old = self._shape
        self._shape = (environments, rows.shape[1])
        flat = (rows + torch.arange(environments, device=rows.device).unsqueeze(1) * old).flatten()
        # Contexts stay shared while there is one for each environment.
        self._memory.select(flat, shared=self._memory.num_contexts == environments)
        if self._sliding:
            self._history = self._history.flatten(0, 1)[flat].view(*self._shape, -1)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        flat, memory = tokens.reshape(-1, 1), self._memory
        if self._sliding:
            self._history = torch.cat([self._history, tokens.unsqueeze(2)], dim=2)
            if memory.length + 1 == self._limit:
                return self._prime(self._history.flatten(0, 1)).view(*self._shape, -1)
        position = memory.length % self._transition_dim
        memory.store = position != self._model.layout.value
        logits = self._model.head(self._model.hidden(flat, memory), position)
        memory.advance()
        return logits.view(*self._shape, -1)
