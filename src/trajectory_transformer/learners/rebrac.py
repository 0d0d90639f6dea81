"""ReBRAC as a learner: an actor and critics, both penalised for leaving the data's actions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import LARGEST, TrainConfig, validate, within
from ..training.learner import OPTIONS_OF_WINDOWS, Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .policy_agent import PolicyAgent
    from .rebrac_module import FollowedDataModule, RegularizedModule


@dataclass
class RegularizedActorCritic(Learner):
    """ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023), by default with the paper's settings for Hopper-medium.

    The two penalties are the paper's β₁ (actor) and β₂ (critics), which it tuned for each of D4RL's sets (v2):

    ===========  ==============  ==============  =============
    set          hopper          halfcheetah     walker2d
    ===========  ==============  ==============  =============
    medium       0.01 / 0.01     0.001 / 0.01    0.05 / 0.1
    replay       0.05 / 0.5      0.01 / 0.001    0.05 / 0.01
    med.-expert  0.1 / 0.01      0.01 / 0.1      0.01 / 0.01
    expert       0.1 / 0.1       0.01 / 0.01     0.01 / 0.5
    random       0.001 / 0.01    0.001 / 0.1     0.01 / 0
    ===========  ==============  ==============  =============
    """

    kind = "rebrac"
    ignores = (*OPTIONS_OF_WINDOWS, "data.continue_truncated")

    hidden_layers: int = within(3, 1, 1000)
    """Hidden layers of each network."""
    hidden_width: int = within(256, 1, 65_536)
    """Units per hidden layer."""
    actor_penalty: float = within(0.01, 0.0, LARGEST)
    """Weight of the squared distance to the data's actions in the actor's loss."""
    critic_penalty: float = within(0.01, 0.0, LARGEST)
    """Weight of the squared distance to the data's next actions in the critics' target."""
    policy_noise: float = within(0.2, 0.0, LARGEST)
    """Standard deviation of the noise on the target's actions, in units of half the action range."""
    noise_clip: float = within(0.5, 0.0, LARGEST)
    """Limit of that noise, in the same units."""
    policy_every: int = within(2, 1, 1_000_000)
    """Updates of the critics per update of the actor and the targets."""
    target_rate: float = within(0.005, high=1.0, above=0.0)
    """Share of the new networks that enters their target networks."""

    def __post_init__(self) -> None:
        validate("learner.", self)

    @override
    def make_datamodule(self, config: TrainConfig) -> "FollowedDataModule":
        from .rebrac_module import FollowedDataModule

        return FollowedDataModule(config.data, config.seed)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "RegularizedModule":
        from ..checkpoint import TrainingRecord
        from .rebrac_module import RegularizedModule
        from .rebrac_network import ActorCritic

        network = ActorCritic(datamodule.data.environment, self)
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return RegularizedModule(network, config.optimizer, plan, record)

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "PolicyAgent":
        from .policy_agent import PolicyAgent
        from .rebrac_network import ActorCritic

        self.require_no_planner(checkpoint, planner)
        environment = checkpoint.training.environment
        network = checkpoint.build("network", partial(ActorCritic, environment, self))
        return PolicyAgent(network.to(device).eval().policy, environment, device, "rebrac_policy")
