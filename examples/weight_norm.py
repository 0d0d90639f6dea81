"""A callback of your own: the norm of all weights in metrics.csv.

``PYTHONPATH=examples python train.py --config-dir examples/configs trainer=watched``
"""

import torch
from lightning.pytorch.callbacks import Callback


class WeightNorm(Callback):
    """Logs the norm of all weights every few updates."""

    def __init__(self, every: int = 50) -> None:
        self.every = every

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if trainer.global_step % self.every == 0:
            squares = [parameter.detach().square().sum() for parameter in module.parameters()]
            module.log("train/weight_norm", torch.stack(squares).sum().sqrt())
