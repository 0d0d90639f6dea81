"""Metrics of the transformer: loss and accuracy of each kind of token, and the user's own metrics."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..building import TYPED_BY_USER, build
from ..configuration import require
from ..errors import UserError
from ..layout import TOKEN_KINDS, TransitionLayout


class TokenMetrics(torchmetrics.Metric):
    """Unweighted cross-entropy in nats and accuracy of observation, action, reward and value tokens; perplexity.

    Masked tokens do not count. Sums are accumulated over batches and, under DDP, over processes. With ``values``
    (num_bins,), the returns-to-go of the value tokens, the explained share of their variance is measured too, and the
    means over windows of ``further`` values of the loss, given by their names.
    """

    full_state_update = False
    nats: Tensor  # (kinds,), like the next two
    correct: Tensor
    count: Tensor
    loss: Tensor
    windows: Tensor
    sums: Tensor  # (further,) of the loss's further values
    moments: Tensor  # of returns-to-go: count, sum, sum of squares, sum of squared errors
    kinds: Tensor  # (transition_dim,)
    values: Tensor

    def __init__(self, layout: TransitionLayout, values: Tensor | None = None, further: Sequence[str] = ()) -> None:
        super().__init__()
        self.value, self.further = layout.value, tuple(further)
        if values is not None:  # standardised, because the difference of large sums would be lost in rounding
            values = (values - values.mean()) / values.std().clamp(min=1e-30)
        self.register_buffer("values", values, persistent=False)
        kind = (len(TOKEN_KINDS),)
        shapes = {"nats": kind, "correct": kind, "count": kind, "loss": (), "windows": (), "moments": (4,)}
        shapes["sums"] = (len(further),)
        for name, shape in shapes.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float32), dist_reduce_fx="sum")
        kinds = torch.zeros(layout.transition_dim, dtype=torch.long)
        for index, columns in enumerate(layout.kind_slices().values()):
            kinds[columns] = index
        self.register_buffer("kinds", kinds, persistent=False)

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Self:
        """Move to the model's device, but keep the precision: sums in bfloat16 would stop growing at 256."""
        super()._apply(lambda tensor: fn(tensor).to(tensor.dtype), exclude_state)
        return self

    @torch.no_grad()
    def update(
        self, loss: Tensor, logits: Tensor, targets: Tensor, mask: Tensor, values: Sequence[Tensor] = ()
    ) -> None:
        """Add a batch whose windows begin at a transition's first dimension.

        Args:
            loss: scalar training loss.
            logits: (batch, time, vocabulary); position p predicts dimension (p + 1) mod transition_dim.
            targets: (batch, time) integers.
            mask: (batch, time), 0 for tokens that do not count.
            values: the loss's further values, a number () for each name.
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
        for index, value in enumerate(values):
            self.sums[index] += value.detach().float() * len(targets)
        if self.values is not None:
            places = slice(self.value - 1, None, len(self.kinds))  # positions that predict a value
            found, wanted, counts = logits[:, places].float().softmax(-1), targets[:, places], valid[:, places]
            counts = counts * (wanted < len(self.values))
            actual = self.values[wanted.clamp(max=len(self.values) - 1)]
            error = (found[..., :-1] * self.values).sum(-1) - actual
            sums = [(counts * x).sum() for x in (torch.ones_like(actual), actual, actual**2, error**2)]
            self.moments += torch.stack(sums)

    def compute(self) -> dict[str, Tensor]:
        """Means: the training ``loss``, ``<kind>_loss`` in nats, ``<kind>_accuracy`` in [0, 1], and ``perplexity``.

        With ``values`` also ``value_r2``, at most 1: the share of the variance of returns-to-go that the predicted mean
        explains. The values of a kind without counted tokens are NaN.
        """
        values = {"loss": self.loss / self.windows, "perplexity": (self.nats.sum() / self.count.sum()).exp()}
        values |= zip(self.further, self.sums / self.windows, strict=True)
        for index, kind in enumerate(TOKEN_KINDS):
            values[f"{kind}_loss"] = self.nats[index] / self.count[index]
            values[f"{kind}_accuracy"] = self.correct[index] / self.count[index]
        if self.values is not None:
            count, total, squares, errors = self.moments.unbind()
            values["value_r2"] = 1.0 - errors / (squares - total**2 / count)
        return values


class LoggedMetrics(nn.Module):
    """:class:`TokenMetrics` together with the user's own metrics.

    ``own`` is ``trainer.metrics``: name -> mapping with a ``_target_``, a :class:`torchmetrics.Metric` whose ``update``
    takes (logits, targets, mask) as in :meth:`TokenMetrics.update` and whose ``compute`` returns one number.
    ``further`` are the names of the training loss's further values.

    Raises:
        UserError: a class does not exist or is not such a metric, or a name is taken.
    """

    def __init__(
        self, layout: TransitionLayout, own: Mapping[str, Any], values: Tensor | None = None,
        further: Sequence[str] = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.tokens = TokenMetrics(layout, values, further)
        for name in further:
            _require_free(name, "trainer.loss")
            require(name not in own, f"trainer.loss and trainer.metrics both log '{name}'; rename one")
        metrics = {name: self._own_metric(name, spec) for name, spec in own.items()}
        self.own = torchmetrics.MetricCollection({**metrics}, compute_groups=False)

    def _own_metric(self, name: str, spec: Mapping[str, Any]) -> torchmetrics.Metric:
        option = f"trainer.metrics.{name}"
        _require_free(name, option)
        metric = build(spec, torchmetrics.Metric, option, TYPED_BY_USER)
        try:
            inspect.signature(metric.update).bind("logits", "targets", "mask")
        except TypeError:
            raise UserError(f"{option}: update() of {spec['_target_']} must take logits, targets and mask") from None
        return metric

    @torch.no_grad()
    def update(
        self, loss: Tensor, logits: Tensor, targets: Tensor, mask: Tensor, values: Sequence[Tensor] = ()
    ) -> None:
        """Add a batch; arguments as in :meth:`TokenMetrics.update`."""
        self.tokens.update(loss, logits, targets, mask, values)
        self.own.update(logits.detach(), targets, mask)

    def compute(self) -> dict[str, Tensor]:
        """All values by name; UserError if one of the user's metrics does not return one number."""
        own = self.own.compute()
        for name, value in own.items():
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise UserError(f"trainer.metrics.{name}: compute() must return a tensor of one number, got {value!r}")
        return self.tokens.compute() | own

    def reset(self) -> None:
        """Forget all batches."""
        self.tokens.reset()
        self.own.reset()


def _require_free(name: str, option: str) -> None:
    """Raise UserError if one of our own values is logged under a name, or if it is not a valid one."""
    taken = {"loss", "perplexity", "value_r2", "learning_rate", "gradient_norm", "tokens_per_second", "regression_loss"}
    taken |= {f"{kind}_{what}" for kind in TOKEN_KINDS for what in ("loss", "accuracy")}
    require(
        name not in taken and name.isidentifier(),
        f"{option}: the name '{name}' is taken or not a valid identifier; choose another",
    )
