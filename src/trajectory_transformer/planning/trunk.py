"""Decoding for many beams: the model's weights laid out for it.

The same arithmetic as :meth:`TrajectoryTransformerModel.forward`, mostly for a single new token of each row. Shapes are
written with the letters of :mod:`.beam_memory`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.gpt import Block, TrajectoryTransformerModel
from .beam_memory import BeamMemory


@dataclass(frozen=True)
class LayerWeights:
    """One block's weights, transposed for ``x @ w``; the queries' include the attention's 1/√S."""

    norm1: tuple[Tensor, Tensor]
    project: tuple[Tensor, Tensor]  # bias (3E,), weight (E, 3E): query, key, value
    output: tuple[Tensor, Tensor]
    norm2: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]


def layer_weights(block: Block) -> LayerWeights:
    """Copies of a block's weights in the layout of :class:`LayerWeights`."""
    attention = block.attn
    scale = (attention.query.out_features // attention.n_head) ** -0.5
    linears = (attention.query, attention.key, attention.value)
    scales = (scale, 1.0, 1.0)
    bias = torch.cat([linear.bias * s for linear, s in zip(linears, scales, strict=True)])
    weight = torch.cat([linear.weight * s for linear, s in zip(linears, scales, strict=True)]).T.contiguous()
    return LayerWeights(
        norm1=(block.ln1.weight, block.ln1.bias),
        project=(bias, weight),
        output=(attention.proj.bias, attention.proj.weight.T.contiguous()),
        norm2=(block.ln2.weight, block.ln2.bias),
        up=(block.l1.bias, block.l1.weight.T.contiguous()),
        down=(block.l2.bias, block.l2.weight.T.contiguous()),
    )


class DecodingTrunk:
    """The model's weights as they are now, laid out for decoding one token at a time.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: TrajectoryTransformerModel) -> None:
        config = model.config
        self._layers = [layer_weights(block) for block in model.blocks if isinstance(block, Block)]
        self._activation = next(block.act for block in model.blocks if isinstance(block, Block))
        self._norm = (model.ln_f.weight, model.ln_f.bias)
        self._eps, self._width = config.layer_norm_eps, (config.n_embd,)
        self._positions = model.pos_emb[0]
        self._heads = model.head.weight.transpose(1, 2).contiguous()  # (transition_dim, E, V)
        by_dimension = model.tok_emb.weight[:-1].view(config.transition_dim, config.vocab_size, config.n_embd)
        stop = model.tok_emb.weight[-1].expand(config.transition_dim, 1, -1)
        self._embeddings = torch.cat([by_dimension, stop], dim=1)  # (transition_dim, V, E)
        self._value, self._mask = model.layout.value, model.mask

    def step(self, tokens: Tensor, position: int, memory: BeamMemory) -> Tensor:
        """Logits after one new token of each row.

        Args:
            tokens: (G·B·C,) integers in [0, vocab_size], in the memory's order of rows.
            position: where they stand in the window.
            memory: what they attend to; it learns of them.

        Returns:
            (G·B·C, V)
        """
        dimension = position % len(self._heads)
        store = dimension != self._value
        x = F.embedding(tokens, self._embeddings[dimension]) + self._positions[position]
        x = self._blocks(x, lambda layer, projected: memory.attend(layer, projected, store))
        memory.newest.length += store
        return self._logits(x, dimension)

    def encode(self, tokens: Tensor, position: int, memory: BeamMemory) -> Tensor:
        """Logits after the last of all of a plan's tokens, which a memory without a plan learns of at once.

        Args:
            tokens: (G·B, T) integers in [0, vocab_size].
            position: where the first of them stands in the window.
            memory: what they attend to besides each other.

        Returns:
            (G·B, V)
        """
        end = position + tokens.shape[1]
        dimensions = torch.arange(position, end, device=tokens.device) % len(self._heads)
        stored = dimensions != self._value
        mask = self._mask[position:end, position:end]
        x = F.embedding(tokens + dimensions * self._embeddings.shape[1], self._embeddings.flatten(0, 1))
        x = (x + self._positions[position:end]).flatten(0, 1)
        x = self._blocks(x, lambda layer, projected: memory.attend_whole(layer, projected, mask, stored))
        memory.newest.length = int(stored.sum())
        return self._logits(x.view(*tokens.shape, -1)[:, -1], (end - 1) % len(self._heads))

    def _blocks(self, x: Tensor, attend: Callable[[int, Tensor], Tensor]) -> Tensor:
        """(rows, E) through all layers; ``attend`` turns a layer's projections (rows, 3E) into (rows, E)."""
        for layer, weights in enumerate(self._layers):
            normed = torch.layer_norm(x, self._width, *weights.norm1, self._eps)
            seen = attend(layer, torch.addmm(weights.project[0], normed, weights.project[1]))
            x += torch.addmm(weights.output[0], seen, weights.output[1])
            normed = torch.layer_norm(x, self._width, *weights.norm2, self._eps)
            x += torch.addmm(
                weights.down[0], self._activation(torch.addmm(weights.up[0], normed, weights.up[1])), weights.down[1]
            )
        return x

    def _logits(self, x: Tensor, dimension: int) -> Tensor:
        return torch.layer_norm(x, self._width, *self._norm, self._eps) @ self._heads[dimension]
