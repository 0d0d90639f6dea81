"""Callbacks for ``callbacks=``, which only watch: they keep no state, so that a resumed run stays exact."""

from collections import defaultdict

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from .learner_module import LearnerModule


class GradientNorms(Callback):
    """Logs the 2-norm of the gradient of each part of the network, before it is clipped, as ``gradient_norm/PART``."""

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
