"""The training loss: cross-entropy of the next token, weighted by dimension, masked, averaged over all tokens."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .config import TransformerConfig


def token_weights(config: TransformerConfig, start: int, time: int, device: torch.device | str = "cpu") -> Tensor:
    """Loss weights (time,) float32 of the tokens that the positions predict; those of observations are 1.

    The first position is ``start``; it predicts dimension (start + 1) mod transition_dim.
    """
    layout = config.layout
    weights = torch.ones(layout.transition_dim, device=device)  # made there, because copying would wait for a GPU
    weights[layout.action].fill_(float(config.action_weight))
    weights[layout.reward].fill_(float(config.reward_weight))
    weights[layout.value].fill_(float(config.value_weight))
    return weights[torch.arange(start + 1, start + 1 + time, device=device) % layout.transition_dim]


def weighted_cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, mask: Tensor | None) -> Tensor:
    """Sum of weight × mask × cross-entropy over all tokens, divided by the number of tokens, including masked ones.

    The divisor is the original's (``loss.mean()``): a batch with much padding has a smaller loss.

    Args:
        logits: (batch, time, vocab_size + 1).
        targets: (batch, time) integers in [0, vocab_size].
        weights: (time,) loss weights of the predicted dimensions.
        mask: (batch, time) weights in [0, 1]; None: all 1.

    Returns:
        A scalar, in nats.
    """
    nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets) * weights
    return (nats if mask is None else nats * mask).mean()
