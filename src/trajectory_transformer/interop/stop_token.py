"""Give weights without a stop token one that is never predicted, changing no other number that they compute.

The faster rewrite has V logits per position and here there are V + 1, by bias-free heads on normalised states. Such a
state is ``h = g * n + b`` with the norm's weight g and bias b, and the entries of n add up to 0. So the head
``k / g`` has the constant logit ``k * sum(b / g)``, whatever n is: that makes a stop token of logit -1000, and gives
the biases of the rewrite's variant with one shared head a place.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError

STOP_LOGIT = -1000.0
SMALLEST_MEAN = 0.01  # of b / g: below it, constants would need heads that rounding errors drown in


def with_stop_token(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The rewrite's weights under our names and shapes.

    Args:
        weights: the rewrite's, renamed; ``head.weight`` (transition_dim, V, n_embd), or (V, n_embd) with ``head.bias``.
        path: where they come from, for messages.

    Raises:
        UserError: a tensor is missing or has other axes, or the final norm hides a dimension.
    """
    weights = dict(weights)
    try:
        head, tokens = weights["head.weight"], weights["tok_emb.weight"]
        gain, shift = weights["ln_f.weight"].double(), weights["ln_f.bias"].double()
        bias = weights.pop("head.bias", torch.zeros(head.shape[-2]))
        transition_dim = len(tokens) // len(bias)
        heads = head.double().expand(transition_dim, len(bias), len(gain))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, TypeError):
        raise UserError(f"'{path}' looks like the faster rewrite's, but its tensors do not fit together") from None
    if gain.abs().min() < 1e-6:
        raise UserError(f"'{path}': the final norm has a weight of 0, so no stop token can be added")
    mean = (shift / gain).mean()
    if mean.abs() < SMALLEST_MEAN:  # shift the states along g by 1; the heads undo it below
        weights["ln_f.bias"] = (shift + gain).to(head.dtype)
        constants = bias.double() - (heads * gain).sum(dim=-1)
        mean = mean + 1
    else:
        constants = bias.double().expand(heads.shape[:-1])
    unit = 1 / (gain * mean * len(gain))  # the head of constant logit 1
    stop = (STOP_LOGIT * unit).expand(transition_dim, 1, -1)
    weights["head.weight"] = torch.cat([heads + constants.unsqueeze(-1) * unit, stop], dim=1).to(head.dtype)
    weights["tok_emb.weight"] = torch.cat([tokens, torch.zeros_like(tokens[:1])])  # never an input either
    return weights
