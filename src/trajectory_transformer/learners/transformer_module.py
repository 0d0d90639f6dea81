"""Lightning module of the Trajectory Transformer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..checkpoint_file import SECTION
from ..configuration import OptimizerConfig
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows, WindowBatch
from ..environments.spec import EnvironmentSpec
from ..model.config import TransformerConfig
from ..model.gpt import sample_logits
from ..progress import WorkProgress
from ..training.batches import IMPROVEMENT, PRETRAINING, REGRESSION, random_stream
from ..training.learner_module import LearnerModule, ends_update
from ..training.metrics import LoggedMetrics, TokenMetrics
from ..training.optimization import TrainingPlan
from ..training.sharding import ShardedStrategy
from .member import Member
from .training_loss import make_loss

REGRESSED = 1024  # transitions per update for the numerical embedding's regression


class TrajectoryModule(LearnerModule):
    """Trains a Trajectory Transformer on windows of tokens; UserError if a block or metric cannot be built.

    With ``model.members`` above 1 it trains as many, each as if it were alone, on the same windows. They differ by
    their initial weights and dropout; metrics are means over them.

    ``windows`` returns all training windows; it is needed with ``model.numerical_regression``. ``transitions`` returns
    the training data; it is needed with ``model.action_improvement``. ``loss`` is that of ``trainer.loss``.
    """

    unit = "tokens"
    only_training = ("readout.", "loss.")
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
        loss: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(optimizer, plan, record)
        corrects = model.action_improvement > 0.0 and improves(model, record.environment)
        first, *others = members = [Member(model, corrects) for _ in range(model.members)]
        for member in members:  # after all models, whose initial weights then do not depend on the loss
            member.loss = make_loss(loss, model, None if record.discretizer is None else record.discretizer.centers)
        # The names of the first member's weights in checkpoints are those of a single model.
        self.model, self.readout, self.improvement, self.loss = (
            first.model,
            first.readout,
            first.improvement,
            first.loss,
        )
        self.others = nn.ModuleList(others)
        self.members = first, *others
        self._windows, self._transitions, self.last_regression = windows, transitions, torch.zeros(())
        values = None if record.discretizer is None else record.discretizer.centers[model.layout.value]
        named = model.layout, metrics or {}, values, self.loss.logged
        self.train_metrics, self.validation_metrics = LoggedMetrics(*named), LoggedMetrics(*named)
        self.seen_metrics = TokenMetrics(model.layout, values)  # of a sample of the training windows

    @override
    def model_options(self) -> dict[str, Any]:
        return self.model.config.to_dict()

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        decay, muon = self.optimizer_config.weight_decay, self.optimizer_config.muon
        decayed, others = zip(*(member.decay_parameter_groups(decay) for member in self.members), strict=True)
        matrices = [member.block_matrices() if muon else [] for member in self.members]
        by_muon = {id(matrix) for matrix in chain.from_iterable(matrices)}
        kept = [parameter for parameter in chain.from_iterable(decayed) if id(parameter) not in by_muon]
        rest = list(chain.from_iterable(others))
        done = set(map(id, (*chain.from_iterable(decayed), *rest)))
        # Those of a loss of the user's own, or of a subclass of this module.
        further = [weights for weights in self.parameters() if weights.requires_grad and id(weights) not in done]
        return [
            {"params": [*kept, *(weights for weights in further if weights.ndim > 1)], "weight_decay": decay},
            {"params": [*rest, *(weights for weights in further if weights.ndim <= 1)], "weight_decay": 0.0},
            # A group for each member, so that it is computed as if it were alone.
            *({"params": of_member, "weight_decay": decay, "muon": muon} for of_member in matrices if of_member),
        ]

    @override
    def clipped_together(self) -> Sequence[Iterable[nn.Parameter]]:
        of_members = {id(weights) for member in self.members for weights in member.parameters()}
        further = [weights for weights in self.parameters() if id(weights) not in of_members]  # of a subclass
        return [*(member.parameters() for member in self.members), *([further] if further else [])]

    @override
    def configure_model(self) -> None:
        strategy = self.trainer.strategy
        if isinstance(strategy, ShardedStrategy):
            self.model.compare_attention()  # before sharding, because it needs whole weights
            strategy.shard(self.model)

    @override
    def compile_network(self) -> None:
        for member in self.members:
            member.model.compare_attention()  # before compilation, because it must not be traced
            member.model.compile()

    def losses(
        self, trajectories: Tensor, targets: Tensor, mask: Tensor, transitions: Tensor | None = None,
        weight: float = 1.0,
    ) -> Sequence[Tensor]:  # fmt: skip
        """The loss to differentiate, the mean loss, each member's logits of a batch, and the loss's further values.

        ``transitions`` (n, transition_dim) are those of the numerical embedding's regression; with them, the last
        result is their mean loss times ``weight``, of which ``model.numerical_regression`` times is in the first.
        """
        batch = WindowBatch(trajectories, targets, mask)
        found = [member.losses(batch, transitions, weight) for member in self.members]
        totals, losses, logits, *further = zip(*found, strict=True)
        means = [torch.stack(values).mean() for values in (losses, *further)]
        return torch.stack(totals).sum(), means[0], *logits, *means[1:]

    @override
    def training_step(self, batch: WindowBatch, batch_idx: int) -> Tensor:
        regresses = self.readout is not None and self.model.config.numerical_regression > 0.0
        regressed = self._regressed_transitions(batch_idx) if regresses else ()
        total, loss, *others = self.differentiable_losses(self.losses, *batch, *regressed)
        logits, values, regression = self._parted(others)
        if (self.global_step + 1) % self.plan.log_every == 0:
            self._measure(self.train_metrics, loss, logits, batch, values)
        self.last_loss = self.mean_of_parts(self.last_loss, loss, batch_idx)
        for value in regression:
            self.last_regression = self.mean_of_parts(self.last_regression, value, batch_idx)
        return total

    @override
    def pretrain(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        updates = round(self.model.config.numerical_pretraining * self.plan.max_steps)
        if updates == 0:
            return
        for index, member in enumerate(self.members):
            assert self._windows is not None
            stream = self._stream(PRETRAINING, index)
            self._share(member.pretrain(self._windows(), updates, stream, stopped, progress))

    @override
    def fit_to_data(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        if self.improvement is None:
            return
        updates = max(3, round(self.model.config.action_improvement * self.plan.max_steps))
        for index, member in enumerate(self.members):
            assert self._transitions is not None
            stream = self._stream(IMPROVEMENT, index)
            self._share(member.fit_improvement(self._transitions(), updates, stream, stopped, progress))

    def _stream(self, purpose: int, member: int) -> torch.Generator:
        """Random numbers of a member before the first update."""
        return random_stream(self.plan.seed, purpose, *([member] if member else []))

    def _share(self, trained: Iterable[nn.Module]) -> None:
        """Make networks the same on all processes, also where their processors round differently."""
        for part in trained:
            part.load_state_dict(self.trainer.strategy.broadcast(part.state_dict()))

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
        _, loss, *others = self.losses(*batch)
        logits, values, _ = self._parted(others)
        if dataloader_idx:
            self._measure(self.seen_metrics, loss, logits, batch)
        else:
            self._measure(self.validation_metrics, loss, logits, batch, values)

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

    def _parted(self, results: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Each member's logits, the loss's further values, and the loss of a regression, if there was one."""
        logits, values = len(self.members), len(self.members) + len(self.loss.logged)
        return results[:logits], results[logits:values], results[values:]

    @staticmethod
    def _measure(
        metrics: LoggedMetrics | TokenMetrics, loss: Tensor, logits: Sequence[Tensor], batch: WindowBatch,
        *values: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Add a batch with the logits of each member, so that metrics are means over members."""
        for of_member in logits:
            metrics.update(loss, of_member, batch.targets, batch.mask, *values)

    def _take(self, metrics: LoggedMetrics, prefix: str) -> dict[str, Any]:
        """Compute and reset metrics; the values have their logged names."""
        values = self.labelled(metrics.compute(), prefix)
        metrics.reset()
        return values


def improves(model: TransformerConfig, environment: EnvironmentSpec) -> bool:
    """True if actions can be corrected towards a higher return: they are numbers, and the model knows rewards."""
    return not model.goal_conditioned and all(leaf.kind == "box" for leaf in environment.action.leaves)
