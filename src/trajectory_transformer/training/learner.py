"""The interface of a learner: all that ``train.py`` needs to know of what it trains."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from ..building import build, packages_in
from ..configuration import TrainConfig, require

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..evaluation.records import ActingAgent
    from .datamodule import OfflineDataModule
    from .learner_module import LearnerModule
    from .optimization import TrainingPlan

OPTIONS_OF_WINDOWS = ("model", "planner", "data.discretizer", "data.sequence_length")
"""Options, or groups of them, that have no effect on networks that read no windows of tokens, and do not plan."""


class Learner(ABC):
    """A kind of network to train: its options, data, Lightning module, and the agent that acts with the result.

    A subclass is a dataclass whose fields are its options; ``configs/learner/NAME.yaml`` names it under ``_target_``.
    """

    kind: ClassVar[str]  # short name, recorded in checkpoints
    acts: ClassVar[bool] = True  # :meth:`make_agent` gives an agent, which training then ends by evaluating
    plans: ClassVar[bool] = False  # that agent takes planner options
    ignores: ClassVar[tuple[str, ...]] = ()  # options, or groups of them, that it takes no notice of: refused if typed

    def check(self, config: TrainConfig) -> None:
        """Refuse options that do not go together, with a UserError that names them, before data are read."""
        require(not config.trainer.compile, f"trainer.compile=true is for learner=transformer, not {self.kind}")
        require(config.trainer.strategy != "fsdp", f"trainer.strategy=fsdp is for learner=transformer, not {self.kind}")
        require(not config.trainer.metrics, f"trainer.metrics are for learner=transformer, not {self.kind}")
        require(
            self.acts or config.evaluation.every is None,
            f"evaluation.every={config.evaluation.every}: learner={self.kind} does not act, so that there are no "
            "returns to measure while it is trained; leave it out",
        )

    def check_data(self, config: TrainConfig, datamodule: "OfflineDataModule[Any]") -> None:  # noqa: B027 - optional
        """Refuse options that do not go with a data module's data, with a UserError that names them."""

    @abstractmethod
    def make_datamodule(self, config: TrainConfig) -> "OfflineDataModule[Any]":
        """The data as this learner sees them, not yet set up."""

    @abstractmethod
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "LearnerModule":
        """The network with its initial weights, drawn from torch's random numbers, which have been seeded.

        The data module is set up; ``plan.tokens_per_step`` counts examples.

        Raises:
            UserError: the data does not fit.
        """

    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "ActingAgent":
        """The agent that acts with a checkpoint of this learner.

        Args:
            checkpoint: as read.
            device: where it computes.
            planner: options that replace those recorded.
            allow: packages that the checkpoint may name parts of.

        Raises:
            UserError: it does not act, or does not take these options.
        """
        raise NotImplementedError(f"{type(self).__name__} has acts=True and no make_agent")

    def own_agent(self, config: TrainConfig, checkpoint: "Checkpoint", device: str) -> "ActingAgent":
        """As :meth:`make_agent`, of a run's own checkpoint: planner options are those typed, not what a file says."""
        planner = vars(config.planner) if self.plans else {}
        return self.make_agent(checkpoint, device, planner, packages_in(asdict(config)))

    def require_no_planner(self, checkpoint: "Checkpoint", planner: Mapping[str, Any]) -> None:
        """Refuse planner options for an agent that does not plan, with a UserError that names them."""
        require(
            not planner,
            f"'{checkpoint.name}' holds a policy of learner={self.kind}, which acts without planning: leave out "
            f"planner and {', '.join(f'planner.{name}' for name in planner)}",
        )


def make_learner(spec: object, allow: Sequence[str] | None) -> Learner:
    """The learner that ``learner=`` or a checkpoint names; arguments and errors as of :func:`~..building.build`."""
    return build(spec, Learner, "learner", allow)
