"""Implicit Q-learning as a learner: values of the best actions within the data, and a policy from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import LARGEST, TrainConfig, one_of, validate, within
from ..training.learner import OPTIONS_OF_WINDOWS, Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .iql_module import ImplicitQModule
    from .policy_agent import PolicyAgent
    from .transition_datamodule import TransitionDataModule


@dataclass
class ImplicitQLearning(Learner):
    """Implicit Q-learning (Kostrikov, Nair, Levine 2021), by default with the paper's settings for locomotion."""

    kind = "iql"
    ignores = (*OPTIONS_OF_WINDOWS, "data.continue_truncated")

    hidden_layers: int = within(2, 1, 1000)
    """Hidden layers of each network."""
    hidden_width: int = within(256, 1, 65_536)
    """Units per hidden layer."""
    expectile: float = within(0.7, above=0.0, below=1.0)
    """Expectile of Q to which V is regressed; the paper has 0.7 for locomotion and 0.9 for AntMaze."""
    inverse_temperature: float = within(3.0, high=LARGEST, above=0.0)
    """Inverse temperature of the advantage weights; the paper has 3 for locomotion and 10 for AntMaze."""
    max_weight: float = within(100.0, high=LARGEST, above=0.0)
    """Upper limit of an advantage weight."""
    target_rate: float = within(0.005, high=1.0, above=0.0)
    """Weight of the current Q networks in the moving average of the target networks, at each update."""
    rewards: str = one_of("scaled", ("scaled", "minus_one", "raw"))
    """Rewards to learn from: scaled multiplies by 1000 / (best − worst return of the training data), minus_one
    subtracts 1, raw leaves them as recorded."""

    def __post_init__(self) -> None:
        validate("learner.", self)

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
        network = ImplicitQ(datamodule.data.environment, self)
        transform = reward_transform(self.rewards, *datamodule.train_returns)
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return ImplicitQModule(network, transform, config.optimizer, plan, record)

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "PolicyAgent":
        from .critic import Critic
        from .policy_agent import PolicyAgent

        self.require_no_planner(checkpoint, planner)
        critic = Critic.of(checkpoint, device)
        return PolicyAgent(critic.network.policy_mean, critic.environment, device, "iql_policy")
