"""Lightning module of the Trajectory Transformer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ..building import TYPED_BY_USER
from ..checkpoint import TrainingRecord
from ..checkpoint_file import SECTION
from ..configuration import OptimizerConfig
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows, WindowBatch
from ..environments.spec import EnvironmentSpec
from ..model.action_improvement import ActionImprovement
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer, sample_logits
from ..model.numerical_embedding import NumericalReadout
from ..progress import WorkProgress
from ..training.batches import IMPROVEMENT, PRETRAINING, REGRESSION, random_stream
from ..training.learner_module import LearnerModule, ends_update
from ..training.metrics import LoggedMetrics, TokenMetrics
from ..training.optimization import TrainingPlan
from ..training.sharding import ShardedStrategy
from .improvement import fit_improvement
from .numerical_pretraining import pretrain

REGRESSED = 1024  # transitions per update for the numerical embedding's regression


class TrajectoryModule(LearnerModule):
    """Trains a :class:`TrajectoryTransformer` on windows of tokens; UserError if a block or metric cannot be built.

    ``windows`` returns all training windows; it is needed with ``model.numerical_regression``. ``transitions`` returns
    the training data; it is needed with ``model.action_improvement``.
    """

    unit = "tokens"
    only_training = ("readout.",)
    only_own_data = ("improvement.",)

    def __init__(
        self,
        model: TransformerConfig,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
        metrics: Mapping[str, Any] | None = None,
        windows: Callable[[], TokenWindows] | None = None,
        transitions: Callable[[], TransitionTable] | None = None,
    ) -> None:
        super().__init__(optimizer, plan, record)
        self.model = TrajectoryTransformer(model, TYPED_BY_USER)
        self.readout, self._windows, self.last_regression = None, windows, torch.zeros(())
        if self.model.numbers is not None and model.regresses:
            self.readout = NumericalReadout(self.model.numbers, model.n_embd)
        self.improvement, self._transitions = None, transitions
        if model.action_improvement > 0.0 and improves(model, record.environment):
            self.improvement = ActionImprovement(model.observation_dim, model.action_dim)
        values = None if record.discretizer is None else record.discretizer.centers[model.layout.value]
        self.train_metrics = LoggedMetrics(model.layout, metrics or {}, values)
        self.validation_metrics = LoggedMetrics(model.layout, metrics or {}, values)
        self.seen_metrics = TokenMetrics(model.layout, values)  # of a sample of the training windows

    @override
    def model_options(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        decayed, others = self.model.decay_parameter_groups(self.optimizer_config.weight_decay)
        if self.readout is not None:
            others["params"] = [*others["params"], *self.readout.parameters()]
        return [decayed, others]

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

    def losses(
        self, trajectories: Tensor, targets: Tensor, mask: Tensor, transitions: Tensor | None = None,
        weight: float = 1.0,
    ) -> Sequence[Tensor]:  # fmt: skip
        """The loss to differentiate, cross-entropy, and logits of a batch.

        ``transitions`` (n, transition_dim) are those of the numerical embedding's regression; with them, there is a
        fourth result, their loss times ``weight``, of which ``model.numerical_regression`` times is in the first.
        """
        output = self.model(trajectories, targets=targets, attention_mask=mask, use_cache=False, return_dict=True)
        if transitions is None:
            return output.loss, output.loss, output.logits
        assert self.readout is not None
        assert self.model.numbers is not None
        regression = weight * self.readout(self.model.numbers, transitions)
        total = output.loss + self.model.config.numerical_regression * regression
        return total, output.loss, output.logits, regression

    @override
    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        regresses = self.readout is not None and self.model.config.numerical_regression > 0.0
        regressed = self._regressed_transitions(batch_idx) if regresses else ()
        total, loss, logits, *regression = self.differentiable_losses(self.losses, *batch, *regressed)
        if (self.global_step + 1) % self.plan.log_every == 0:
            self.train_metrics.update(loss, logits, batch.targets, batch.mask)
        self.last_loss = self.mean_of_parts(self.last_loss, loss, batch_idx)
        for value in regression:
            self.last_regression = self.mean_of_parts(self.last_regression, value, batch_idx)
        return total

    @override
    def pretrain(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        updates = round(self.model.config.numerical_pretraining * self.plan.max_steps)
        if self.readout is None or updates == 0 or self.readout.pretrained:
            return
        assert self.model.numbers is not None
        assert self._windows is not None
        stream = random_stream(self.plan.seed, PRETRAINING)
        parts = self.model.numbers, self.readout
        if pretrain(*parts, self._windows(), updates, stream, stopped, progress):
            self.readout.pretrained.fill_(1.0)
        for part in parts:  # the same on all processes, also where their processors round differently
            part.load_state_dict(self.trainer.strategy.broadcast(part.state_dict()))

    @override
    def fit_to_data(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        if self.improvement is None or self.improvement.fitted:
            return
        assert self._transitions is not None
        updates, config = round(self.model.config.action_improvement * self.plan.max_steps), self.model.config
        stream = random_stream(self.plan.seed, IMPROVEMENT)
        data = self._transitions(), config.layout
        fit_improvement(self.improvement, *data, max(3, updates), stream, stopped, progress)
        # The same on all processes, also where their processors round differently.
        self.improvement.load_state_dict(self.trainer.strategy.broadcast(self.improvement.state_dict()))

    def _regressed_transitions(self, batch_idx: int) -> tuple[Any, ...]:
        """This part's and process's share of random transitions, and their weight unless it is 1."""
        assert self._windows is not None
        windows, parts = self._windows(), self.trainer.accumulate_grad_batches
        # The same transitions for any number of processes and parts, over which gradients are averaged.
        stream = random_stream(self.plan.seed, REGRESSION, self.global_step)
        drawn = torch.randint(len(windows), (REGRESSED,), generator=stream)
        share = drawn[self.global_rank :: self.trainer.world_size].chunk(parts)[batch_idx % parts]
        weight = len(share) * self.trainer.world_size * parts / REGRESSED
        return windows.transitions(share), *([] if weight == 1.0 else [weight])

    @override
    def on_train_batch_end(self, outputs: Any, batch: WindowBatch, batch_idx: int) -> None:
        super().on_train_batch_end(outputs, batch, batch_idx)
        if ends_update(self.trainer) and self.global_step % self.plan.log_every == 0:
            regresses = self.model.config.numerical_regression > 0.0 and self.readout is not None
            regression = {"train/regression_loss": self.last_regression} if regresses else {}
            self.log_dict(self._take(self.train_metrics, "train") | regression | self.optimizer_state)

    @override
    def validation_step(self, batch: WindowBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        _, loss, logits, *_ = self.losses(*batch)
        metrics = self.seen_metrics if dataloader_idx else self.validation_metrics
        metrics.update(loss, logits, batch.targets, batch.mask)

    @override
    def on_validation_epoch_end(self) -> None:
        values = self._take(self.validation_metrics, "val")
        seen = self.seen_metrics.compute().get("value_r2")
        self.seen_metrics.reset()
        if seen is not None:
            # A tenth of the episodes is too few: for five splits of one set 0.75 to 0.98 were measured.
            values["val/seen_value_r2"] = seen
            self.record = replace(self.record, value_r2=float(seen))
        self.log_dict(values, sync_dist=True)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if not isinstance(self.trainer.strategy, ShardedStrategy):  # which would need all processes
            checkpoint[SECTION]["sample_logits"] = sample_logits(self.model)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.record = replace(self.record, value_r2=checkpoint[SECTION].get("value_r2"))

    def _take(self, metrics: LoggedMetrics, prefix: str) -> dict[str, Any]:
        """Compute and reset metrics; the values have their logged names."""
        values = self.labelled(metrics.compute(), prefix)
        metrics.reset()
        return values


def improves(model: TransformerConfig, environment: EnvironmentSpec) -> bool:
    """True if actions can be corrected towards a higher return: they are numbers, and the model knows rewards."""
    return not model.goal_conditioned and all(leaf.kind == "box" for leaf in environment.action.leaves)
