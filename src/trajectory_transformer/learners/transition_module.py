"""The two learners of single transitions as Lightning trains them."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar

import torchmetrics
from torch import Tensor, nn
from typing_extensions import override

from ..configuration import OptimizerConfig
from ..data.transition_set import TransitionBatch
from ..training.learner_module import LearnerModule
from ..training.optimization import TrainingPlan
from .ensemble import DynamicsEnsemble
from .iql import ImplicitQ


class TransitionModule(LearnerModule):
    """Minimises the first of a learner's losses, and logs the others beside it."""

    logged: ClassVar[tuple[str, ...]]  # names of what :meth:`losses` gives; "loss" is one

    def __init__(self, optimizer: OptimizerConfig, plan: TrainingPlan, facts: Mapping[str, Any]) -> None:
        super().__init__(optimizer, plan, facts)
        self.last_values: dict[str, Tensor] = {}
        self.validation_means = nn.ModuleDict({name: torchmetrics.MeanMetric() for name in self.logged})

    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """What an update minimises, and what is logged, by name; all scalars."""
        raise NotImplementedError

    @override
    def training_step(self, batch: TransitionBatch, batch_idx: int) -> Tensor:
        loss, values = self.losses(batch)
        self.last_loss = loss.detach()
        self.last_values = {name: value.detach() for name, value in values.items()}
        return loss

    @override
    def on_train_batch_end(self, outputs: Any, batch: TransitionBatch, batch_idx: int) -> None:
        if self.global_step % self.plan.log_every == 0:
            self.log_dict(self.labelled(self.last_values, "train") | self.optimizer_state)

    @override
    def validation_step(self, batch: TransitionBatch, batch_idx: int) -> None:
        for name, value in self.losses(batch)[1].items():
            self._mean(name).update(value, batch.rewards.shape[-1])

    @override
    def on_validation_epoch_end(self) -> None:
        means = {name: self._mean(name).compute() for name in self.logged}
        self.log_dict(self.labelled(means, "val"), sync_dist=True)
        for name in self.logged:
            self._mean(name).reset()

    def _mean(self, name: str) -> torchmetrics.MeanMetric:
        metric = self.validation_means[name]
        assert isinstance(metric, torchmetrics.MeanMetric)
        return metric


class ImplicitQModule(TransitionModule):
    """Trains V, Q and the policy of :class:`ImplicitQ` together.

    Args:
        network: to be trained.
        transform: scale and shift of rewards.
        discount: of values.
        optimizer: the policy's rate follows the schedule, as in the paper; V and Q keep ``learning_rate``.
        plan: length of the run, seed, logging.
        facts: plain values and tensors that join the model's options in every checkpoint.
    """

    kind = "iql"
    best_is_latest = True
    logged = ("loss", "v_loss", "q_loss", "policy_loss", "v")
    network: ImplicitQ

    def __init__(
        self,
        network: ImplicitQ,
        transform: tuple[float, float],
        discount: float,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        facts: Mapping[str, Any],
    ) -> None:
        super().__init__(optimizer, plan, facts)
        self.network = network
        self.reward_scale, self.reward_shift = transform
        self.discount = discount

    @override
    def model_options(self) -> dict[str, Any]:
        transform = {"reward_scale": self.reward_scale, "reward_shift": self.reward_shift}
        return asdict(self.network.config) | transform

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        network, decay = self.network, self.optimizer_config.weight_decay
        policy = [*network.policy.parameters(), network.policy_log_std]
        critic = [*network.value.parameters(), *network.twins.parameters()]
        return [
            {"params": [p for p in parameters if (p.ndim > 1) == matrices], "weight_decay": decay * matrices} | extra
            for parameters, extra in ((policy, {}), (critic, {"constant_rate": True}))
            for matrices in (True, False)
        ]

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch._replace(rewards=self.reward_scale * batch.rewards + self.reward_shift)
        losses = self.network.losses(batch, self.discount)
        total = losses.value + losses.q + losses.policy
        named = {"v_loss": losses.value, "q_loss": losses.q, "policy_loss": losses.policy, "v": losses.mean_value}
        return total, {"loss": total, **named}

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.network.update_targets()  # not after the batch: a checkpoint is written before the module's hook there


class EnsembleModule(TransitionModule):
    """Trains a :class:`DynamicsEnsemble` on bootstrapped transitions, (members, batch, …).

    Args:
        network: to be trained, its normalisation set.
        optimizer: AdamW and its schedule.
        plan: length of the run, seed, logging.
        facts: plain values and tensors that join the model's options in every checkpoint.
    """

    kind = "ensemble"
    logged = ("loss", "worst_member_loss")
    network: DynamicsEnsemble

    def __init__(
        self, network: DynamicsEnsemble, optimizer: OptimizerConfig, plan: TrainingPlan, facts: Mapping[str, Any]
    ) -> None:
        super().__init__(optimizer, plan, facts)
        self.network = network

    @override
    def model_options(self) -> dict[str, Any]:
        return asdict(self.network.config)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        weights = [p for name, p in self.network.named_parameters() if name.endswith(".weight")]
        others = [p for name, p in self.network.named_parameters() if not name.endswith(".weight")]
        # Differs from the original: AdamW's decay, one value, in place of an L2 term with a factor for each layer.
        decay = self.optimizer_config.weight_decay
        return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nats = self.network.nats(batch)
        return self.network.loss(nats), {"loss": nats.mean(), "worst_member_loss": nats.max()}
