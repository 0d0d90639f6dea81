"""Attention memories: they store keys and values of the trunk's blocks and compute their attention."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from .attention import causal_attention, causal_attention_without_mask
from .numerical_embedding import NumericalEmbedding


class AttentionMemory(Protocol):
    """The interface through which every block computes attention from its queries, keys and values."""

    def positions(self, time: int) -> Tensor:
        """Positions (time,) of the new tokens; ValueError if they go past ``block_size``."""
        ...

    def embed_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        """Numerical embeddings (batch, time, n_embd) of new tokens (batch, time), given the tokens before them."""
        ...

    def predict_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        """Features (batch, time, n_embd) to add to the last block's output; called after :meth:`embed_numbers`."""
        ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        """Attention outputs of the new tokens over all visible tokens, in the block with index ``layer``.

        Query, key, value and the result are (batch, head, time, head_dim); ``dropout`` is the probability of dropping
        an attention weight, 0 outside training.
        """
        ...


class KeyValueCache:
    """Keys and values of all tokens so far, one pair for each layer: ``cache[layer] == (key, value)``.

    Extending it makes a new cache and does not change this one, so the same past may be continued in several ways.

    Args:
        layers: (key, value) pairs, each (batch, head, time, head_dim).
        recent: (batch, n) newest tokens, for models with a numerical embedding: those of the last transition if it is
            incomplete, and, with ``numerical_dynamics``, those of the last complete transition before them.
    """

    def __init__(self, layers: tuple[tuple[Tensor, Tensor], ...] = (), recent: Tensor | None = None) -> None:
        self.layers, self.recent = layers, recent

    @property
    def length(self) -> int:
        """Number of tokens stored."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        return self.layers[layer]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.layers)

    def select(self, rows: Tensor) -> "KeyValueCache":
        """A cache of the given rows (new batch,) of the batch, in that order; rows may repeat."""
        recent = None if self.recent is None else self.recent[rows]
        return KeyValueCache(tuple((key[rows], value[rows]) for key, value in self.layers), recent)


class CausalMemory:
    """Attention over cached and new tokens under the model's causal mask.

    Args:
        mask: (block_size, block_size) bool, True where the row's position may attend to the column's.
        past: keys and values of earlier tokens, or None.
        keep: collect keys and values into :attr:`cache`.
        keep_weights: compute the attention weights explicitly and collect them into :attr:`weights`.
        in_c: compute attention in C (:func:`~.attention.causal_attention`) when gradients are needed, on a CPU in
            float32.
        blocks_in_c: let blocks be computed in C as a whole (:mod:`.block`) when gradients are needed.
        hides_columns: the mask is causal, but for columns that it hides from all rows.
    """

    def __init__(
        self, mask: Tensor, past: KeyValueCache | None, keep: bool, keep_weights: bool, in_c: bool = False,
        blocks_in_c: bool = False, hides_columns: bool = False,
    ) -> None:  # fmt: skip
        self._mask, self._past, self._keep, self._keep_weights, self._in_c = mask, past, keep, keep_weights, in_c
        self._blocks_in_c, self._hides_columns = blocks_in_c, hides_columns
        self._layers: list[tuple[Tensor, Tensor]] = []
        self.weights: list[Tensor] = []
        self._recent: Tensor | None = None

    @property
    def length(self) -> int:
        return self._past.length if self._past is not None else 0

    @property
    def cache(self) -> KeyValueCache:
        return KeyValueCache(tuple(self._layers), self._recent)

    def positions(self, time: int) -> Tensor:
        end = self.length + time
        if end > len(self._mask):
            raise ValueError(f"{end} tokens exceed block_size={len(self._mask)}")
        return torch.arange(self.length, end, device=self._mask.device)

    def embed_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        before = None if self._past is None else self._past.recent
        self._known = tokens if before is None else torch.cat([before, tokens], dim=1)
        time, width = self._known.shape[1], len(embedding.values)
        kept = time % width + (width if embedding.dynamics is not None and time >= width else 0)
        self._recent = self._known[:, time - kept :] if kept else None
        return embedding(self._known)[:, -tokens.shape[1] :]

    def predict_numbers(self, embedding: NumericalEmbedding, tokens: Tensor) -> Tensor:
        return embedding.predictions(self._known)[:, -tokens.shape[1] :]

    def mask_in_c(self, time: int) -> Tensor | None:
        """The mask (time, time), if the block of these tokens may be computed in C and need not :meth:`attend`."""
        alone = self._past is None and not self._keep and not self._keep_weights
        return self._mask[:time, :time] if self._blocks_in_c and alone and torch.is_grad_enabled() else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
        if self._past is not None and len(self._past):
            past_key, past_value = self._past[layer]
            key, value = torch.cat([past_key, key], dim=2), torch.cat([past_value, value], dim=2)
        if self._keep:
            self._layers.append((key, value))
        total = key.shape[2]
        mask = self._mask[total - query.shape[2] : total, :total]
        in_c = self._in_c and torch.is_grad_enabled() and total == query.shape[2] and not self._keep_weights
        if in_c and query.device.type == "cpu" and query.dtype == torch.float32:
            return causal_attention(query, key, value, mask, dropout)
        flash = query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)
        if self._hides_columns and flash and total == query.shape[2] and not self._keep_weights:
            return causal_attention_without_mask(query, key, value, mask[-1], dropout)
        if not self._keep_weights:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        self.weights.append(weights)
        return F.dropout(weights, dropout, training=dropout > 0) @ value
