"""Behaviour cloning as a learner: a feed-forward policy that imitates the data, or what is best in them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import TrainConfig, require, validate, within
from ..training.learner import Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .bc_module import BestEpisodes, CloningModule
    from .policy_agent import PolicyAgent


@dataclass
class BehaviorCloning(Learner):
    """Behaviour cloning by least squares.

    With ``best_fraction`` below 1 the "%BC" of Chen et al. (2021); with ``inverse_temperature`` advantage-weighted
    regression (Peng et al. 2019).
    """

    kind = "bc"

    hidden_layers: int = within(2, 1, 1000)
    """Hidden layers of the policy."""
    hidden_width: int = within(256, 1, 65_536)
    """Units per hidden layer."""
    best_fraction: float = within(1.0, high=1.0, above=0.0)
    """Share of the training episodes to clone, those of the highest returns; 0.1 is the best tenth."""
    inverse_temperature: float = within(0.0, 0.0, 1000)
    """Weight each step by the exponential of this times its advantage, in standard deviations; 0 weights all alike."""

    def __post_init__(self) -> None:
        validate("learner.", self)

    @override
    def check(self, config: TrainConfig) -> None:
        super().check(config)
        require(
            config.init_from is None or self.inverse_temperature == 0.0,
            "init_from skips the first phase, in which learner.inverse_temperature fits expected returns: leave out "
            "one of them",
        )

    @override
    def uses_rewards(self, config: TrainConfig) -> bool:
        return self.inverse_temperature > 0.0

    @override
    def make_datamodule(self, config: TrainConfig) -> "BestEpisodes":
        from .bc_module import BestEpisodes

        return BestEpisodes(config, self.best_fraction)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "CloningModule":
        from ..checkpoint import TrainingRecord
        from .advantage_weights import AdvantageWeights
        from .bc_module import BestEpisodes, CloningModule, CloningPolicy

        assert isinstance(datamodule, BestEpisodes)
        network = CloningPolicy(datamodule.data.environment, self)
        network.normalize_like(datamodule.rows["train"][:, datamodule.layout.observation])
        advantage = None
        if self.inverse_temperature > 0.0:
            sizes = datamodule.layout.observation_dim, self.hidden_layers, self.hidden_width
            advantage = AdvantageWeights(*sizes, self.inverse_temperature)
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return CloningModule(network, config.optimizer, plan, record, datamodule, advantage)

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "PolicyAgent":
        from .bc_module import CloningPolicy
        from .policy_agent import PolicyAgent

        self.require_no_planner(checkpoint, planner)
        environment = checkpoint.training.environment
        network = checkpoint.build("network", partial(CloningPolicy, environment, self))
        return PolicyAgent(network.to(device).eval(), environment, device, "bc_policy")
