"""The behaviour policy of an embedded data set as a learner without training, to measure its return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import TrainConfig, require
from ..simulation import REGISTRY
from ..simulation.policies import PolicyBehavior
from ..training.learner import OPTIONS_OF_WINDOWS, Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .behavior_module import BehaviorModule
    from .policy_agent import PolicyAgent
    from .transition_datamodule import TransitionDataModule


@dataclass
class DeterministicBehavior(Learner):
    """The policy that simulated an embedded data set, without noise; of several policies, the most trained one.

    Its weights are read from this package and do not change, so one update, ``trainer.max_steps=1``, is enough.
    """

    kind = "behavior"
    ignores = (*OPTIONS_OF_WINDOWS, "optimizer", "init_from")

    @override
    def check(self, config: TrainConfig) -> None:
        super().check(config)
        latest_behavior(config.data.dataset_ids)
        require(
            config.data.observation_indices is None and config.data.observation_keys is None,
            "learner=behavior needs the whole observation: leave out data.observation_indices and "
            "data.observation_keys",
        )

    @override
    def uses_rewards(self, config: TrainConfig) -> bool:
        return False

    @override
    def make_datamodule(self, config: TrainConfig) -> "TransitionDataModule":
        from .transition_datamodule import TransitionDataModule

        return TransitionDataModule(config.data, config.seed)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "BehaviorModule":
        from ..checkpoint import TrainingRecord
        from .behavior_module import BehaviorModule, SnapshotPolicy

        data = datamodule.data
        network = SnapshotPolicy(data.environment, latest_behavior(data.dataset_ids))
        return BehaviorModule(network, config.optimizer, plan, TrainingRecord.of(self.kind, config, data))

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "PolicyAgent":
        from .behavior_module import SnapshotPolicy
        from .policy_agent import PolicyAgent

        self.require_no_planner(checkpoint, planner)
        environment, behavior = checkpoint.training.environment, latest_behavior(checkpoint.training.dataset.ids)
        network = checkpoint.build("network", partial(SnapshotPolicy, environment, behavior))
        return PolicyAgent(network.to(device).eval(), environment, device, "behavior_policy")


def latest_behavior(dataset_ids: Sequence[str]) -> PolicyBehavior:
    """The policy with the most training among those that simulated these data sets; UserError if none is known."""
    recipes = [REGISTRY[name] for name in dataset_ids if name in REGISTRY]
    policies = [one for recipe in recipes for one in recipe.behaviors if isinstance(one, PolicyBehavior)]
    known = [name for name, recipe in REGISTRY.items() if any(isinstance(b, PolicyBehavior) for b in recipe.behaviors)]
    require(
        0 < len(dataset_ids) == len(recipes) and len(policies) > 0,
        f"learner=behavior has no policy for data set {', '.join(dataset_ids) or 'data.source'}; it has one for "
        f"{', '.join(known)}",
    )
    return max(policies, key=lambda policy: policy.snapshot)
