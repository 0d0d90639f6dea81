"""Sampling of the next token: the original's filters, and draws by given uniform numbers."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Choice:
    """Filters and temperature of a draw of tokens."""

    k: int | None = None  # keep the k most likely tokens (:func:`filter_top_k`); 1: take the most likely one
    cdf: float | None = None  # drop the least likely tokens with this total probability (:func:`filter_cdf`)
    temperature: float = 1.0  # above 0; logits are divided by it


def filter_cdf(logits: Tensor, threshold: float) -> Tensor:
    """Set the least likely tokens in logits (..., vocabulary) to -1000 (the original's filter; not nucleus sampling).

    Tokens are dropped, least likely first, while their total probability is below ``threshold``, in [0, 1), so roughly
    the top ``1 - threshold`` remains; tokens as likely as the last one dropped are dropped too. As in the original, the
    cutoff is at least the lowest probability, so if all tokens are equally likely, all get -1000 and stay equal.
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
    """Set all but the ``k`` ≥ 1 most likely tokens in logits (..., vocabulary) to -inf.

    Tokens as likely as the k-th are kept too. If ``k`` is the vocabulary size or more, nothing is dropped.
    """
    if k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, -torch.inf)


def draw(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Sample tokens (...) int64 from logits (..., vocabulary) by inverting each row's cumulative distribution.

    The numbers in [0, 1) of ``uniforms`` (...) determine the tokens, independently of other rows of the batch.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    # Scaled by the last entry, which is not exactly 1, so that a token of probability 0 is never drawn.
    return (cumulative <= (uniforms * cumulative[..., -1]).unsqueeze(-1)).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def choose(logits: Tensor, uniforms: Tensor, choice: Choice) -> Tensor:
    """Filter logits, in the original's order (the cumulative filter, then top-k), and :func:`draw` tokens."""
    if choice.k == 1:
        return logits.argmax(dim=-1)
    logits = logits / choice.temperature
    if choice.cdf is not None:
        logits = filter_cdf(logits, choice.cdf)
    if choice.k is not None:
        logits = filter_top_k(logits, choice.k)
    return draw(logits, uniforms)
