"""Base Lightning module of learners that minimise one loss of one network."""

from typing import Any, ClassVar

import torchmetrics
from torch import Tensor, nn
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..configuration import OptimizerConfig
from ..training.learner_module import LearnerModule, ends_update
from ..training.optimization import TrainingPlan


class TransitionModule(LearnerModule):
    """Minimises a loss of its network, and logs it and other values; other arguments as for the base class."""

    logged: ClassVar[tuple[str, ...]]  # names of the values of :meth:`losses`, including "loss"

    def __init__(
        self, network: nn.Module, optimizer: OptimizerConfig, plan: TrainingPlan, record: TrainingRecord
    ) -> None:
        super().__init__(optimizer, plan, record)
        self.network = network
        self.last_values: dict[str, Tensor] = {}
        means = {name: torchmetrics.MeanMetric() for name in self.logged}
        self.validation_means = torchmetrics.MetricCollection({**means}, compute_groups=False)

    def losses(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss that an update minimises, and the values to log, by name; all scalars."""
        raise NotImplementedError

    def examples_in(self, batch: Any) -> int:
        """Number of examples in a batch: its weight in the means of a validation."""
        return batch.rewards.shape[-1]

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss, values = self.losses(batch)
        self.last_loss = self.mean_of_parts(self.last_loss, loss, batch_idx)
        for name, value in values.items():
            self.last_values[name] = self.mean_of_parts(self.last_values.get(name), value, batch_idx)
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if ends_update(self.trainer) and self.global_step % self.plan.log_every == 0:
            self.log_dict(self.labelled(self.last_values, "train") | self.optimizer_state)

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        for name, value in self.losses(batch)[1].items():
            self.validation_means[name].update(value, self.examples_in(batch))

    @override
    def on_validation_epoch_end(self) -> None:
        means = self.validation_means.compute()
        self.validation_means.reset()
        self.log_dict(self.labelled({name: means[name] for name in self.logged}, "val"), sync_dist=True)
