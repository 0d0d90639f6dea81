"""Choosing the next token: the original's filters, and draws from explicit uniform numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """Filters and temperature of a draw of tokens."""

    k: int | None = None  # keep that many of the most likely tokens (:func:`filter_top_k`); 1: the most likely one
    cdf: float | None = None  # drop the least likely ones of that mass (:func:`filter_cdf`)
    temperature: float = 1.0  # above 0; logits are divided by it


GREEDY = Choice(k=1)


def filter_cdf(logits: Tensor, threshold: float) -> Tensor:
    """Put the least likely tokens of logits (..., vocabulary) at -1000 (the original's filter; not nucleus sampling).

    They are dropped as long as their mass stays below ``threshold``, in [0, 1), so roughly the top ``1 - threshold`` of
    the mass remains; tokens as likely as the last one dropped go too. Where all tokens are equally likely nothing would
    remain, and all are kept.
    """
    probabilities = logits.softmax(dim=-1)
    ascending = sort_ascending(probabilities)
    num_dropped = (ascending.cumsum(dim=-1) < threshold).sum(dim=-1, keepdim=True)
    cutoff = ascending.gather(-1, (num_dropped - 1).clamp(min=0))
    return logits.masked_fill(probabilities <= cutoff, -1000.0)


def sort_ascending(values: Tensor) -> Tensor:
    """``values`` sorted along the last dimension; on the CPU by NumPy, whose sort is vectorised (8 times faster)."""
    if values.device.type != "cpu":
        return values.sort(dim=-1).values
    return torch.from_numpy(np.sort(values.numpy(), axis=-1))


def filter_top_k(logits: Tensor, k: int) -> Tensor:
    """Put all but the ``k`` ≥ 1 most likely tokens, and those as likely as the last of them, at -inf.

    Of logits (..., vocabulary); of ``k`` beyond the vocabulary nothing is dropped.
    """
    if k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample tokens (...) int64 from logits (..., vocabulary) by inverting each row's cumulative distribution.

    The same number in [0, 1) of ``uniforms`` (...) draws the same token, whatever else is in the batch.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the last entry, which rounding leaves slightly off 1: a token of no mass is never drawn.
    return (cumulative <= (uniforms * cumulative[..., -1]).unsqueeze(-1)).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def choose(logits: Tensor, uniforms: Tensor, choice: Choice) -> Tensor:
    """Filter and :func:`draw`, in the original's order: the cumulative filter first, then top-k."""
    if choice.k == 1:
        return logits.argmax(dim=-1)
    logits = logits / choice.temperature
    if choice.cdf is not None:
        logits = filter_cdf(logits, choice.cdf)
    if choice.k is not None:
        logits = filter_top_k(logits, choice.k)
    return draw(logits, uniforms)
