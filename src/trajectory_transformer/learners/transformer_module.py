"""The Trajectory Transformer as Lightning trains it."""

from dataclasses import asdict
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..configuration import ModelConfig, OptimizerConfig
from ..data.windows import WindowBatch
from ..layout import TransitionLayout
from ..model.config import TrajectoryTransformerConfig
from ..model.gpt import TrajectoryTransformerModel
from ..training.learner_module import LearnerModule
from ..training.metrics import TokenMetrics
from ..training.optimization import TrainingPlan


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


class TrajectoryModule(LearnerModule):
    """Trains a :class:`TrajectoryTransformerModel` on windows of tokens.

    Args:
        model: sizes and loss weights.
        optimizer: AdamW and its schedule.
        plan: length of the run, seed, logging.
        record: what the network is trained on, for checkpoints.
    """

    unit = "tokens"

    def __init__(
        self,
        model: TrajectoryTransformerConfig,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
    ) -> None:
        super().__init__(optimizer, plan, record)
        self.model = TrajectoryTransformerModel(model)
        self.train_metrics, self.validation_metrics = TokenMetrics(model.layout), TokenMetrics(model.layout)

    @override
    def model_options(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        return self.model.decay_parameter_groups(self.optimizer_config.weight_decay)

    @override
    def compile_network(self) -> None:
        self.model.compile()

    def shared_step(self, batch: WindowBatch, metrics: TokenMetrics | None) -> Tensor:
        """Loss of a batch; what training and validation both do."""
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
        self.last_loss = loss.detach()
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: WindowBatch, batch_idx: int) -> None:
        if self.global_step % self.plan.log_every == 0:
            self.log_dict(self._take(self.train_metrics, "train") | self.optimizer_state)

    @override
    def validation_step(self, batch: WindowBatch, batch_idx: int) -> None:
        self.shared_step(batch, self.validation_metrics)

    @override
    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._take(self.validation_metrics, "val"), sync_dist=True)

    def _take(self, metrics: TokenMetrics, prefix: str) -> dict[str, Any]:
        """Computed metrics under their logged names."""
        values = self.labelled(metrics.compute(), prefix)
        metrics.reset()
        return values
