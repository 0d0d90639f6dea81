"""Loss and accuracy of each kind of token."""

from collections.abc import Callable, Sequence
from typing import Self

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import override

from ..layout import TOKEN_KINDS, TransitionLayout


class TokenMetrics(torchmetrics.Metric):
    """Cross-entropy in nats and accuracy of observation, action, reward and value tokens, unweighted; perplexity.

    Masked tokens count nowhere. Sums are added up over batches and, under DDP, over processes.

    Args:
        layout: which positions are of which kind.
    """

    full_state_update = False
    nats: Tensor
    correct: Tensor
    count: Tensor
    loss: Tensor
    windows: Tensor
    kinds: Tensor

    def __init__(self, layout: TransitionLayout) -> None:
        super().__init__()
        for name in ("nats", "correct", "count"):
            self.add_state(name, torch.zeros(len(TOKEN_KINDS), dtype=torch.float32), dist_reduce_fx="sum")
        for name in ("loss", "windows"):
            self.add_state(name, torch.zeros((), dtype=torch.float32), dist_reduce_fx="sum")
        kinds = torch.zeros(layout.transition_dim, dtype=torch.long)
        for index, columns in enumerate(layout.kind_slices().values()):
            kinds[columns] = index
        self.register_buffer("kinds", kinds, persistent=False)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Follow the model to its device but not to its precision: sums in bfloat16 would stop growing at 256."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
        return self

    @torch.no_grad()
    def update(self, loss: Tensor, logits: Tensor, targets: Tensor, mask: Tensor) -> None:
        """Add a batch whose windows begin at a transition's first dimension.

        Args:
            loss: scalar that was (or would be) minimised.
            logits: (batch, time, vocabulary); position p predicts dimension (p + 1) mod transition_dim.
            targets: (batch, time) integers.
            mask: (batch, time), 0 where a token does not count.
        """
        valid = (mask > 0).float()
        nats = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view_as(valid)
        correct = (logits.argmax(-1) == targets).float()
        kind = self.kinds[torch.arange(1, targets.shape[1] + 1, device=self.kinds.device) % len(self.kinds)]
        self.nats.index_add_(0, kind, (nats * valid).sum(0))
        self.correct.index_add_(0, kind, (correct * valid).sum(0))
        self.count.index_add_(0, kind, valid.sum(0))
        self.loss += loss.detach().float() * len(targets)
        self.windows += len(targets)

    def compute(self) -> dict[str, Tensor]:
        """Means: ``loss`` as minimised, ``<kind>_loss`` in nats, ``<kind>_accuracy`` in [0, 1], ``perplexity``.

        A kind of which no token was counted has NaN.
        """
        values = {"loss": self.loss / self.windows, "perplexity": (self.nats.sum() / self.count.sum()).exp()}
        for index, kind in enumerate(TOKEN_KINDS):
            values[f"{kind}_loss"] = self.nats[index] / self.count[index]
            values[f"{kind}_accuracy"] = self.correct[index] / self.count[index]
        return values
