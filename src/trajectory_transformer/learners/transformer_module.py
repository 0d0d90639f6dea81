"""Lightning module of the Trajectory Transformer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..building import TYPED_BY_USER
from ..checkpoint import TrainingRecord
from ..checkpoint_file import SECTION
from ..configuration import OptimizerConfig
from ..data.windows import WindowBatch
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer
from ..training.learner_module import LearnerModule, ends_update
from ..training.metrics import LoggedMetrics, TokenMetrics
from ..training.optimization import TrainingPlan
from ..training.sharding import ShardedStrategy


class TrajectoryModule(LearnerModule):
    """Trains a :class:`TrajectoryTransformer` on windows of tokens; UserError if a block or metric cannot be built."""

    unit = "tokens"

    def __init__(
        self,
        model: TransformerConfig,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
        metrics: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, plan, record)
        self.model = TrajectoryTransformer(model, TYPED_BY_USER)
        values = None if record.discretizer is None else record.discretizer.centers[model.layout.value]
        self.train_metrics = LoggedMetrics(model.layout, metrics or {}, values)
        self.validation_metrics = LoggedMetrics(model.layout, metrics or {}, values)
        self.seen_metrics = TokenMetrics(model.layout, values)  # of a sample of the training windows

    @override
    def model_options(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.decay_parameter_groups(self.optimizer_config.weight_decay)

    @override
    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            self.model.compare_attention()  # before sharding, because it needs whole weights
            strategy.shard(self.model)

    @override
    def compile_network(self) -> None:
        self.model.compare_attention()  # before compilation, because it must not be traced
        self.model.compile()

    def shared_step(self, batch: WindowBatch, metrics: LoggedMetrics | TokenMetrics | None) -> Tensor:
        """Compute the loss of a batch, in training and validation, and update the metrics."""
        output = self.model(
            batch.trajectories, targets=batch.targets, attention_mask=batch.mask, use_cache=False, return_dict=True
        )
        if metrics is not None:
            metrics.update(output.loss, output.logits, batch.targets, batch.mask)
        return output.loss

    @override
    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        due = (self.global_step + 1) % self.plan.log_every == 0
        loss = self.shared_step(batch, self.train_metrics if due else None)
        self.last_loss = self.mean_of_parts(self.last_loss, loss, batch_idx)
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: WindowBatch, batch_idx: int) -> None:
        if ends_update(self.trainer) and self.global_step % self.plan.log_every == 0:
            self.log_dict(self._take(self.train_metrics, "train") | self.optimizer_state)

    @override
    def validation_step(self, batch: WindowBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.shared_step(batch, self.seen_metrics if dataloader_idx else self.validation_metrics)

    @override
    def on_validation_epoch_end(self) -> None:
        values = self._take(self.validation_metrics, "val")
        seen = self.seen_metrics.compute().get("value_r2")
        self.seen_metrics.reset()
        if seen is not None:
            # A tenth of the episodes says too little of the set: for five splits of one set 0.75 to 0.98 were measured.
            values["val/seen_value_r2"] = seen
            self.record = replace(self.record, value_r2=float(seen))
        self.log_dict(values, sync_dist=True)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record = replace(self.record, value_r2=checkpoint[SECTION].get("value_r2"))

    def _take(self, metrics: LoggedMetrics, prefix: str) -> dict[str, Any]:
        """Compute and reset metrics; the values have their logged names."""
        values = self.labelled(metrics.compute(), prefix)
        metrics.reset()
        return values
