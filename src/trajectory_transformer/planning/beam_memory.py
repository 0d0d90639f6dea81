"""What attention remembers while beams grow: each thing once.

Shapes are written with these letters:

    G context    sequences that were encoded whole; one for each environment, shared by its beams
    B beam       sequences kept by the search, B for each context
    C candidate  continuations of a beam while its next actions are chosen; 1 otherwise
    T time       tokens that are encoded together
    H head, S head_dim, E n_embd = H·S, V vocabulary with the stop token
"""

import torch
from torch import Tensor

from ..model.memory import KeyValueCache


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

    def write_whole(self, layer: int, keys_and_values: Tensor) -> None:
        """Fill an empty segment with (2, rows, tokens, S)."""
        self._stored[:, layer, :, : keys_and_values.shape[2]] = keys_and_values

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
        beams: of each context.
    """

    def __init__(self, context: KeyValueCache, capacity: int, beams: int = 1) -> None:
        key = context[0][0]
        self.contexts, self.heads, _, self.head_dim = key.shape
        self._context = [(k.flatten(0, 1).transpose(1, 2), v.flatten(0, 1)) for k, v in context]
        self._layers, self._like = len(context), key
        self.beams, self.candidates = beams, 1
        self._plan = self._segment(beams, capacity)
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

    def attend_whole(self, layer: int, projected: Tensor, mask: Tensor, stored: Tensor) -> Tensor:
        """Attention of all of a plan's tokens at once, to the context and to each other, while nothing is planned yet.

        Args:
            projected: (G·B·T, 3E) queries (scaled), keys and values of T tokens of each beam.
            mask: (T, T) bool, True where the row's token may see the column's.
            stored: (T,) bool, which of them later tokens may see.

        Returns:
            (G·B·T, E)
        """
        groups, size, time = self.contexts * self.heads, self.head_dim, len(mask)
        split = (
            projected.view(self.contexts, self.beams * time, 3, self.heads, size).permute(2, 0, 3, 1, 4).contiguous()
        )
        each_beam = split.view(3, groups * self.beams, time, size)
        self._plan.write_whole(layer, each_beam[1:, :, stored])
        context_keys, context_values = self._context[layer]
        query, key, value = each_beam
        from_plan = torch.bmm(query, key.transpose(1, 2)).masked_fill(~mask, -torch.inf)
        scores = [torch.bmm(split[0].view(groups, -1, size), context_keys), from_plan.view(groups, -1, time)]
        weights = torch.cat(scores, dim=2).softmax(dim=2)
        end = context_values.shape[1]
        seen = torch.bmm(weights[:, :, :end], context_values)
        seen += torch.bmm(weights[:, :, end:].reshape(-1, time, time), value).view(groups, -1, size)
        return seen.view(self.contexts, self.heads, -1, size).transpose(1, 2).reshape(-1, self.heads * size)
