"""AdamW with decay groups, and a learning-rate schedule without state: a function of the tokens seen."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import OptimizerConfig


@dataclass(frozen=True)
class CosineSchedule:
    """Linear warm-up, then a cosine that reaches its floor at the last token and stays there."""

    peak: float  # learning rate at the end of the warm-up
    warmup_tokens: int  # length of the warm-up, from 0 to the peak
    total_tokens: int  # length of the whole run
    final_fraction: float  # floor, as a fraction of the peak, in [0, 1]

    def at(self, tokens: int) -> float:
        """Learning rate of the update after which ``tokens`` have been seen."""
        if tokens < self.warmup_tokens:
            return self.peak * tokens / self.warmup_tokens
        progress = min((tokens - self.warmup_tokens) / max(self.total_tokens - self.warmup_tokens, 1), 1.0)
        # Differs from the original, whose cosine ends after 20 epochs and then rises again, to the peak at epoch 39.
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak * (self.final_fraction + (1.0 - self.final_fraction) * cosine)


@dataclass(frozen=True)
class TrainingPlan:
    """Seed and sizes of a run, which determine the learning rate and randomness of an update."""

    seed: int
    max_steps: int  # updates of the run
    steps_per_epoch: int  # updates in which each training window is used once
    tokens_per_step: int  # tokens of one update, over all devices
    log_every: int  # updates between rows of training metrics


def make_schedule(config: OptimizerConfig, plan: TrainingPlan) -> CosineSchedule:
    """Make the run's schedule; a warm-up of None is one epoch, at most a tenth of the run."""
    total = plan.tokens_per_step * plan.max_steps
    warmup = config.warmup_tokens
    if warmup is None:
        warmup = min(plan.tokens_per_step * plan.steps_per_epoch, total // 10)
    return CosineSchedule(config.learning_rate, warmup, total, config.final_learning_rate_fraction)


class AdamW(torch.optim.AdamW):
    """AdamW whose step can be the replay of a CUDA graph (see :mod:`.captured_update`)."""

    replay: Callable[[], None] | None = None  # makes the update from the parameters' gradients
    rate: Tensor | None = None  # learning rate that ``replay`` reads

    @override
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        with torch.enable_grad():
            loss = None if closure is None else closure()  # which may set ``replay``
        (self.replay or self.update)()
        return loss

    def update(self) -> None:
        """Make the update, whether or not there is a ``replay``."""
        super().step()

    def _accelerator_graph_capture_health_check(self) -> None:
        """Do nothing: torch asks for ``capturable=True``, which fused kernels with a rate on the device do not need."""

    _cuda_graph_capture_health_check = _accelerator_graph_capture_health_check  # its name in older versions of torch


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> AdamW:
    """Make AdamW for parameter groups that have their own ``weight_decay``.

    ``fused``, one kernel for all parameters, is 3.6 times faster on a CPU, but not possible with a gradient scaler.
    """
    return AdamW(groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=fused)


def set_learning_rate(optimizers: Iterable[torch.optim.Optimizer], rate: float) -> None:
    """Set the learning rate of all parameter groups except those with ``constant_rate``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not group.get("constant_rate", False):
                group["lr"] = rate
        if isinstance(optimizer, AdamW) and optimizer.rate is not None:
            optimizer.rate.fill_(rate)
