"""Implicit Q-learning as a learner: values of the best actions within the data, and a policy from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import IqlConfig, TrainConfig
from ..training.learner import OPTIONS_OF_WINDOWS, Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .iql_module import ImplicitQModule
    from .policy_agent import PolicyAgent
    from .transition_datamodule import TransitionDataModule


@dataclass
class ImplicitQLearning(IqlConfig, Learner):
    """Implicit Q-learning (Kostrikov, Nair, Levine 2021), by default with the paper's settings for locomotion."""

    kind = "iql"
    ignores = OPTIONS_OF_WINDOWS

    @override
    def make_datamodule(self, config: TrainConfig) -> "TransitionDataModule":
        from .transition_datamodule import TransitionDataModule

        return TransitionDataModule(config.data, config.seed)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "ImplicitQModule":
        from ..checkpoint import TrainingRecord
        from .iql_module import ImplicitQModule
        from .iql_network import ImplicitQ, reward_transform
        from .transition_datamodule import TransitionDataModule

        assert isinstance(datamodule, TransitionDataModule)
        network = ImplicitQ.of_environment(datamodule.data.environment, self)
        transform = reward_transform(self.rewards, *datamodule.train_returns)
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return ImplicitQModule(network, transform, config.data.discount, config.optimizer, plan, record)

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "PolicyAgent":
        from .critic import Critic
        from .policy_agent import PolicyAgent

        self.require_no_planner(checkpoint, planner)
        critic = Critic.of(checkpoint, device)
        return PolicyAgent(critic.network.policy_mean, critic.environment, device, "iql_policy")
