"""What the search asks of a sequence model, and the Transformer's answer."""

from typing import Protocol

import torch
from torch import Tensor

from ..model.gpt import TrajectoryTransformerModel
from ..model.memory import CausalMemory, KeyValueCache
from .beam_memory import BeamMemory
from .trunk import DecodingTrunk


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
            positions start at 0 again, at every transition, as in the original; the window is then encoded anew, what
            beams share of it once. False: it must not grow past it.
    """

    def __init__(self, model: TrajectoryTransformerModel, window: int, sliding: bool) -> None:
        self._model, self._sliding = model, sliding
        self._transition_dim = model.config.transition_dim
        self._limit = window * self._transition_dim
        with torch.inference_mode():
            self._trunk = DecodingTrunk(model)

    @torch.inference_mode()
    def prefill(self, tokens: Tensor) -> Tensor:
        excess = max(0, tokens.shape[1] - (self._limit - 1))
        self._prefix = tokens[:, -(-excess // self._transition_dim) * self._transition_dim :]
        self._plan = tokens.new_empty(len(tokens), 1, 0)
        return self._encode_window()

    def _encode_window(self) -> Tensor:
        """Encode prefix and plan anew, from position 0; the logits (environment, beam, vocabulary) after them.

        What is left of the prefix is encoded once for all beams.
        """
        environments, beams, planned = self._plan.shape
        shared = self._prefix.shape[1]
        context, logits = self._encode_prefix()
        self._position = shared + planned
        self._memory = BeamMemory(context, self._limit - shared, beams)
        if planned:
            logits = self._trunk.encode(self._plan.flatten(0, 1), shared, self._memory)
        return logits.view(environments, beams, -1)

    def _encode_prefix(self) -> tuple[KeyValueCache, Tensor]:
        """Keys and values of the prefix without its value tokens, and the logits (environment, vocabulary) after it."""
        config, (environments, time) = self._model.config, self._prefix.shape
        if time == 0:  # the window holds nothing but plan
            empty = self._model.pos_emb.new_empty(environments, config.n_head, 0, config.n_embd // config.n_head)
            return KeyValueCache(((empty, empty),) * config.n_layer), empty
        causal = CausalMemory(self._model.mask, past=None, keep=True, keep_weights=False)
        hidden = self._model.hidden(self._prefix, causal)
        stored = torch.arange(time, device=hidden.device) % self._transition_dim != self._model.layout.value
        context = KeyValueCache(tuple((key[:, :, stored], value[:, :, stored]) for key, value in causal.cache))
        return context, self._model.head(hidden[:, -1:], (time - 1) % self._transition_dim)

    def _slide(self) -> None:
        """Crop one transition, from the prefix as long as there is one."""
        left = max(0, self._prefix.shape[1] - self._transition_dim)
        cropped = self._prefix.shape[1] - left
        self._prefix = self._prefix[:, cropped:]
        self._plan = self._plan[:, :, self._transition_dim - cropped :]

    @torch.inference_mode()
    def expand(self, candidates: int) -> None:
        self._memory.expand(candidates, capacity=self._model.layout.action_dim + 1)  # actions and reward
        if self._sliding:
            self._plan = self._plan.repeat_interleave(candidates, dim=1)

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        self._memory.keep(rows)
        if self._sliding:
            self._plan = self._plan.gather(1, rows.unsqueeze(2).expand(-1, -1, self._plan.shape[2]))

    @torch.inference_mode()
    def step(self, tokens: Tensor) -> Tensor:
        if self._sliding:
            self._plan = torch.cat([self._plan, tokens.unsqueeze(2)], dim=2)
            if self._position + 1 == self._limit:
                self._slide()
                return self._encode_window()
        logits = self._trunk.step(tokens.flatten(), self._position, self._memory)
        self._position += 1
        return logits.view(*tokens.shape, -1)
