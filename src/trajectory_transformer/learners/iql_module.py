"""Lightning module of implicit Q-learning."""

from dataclasses import asdict
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..configuration import OptimizerConfig
from ..data.transition_set import TransitionBatch
from ..training.optimization import TrainingPlan
from .iql_network import ImplicitQ
from .transition_module import TransitionModule


class ImplicitQModule(TransitionModule):
    """Trains V, Q and the policy of :class:`ImplicitQ` together; ``transform`` is the scale and shift of rewards.

    The policy's learning rate follows the schedule, as in the paper; that of V and Q is constant.
    """

    best_is_latest = True
    logged = ("loss", "v_loss", "q_loss", "policy_loss", "v")
    network: ImplicitQ

    def __init__(
        self,
        network: ImplicitQ,
        transform: tuple[float, float],
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
    ) -> None:
        super().__init__(network, optimizer, plan, record)
        self.reward_scale, self.reward_shift = transform

    @override
    def model_options(self) -> dict[str, Any]:
        return {**asdict(self.network.options), "reward_scale": self.reward_scale, "reward_shift": self.reward_shift}

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
        losses = self.network.losses(batch, self.record.data.discount)
        total = losses.value + losses.q + losses.policy
        named = {"v_loss": losses.value, "q_loss": losses.q, "policy_loss": losses.policy, "v": losses.mean_value}
        return total, {"loss": total, **named}

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.network.update_targets()  # not in on_train_batch_end, which runs after a checkpoint is written
