"""The model as Lightning trains it. An update's randomness follows from (seed, step, rank): resume is exact."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import ModelConfig, OptimizerConfig
from ..data.windows import WindowBatch
from ..errors import UserError
from ..layout import TransitionLayout
from ..model.config import TrajectoryTransformerConfig
from ..model.gpt import TrajectoryTransformerModel
from .metrics import TokenMetrics
from .optimization import TrainingPlan, make_optimizer, make_schedule, set_learning_rate


class NonFiniteLossError(UserError):
    """The loss or its gradient became NaN or infinite; the weights are still those of the update before."""


def make_model_config(
    config: ModelConfig, layout: TransitionLayout, num_bins: int, sequence_length: int
) -> TrajectoryTransformerConfig:
    """The model that fits the data: options from ``config``, sizes from the data."""
    block_size = layout.block_size(sequence_length + config.goal_conditioned)
    return TrajectoryTransformerConfig(
        vocab_size=num_bins,
        block_size=block_size,
        observation_dim=layout.observation_dim,
        action_dim=layout.action_dim,
        transition_dim=layout.transition_dim,
        max_position_embeddings=max(512, block_size),
        **asdict(config),
    )


class TrajectoryModule(L.LightningModule):
    """Trains a :class:`TrajectoryTransformerModel` on windows of tokens.

    Args:
        model: sizes and loss weights.
        optimizer: AdamW and its schedule.
        plan: length of the run, seed, logging.
        facts: plain values and tensors that join the model's config in every checkpoint.
    """

    def __init__(
        self,
        model: TrajectoryTransformerConfig,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.model = TrajectoryTransformerModel(model)
        self.optimizer_config, self.plan, self.facts = optimizer, plan, dict(facts)
        self.schedule = make_schedule(optimizer, plan)
        self.train_metrics, self.validation_metrics = TokenMetrics(model.layout), TokenMetrics(model.layout)
        self.gradient_norm = self.last_loss = torch.zeros(())

    def shared_step(self, batch: WindowBatch, metrics: TokenMetrics | None) -> Tensor:
        """Loss of a batch; what training and validation both do."""
        output = self.model(
            batch.trajectories, targets=batch.targets, attention_mask=batch.mask, use_cache=False, return_dict=True
        )
        if metrics is not None:
            metrics.update(output.loss, output.logits, batch.targets, batch.mask)
        return output.loss

    @override
    def on_train_batch_start(self, batch: WindowBatch, batch_idx: int) -> None:
        step = self.global_step
        entropy = np.random.SeedSequence([self.plan.seed, step, self.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
        set_learning_rate(self.trainer.optimizers, self.schedule.at((step + 1) * self.plan.tokens_per_step))

    @override
    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        due = (self.global_step + 1) % self.plan.log_every == 0
        loss = self.shared_step(batch, self.train_metrics if due else None)
        self.last_loss = loss.detach()
        return loss

    @override
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        self.gradient_norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.optimizer_config.gradient_clip_norm)
        # A NaN loss makes every gradient NaN, and DDP averages gradients: the norm tells all processes the same, at the
        # price of one synchronisation. In 16-mixed infinite gradients are normal, as its scaler skips those updates.
        scaled = self.trainer.precision == "16-mixed"
        judged = self.trainer.strategy.reduce(self.last_loss, reduce_op="mean") if scaled else self.gradient_norm
        if not bool(torch.isfinite(torch.as_tensor(judged))):
            raise NonFiniteLossError(
                f"the loss or its gradient became NaN or infinite in update {self.global_step + 1} (loss "
                f"{self.last_loss.item():.4g}); that update was not made and checkpoints/last.ckpt keeps the last good "
                "state; lower optimizer.learning_rate or look for extreme values in the data"
            )

    @override
    def on_train_batch_end(self, outputs: Any, batch: WindowBatch, batch_idx: int) -> None:
        if self.global_step % self.plan.log_every == 0:
            rate = self.trainer.optimizers[0].param_groups[0]["lr"]
            values = self._take(self.train_metrics, "train")
            self.log_dict(values | {"train/learning_rate": rate, "train/gradient_norm": self.gradient_norm})

    @override
    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        self.shared_step(batch, self.validation_metrics)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._take(self.validation_metrics, "val"), sync_dist=True)

    def _take(self, metrics: TokenMetrics, prefix: str) -> dict[str, Any]:
        """Computed metrics under their logged names, with "step" (updates made), which Lightning logs them at."""
        values = {f"{prefix}/{name}": value for name, value in metrics.compute().items()}
        metrics.reset()
        return values | {"step": float(self.global_step), "epoch": self.global_step / self.plan.steps_per_epoch}

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        groups = self.model.decay_parameter_groups(self.optimizer_config.weight_decay)
        return make_optimizer(groups, self.optimizer_config, fused)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["trajectory_transformer"] = {"format": 1, "model": self.model.config.to_dict(), **self.facts}
