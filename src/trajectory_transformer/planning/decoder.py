"""What the search asks of a sequence model, and the Transformer's answer."""

from typing import Protocol

import torch
from torch import Tensor

from ..model.gpt import TrajectoryTransformerModel
from ..model.memory import CausalMemory, KeyValueCache
from .trunk import BeamMemory, DecodingTrunk


class BeamDecoder(Protocol):
    """Next-token logits for beams of sequences, in several environments at once.

    Sequences branch and are pruned in turn: ``expand``, some ``step``, ``keep``, some ``step``, ``expand``, …
    """

    def prefill(self, tokens: Tensor) -> Tensor:
        """Begin anew with one sequence for each environment.

        Args:
            tokens: (environment, time) integers.

        Returns:
            (environment, 1, vocabulary) logits of the next token.
        """
        ...

    def expand(self, candidates: int) -> None:
        """Continue each sequence in several ways: candidate ``c`` of row ``b`` becomes row ``b * candidates + c``."""
        ...

    def keep(self, rows: Tensor) -> None:
        """Prune: keep these rows, in this order; a row may be kept more than once.

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


class TransformerDecoder:
    """:class:`BeamDecoder` on a Trajectory Transformer.

    Args:
        model: in evaluation mode; build a new decoder after its weights change.
        window: transitions that the model may see at once.
        sliding: what happens when a sequence grows past ``window``. True: it is cropped by whole transitions and
            positions start at 0 again, at every transition, as in the original; the window is then encoded anew for
            each beam. False: it must not grow past it.
    """

    def __init__(self, model: TrajectoryTransformerModel, window: int, sliding: bool) -> None:
        self._model, self._sliding = model, sliding
        self._transition_dim = model.config.transition_dim
        self._limit = window * self._transition_dim
        with torch.inference_mode():
            self._trunk = DecodingTrunk(model)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> Tensor:
        self._environments, self._rows = len(tokens), 1
        self._history = tokens
        return self._prime(tokens).unsqueeze(1)

    def _prime(self, tokens: Tensor) -> Tensor:
        """Encode (row, time) tokens, cropped to the window, as contexts; the logits (row, vocabulary) after them."""
        excess = max(0, tokens.shape[1] - (self._limit - 1))
        tokens = tokens[:, -(-excess // self._transition_dim) * self._transition_dim :]
        causal = CausalMemory(self._model.mask, past=None, keep=True, keep_weights=False)
        hidden = self._model.hidden(tokens, causal)
        self._position = tokens.shape[1]
        stored = torch.arange(self._position, device=tokens.device) % self._transition_dim != self._model.layout.value
        context = KeyValueCache(tuple((key[:, :, stored], value[:, :, stored]) for key, value in causal.cache))
        self._memory = BeamMemory(context, capacity=self._limit - self._position)
        return self._model.head(hidden[:, -1:], (self._position - 1) % self._transition_dim)[:, 0]

    @torch.inference_mode()
    def expand(self, candidates: int) -> None:
        self._rows *= candidates
        self._memory.expand(candidates, capacity=self._model.layout.action_dim + 1)  # actions and reward
        if self._sliding:
            self._history = self._history.repeat_interleave(candidates, dim=0)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        if self._sliding:
            first = torch.arange(self._environments, device=rows.device).unsqueeze(1) * self._rows
            self._history = self._history[(first + rows).flatten()]
        self._rows = rows.shape[1]
        # Where each beam has a context of its own, the window is full: the next step encodes it anew.
        if self._memory.contexts == self._environments:
            self._memory.keep(rows)

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        shape = tokens.shape
        if self._sliding:
            self._history = torch.cat([self._history, tokens.reshape(-1, 1)], dim=1)
            if self._position + 1 == self._limit:
                return self._prime(self._history).view(*shape, -1)
        logits = self._trunk.step(tokens.flatten(), self._position, self._memory)
        self._position += 1
        return logits.view(*shape, -1)
