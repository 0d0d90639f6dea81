"""An ensemble of dynamics models as a learner, which predicts but does not act."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from typing_extensions import override

from ..configuration import LARGEST, TrainConfig, validate, within
from ..errors import UserError
from ..training.learner import Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .ensemble_module import EnsembleModule
    from .transition_datamodule import TransitionDataModule


@dataclass
class EnsembleLearner(Learner):
    """A probabilistic ensemble of dynamics models (PETS, Chua et al. 2018), by default in MBPO's size."""

    kind = "ensemble"
    acts = False

    num_members: int = within(5, 1, 1000)
    """Networks in the ensemble."""
    hidden_layers: int = within(4, 1, 1000)
    """Hidden layers of each network."""
    hidden_width: int = within(200, 1, 65_536)
    """Units per hidden layer."""
    bound_weight: float = within(0.005, 0.0, LARGEST)
    """Loss weight of the distance between the bounds of the log-variance; PETS has 0.01, with the log-likelihood
    doubled."""

    def __post_init__(self) -> None:
        validate("learner.", self)

    @override
    def uses_rewards(self, config: TrainConfig) -> bool:
        return False

    @override
    def make_datamodule(self, config: TrainConfig) -> "TransitionDataModule":
        from .transition_datamodule import TransitionDataModule

        return TransitionDataModule(config.data, config.seed, self.num_members)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "EnsembleModule":
        from ..checkpoint import TrainingRecord
        from .ensemble_module import EnsembleModule
        from .ensemble_network import DynamicsEnsemble
        from .transition_datamodule import TransitionDataModule

        assert isinstance(datamodule, TransitionDataModule)
        environment = datamodule.data.environment
        network = DynamicsEnsemble(environment.observation_dim, environment.action_dim, self)
        network.normalize_like(datamodule.train_set.all)
        return EnsembleModule(network, config.optimizer, plan, TrainingRecord.of(self.kind, config, datamodule.data))

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> NoReturn:
        raise UserError(
            f"'{checkpoint.name}' holds an ensemble of dynamics models, which predicts but does not act; compare a "
            f"transformer with it by checkpoint=TRANSFORMER.ckpt task=predict predict.ensemble={checkpoint.name}"
        )
