"""Callbacks for ``callbacks=``, each of which a resumed run continues exactly.

Lightning's classes are extended here, because a run's folder may name classes of this package without ``allow=``.
"""

from collections import defaultdict

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, DeviceStatsMonitor, EarlyStopping, LearningRateMonitor
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from ..configuration import require, require_choice
from .learner_module import LearnerModule


class GradientNorms(Callback):
    """Logs the 2-norm of the gradient of each part of the network, before clipping, as ``gradient_norm/PART``."""

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, LearnerModule)
        if (trainer.global_step + 1) % pl_module.plan.log_every:
            return
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for name, parameter in pl_module.named_parameters():
            if parameter.grad is not None:
                parts[".".join(name.split(".")[:2])].append(parameter.grad.detach())
        norms = {f"gradient_norm/{part}": torch.nn.utils.get_total_norm(grads) for part, grads in parts.items()}
        pl_module.log_dict(norms)


class StopEarly(EarlyStopping):
    """Ends training when ``monitor`` has not improved by ``min_delta`` in ``patience`` validations."""

    def __init__(
        self, monitor: str = "val/loss", patience: int = 10, min_delta: float = 0.0, mode: str = "min"
    ) -> None:
        place = "trainer.callbacks.early_stopping"
        require(patience >= 1, f"{place}.patience={patience} must be at least 1")
        require(0 <= min_delta < float("inf"), f"{place}.min_delta={min_delta} must be finite and not negative")
        require_choice(f"{place}.mode", mode, ("min", "max"))
        super().__init__(monitor, min_delta, patience, mode=mode, check_on_train_epoch_end=False)

    @override
    def _validate_condition_metric(self, logs: dict[str, Tensor]) -> bool:
        """Raise UserError instead of Lightning's RuntimeError for a metric that nothing logs."""
        measured = ", ".join(sorted(logs))
        require(
            self.monitor in logs,
            f"trainer.callbacks.early_stopping.monitor={self.monitor} is not measured; choose one of {measured}",
        )
        return True


class LearningRates(LearningRateMonitor):
    """Logs the learning rate, and optionally the momenta, of each parameter group with the rows of metrics."""

    def __init__(self, log_momentum: bool = False) -> None:
        super().__init__("step", log_momentum)


class DeviceStats(DeviceStatsMonitor):
    """Logs the memory and load of the devices; ``cpu_stats`` also those of the CPU, which needs psutil."""

    def __init__(self, cpu_stats: bool = False) -> None:
        super().__init__(cpu_stats)
