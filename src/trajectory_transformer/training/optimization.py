"""AdamW, Muon, and a learning-rate schedule without state: a function of the tokens seen."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import OptimizerConfig

MOMENTUM = 0.95  # of Muon: decay rate of its average of the gradient
NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # coefficients of x, x³ and x⁵, which move singular values towards 1 fastest
ITERATIONS = 5  # after them, singular values are between about 0.7 and 1.2


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


def orthogonalized(matrices: Tensor) -> Tensor:
    """Approximate U Vᵀ of the singular value decompositions U S Vᵀ of matrices (n, rows, columns); 0 stays 0.

    The Newton-Schulz iteration of Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    linear, cubic, quintic = NEWTON_SCHULZ
    for _ in range(ITERATIONS):
        squares = x @ x.mT
        x = linear * x + (cubic * squares + quintic * squares @ squares) @ x
    return x.mT if tall else x


class AdamW(torch.optim.AdamW):
    """AdamW, and Muon for the groups with ``muon``, whose step can be the replay of a CUDA graph.

    The group's ``muon`` is the multiple of the learning rate for its matrices. Muon (Jordan et al. 2024) makes the
    average of their gradients orthogonal; the update is scaled to the size of AdamW's and decays weights as AdamW does
    (Liu et al. 2025, "Muon is scalable for LLM training"). Differs from ``torch.optim.Muon``, which computes one matrix
    at a time, in bfloat16. For the graph, see :mod:`.captured_update`.
    """

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
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("muon")]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for group in groups:
            if group.get("muon"):
                self._update_by_muon(group)

    @torch.no_grad()
    def _update_by_muon(self, group: dict[str, Any]) -> None:
        found = getattr(self, "found_inf", None)  # 1 on the device if no update is to be made
        rate = group["muon"] * group["lr"] * (1.0 if found is None else 1.0 - found)
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for parameter in group["params"]:
            if parameter.grad is not None:
                by_shape.setdefault(parameter.shape, []).append((parameter, parameter.grad))
        for shape, pairs in by_shape.items():
            for parameter, _ in pairs:
                if not self.state[parameter]:  # AdamW's own names, because it reads the step when a state is loaded
                    self.state[parameter] |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
            momenta = [self.state[parameter]["exp_avg"] for parameter, _ in pairs]
            gradients, momentum = torch.stack([gradient for _, gradient in pairs]), torch.stack(momenta)
            if found is not None:
                gradients = torch.where(found > 0.0, momentum, gradients)
            momentum.lerp_(gradients, 1.0 - MOMENTUM)
            directions = orthogonalized(gradients.lerp(momentum, MOMENTUM)) * (0.2 * max(shape) ** 0.5)
            for (parameter, _), own, new, direction in zip(pairs, momenta, momentum, directions, strict=True):
                own.copy_(new)
                parameter.mul_(1.0 - rate * group["weight_decay"]).sub_(rate * direction)

    def _accelerator_graph_capture_health_check(self) -> None:
        """Do nothing: torch asks for ``capturable=True``, which fused kernels with a rate on the device do not need."""

    _cuda_graph_capture_health_check = _accelerator_graph_capture_health_check  # its name in older versions of torch


def make_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> AdamW:
    """Make AdamW for parameter groups that have their own ``weight_decay``, and ``muon`` if Muon trains them.

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
