"""One decoding step of the model for many beams: its weights laid out for it, and what attention remembers.

The same arithmetic as :meth:`TrajectoryTransformerModel.forward`, for a single new token of each row. Shapes are
written with these letters:

    G context    sequences that were encoded whole; one for each environment, shared by its beams
    B beam       sequences kept by the search, B for each context
    C candidate  continuations of a beam while its next actions are chosen; 1 otherwise
    H head, S head_dim, E n_embd = H·S, V vocabulary with the stop token
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..model.gpt import Block, TrajectoryTransformerModel
from ..model.memory import KeyValueCache


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


class Segment:
    """Keys and values (2, layer, rows, capacity, S) of the latest tokens of each row.

    Rows are in the order (context, head, …), so that one product serves all rows of a context.
    """

    def __init__(self, layers: int, rows: int, head_dim: int, capacity: int, like: Tensor) -> None:
        self._stored = like.new_empty(2, layers, rows, capacity, head_dim)
        self.length = 0

    def write(self, layer: int, keys_and_values: Tensor) -> None:
        """Put (2, rows, S) behind the others; :attr:`length` counts them once all layers have."""
        self._stored[:, layer, :, self.length] = keys_and_values

    def read(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first ``length`` tokens' keys and values, each (rows, length, S)."""
        keys, values = self._stored[:, layer, :, :length]
        return keys, values

    def select(self, rows: Tensor) -> None:
        """Gather rows; only what is filled is copied."""
        old, end = self._stored, self.length
        self._stored = old.new_empty(*old.shape[:2], len(rows), *old.shape[3:])
        self._stored[:, :, :, :end] = old[:, :, rows, :end]

    def append(self, other: "Segment", rows: Tensor) -> None:
        """Put the given rows of another segment behind these."""
        start, self.length = self.length, self.length + other.length
        self._stored[:, :, :, start : self.length] = other._stored[:, :, rows, : other.length]


class BeamMemory:
    """What beams remember, each thing once: the context for all beams, a beam's plan for all its candidates.

    Value tokens are hidden from all later positions, so none is stored.

    Args:
        context: keys and values of the contexts' tokens, value tokens left out.
        capacity: planned tokens to make room for.
    """

    def __init__(self, context: KeyValueCache, capacity: int) -> None:
        key = context[0][0]
        self.contexts, self.heads, _, self.head_dim = key.shape
        self._context = [(k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)) for k, v in context]
        self._layers, self._like, self._capacity = len(context), key, capacity
        self.beams, self.candidates = 1, 1
        self._plan = self._segment(1, capacity)
        self._branch: Segment | None = None

    @property
    def rows(self) -> int:
        """Rows of a context: beams times candidates."""
        return self.beams * self.candidates

    @property
    def newest(self) -> Segment:
        """Where new tokens are stored."""
        return self._plan if self._branch is None else self._branch

    def _segment(self, rows: int, capacity: int) -> Segment:
        return Segment(self._layers, self.contexts * self.heads * rows, self.head_dim, capacity, self._like)

    def expand(self, candidates: int, capacity: int) -> None:
        """Give each beam that many candidates, which will store up to ``capacity`` tokens of their own."""
        self.candidates = candidates
        self._branch = self._segment(self.rows, capacity)

    def keep(self, rows: Tensor) -> None:
        """Make candidates the new beams.

        Args:
            rows: (G, new beams) indices of candidates, each ``beam * candidates + candidate``.
        """
        assert self._branch is not None
        groups = torch.arange(self.contexts * self.heads, device=rows.device).unsqueeze(1)
        each_head = rows.repeat_interleave(self.heads, dim=0)
        self._plan.select((groups * self.beams + each_head // self.candidates).flatten())
        self._plan.append(self._branch, (groups * self.rows + each_head).flatten())
        self.beams, self.candidates, self._branch = rows.shape[1], 1, None

    def attend(self, layer: int, projected: Tensor, store: bool) -> Tensor:
        """Attention of one new token of each row to all that it may see.

        Args:
            projected: (G·B·C, 3E) queries (scaled), keys and values.
            store: whether later tokens may see this one.

        Returns:
            (G·B·C, E)
        """
        groups, rows, size = self.contexts * self.heads, self.rows, self.head_dim
        split = projected.view(self.contexts, rows, 3, self.heads, size).permute(2, 0, 3, 1, 4).contiguous()
        query, keys_and_values = split[0].view(groups, rows, size), split[1:].view(2, -1, size)
        if store:
            self.newest.write(layer, keys_and_values)
        context_keys, context_values = self._context[layer]
        scores = [torch.bmm(query, context_keys)]
        parts: list[tuple[Tensor, int]] = []
        for segment, shared in ((self._plan, self.candidates), (self._branch, 1)):
            length = 0 if segment is None else segment.length + (store and segment is self.newest)
            if segment is None or length == 0:
                continue
            keys, values = segment.read(layer, length)
            scores.append(torch.bmm(query.view(-1, shared, size), keys.transpose(1, 2)).view(groups, rows, length))
            parts.append((values, shared))
        weights = torch.cat(scores, dim=2).softmax(dim=2)
        end = context_values.shape[1]
        seen = torch.bmm(weights[:, :, :end], context_values)
        for values, shared in parts:
            start, end = end, end + values.shape[1]
            own = weights[:, :, start:end].reshape(-1, shared, end - start)
            seen += torch.bmm(own, values).view(groups, rows, size)
        return seen.view(self.contexts, self.heads, rows, size).transpose(1, 2).reshape(-1, self.heads * size)


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
        self._value = model.layout.value

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
        for layer, weights in enumerate(self._layers):
            normed = torch.layer_norm(x, self._width, *weights.norm1, self._eps)
            seen = memory.attend(layer, torch.addmm(weights.project[0], normed, weights.project[1]), store)
            x += torch.addmm(weights.output[0], seen, weights.output[1])
            normed = torch.layer_norm(x, self._width, *weights.norm2, self._eps)
            x += torch.addmm(
                weights.down[0], self._activation(torch.addmm(weights.up[0], normed, weights.up[1])), weights.down[1]
            )
        memory.newest.length += store
        return torch.layer_norm(x, self._width, *self._norm, self._eps) @ self._heads[dimension]
