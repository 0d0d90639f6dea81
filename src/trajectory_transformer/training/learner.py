"""The interface between ``train.py`` and a learner."""

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

OPTIONS_OF_WINDOWS = ("model", "planner", "data.discretizer", "data.sequence_length", "optimizer.muon")
"""Options, or groups of options, without effect on learners that neither use windows of tokens nor plan."""
OPTIONS_OF_RETURNS = ("data.discount", "data.termination_penalty", "data.continue_truncated")
"""Options without effect on training that uses no rewards (:meth:`Learner.uses_rewards`)."""


class Learner(ABC):
    """A method to train: its options, data module, Lightning module, and the agent that acts with the result.

    A subclass is a dataclass whose fields are its options; ``configs/learner/NAME.yaml`` names it under ``_target_``.
    """

    kind: ClassVar[str]  # short name, recorded in checkpoints
    acts: ClassVar[bool] = True  # has an agent (:meth:`make_agent`), which is evaluated after training
    plans: ClassVar[bool] = False  # its agent takes planner options
    ignores: ClassVar[tuple[str, ...]] = OPTIONS_OF_WINDOWS  # options without effect, which a user must not set

    def check(self, config: TrainConfig) -> None:
        """Raise UserError, which names the options, if options contradict each other; called before data are read."""
        require(not config.trainer.compile, f"trainer.compile=true is for learner=transformer, not {self.kind}")
        require(config.trainer.strategy != "fsdp", f"trainer.strategy=fsdp is for learner=transformer, not {self.kind}")
        require(not config.trainer.metrics, f"trainer.metrics are for learner=transformer, not {self.kind}")
        require(config.trainer.loss is None, f"trainer.loss is for learner=transformer, not {self.kind}")
        require(
            self.acts or config.evaluation.every is None,
            f"evaluation.every={config.evaluation.every}: learner={self.kind} does not act, so it has no returns to "
            "measure during training; leave it out",
        )

    def check_data(self, config: TrainConfig, datamodule: "OfflineDataModule[Any]") -> None:  # noqa: B027 - optional
        """Raise UserError, which names the options, if options do not fit the data."""

    def uses_rewards(self, config: TrainConfig) -> bool:
        """Return whether training depends on the data's rewards; if not, a user must not set their options."""
        return True

    @abstractmethod
    def make_datamodule(self, config: TrainConfig) -> "OfflineDataModule[Any]":
        """Make the learner's data module, not yet set up."""

    @abstractmethod
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "LearnerModule":
        """Make the network with initial weights, drawn from torch's global generator, which has been seeded.

        The data module has been set up; ``plan.tokens_per_step`` counts examples.

        Raises:
            UserError: the data do not fit the learner.
        """

    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "ActingAgent":
        """Make the agent of a checkpoint of this learner.

        Args:
            checkpoint: the checkpoint, already read.
            device: the torch device that computes.
            planner: planner options that replace those recorded.
            allow: packages besides this one whose classes the checkpoint may name.

        Raises:
            UserError: the learner does not act, or its agent does not take these options.
        """
        raise NotImplementedError(f"{type(self).__name__} has acts=True and no make_agent")

    def own_agent(self, config: TrainConfig, checkpoint: "Checkpoint", device: str) -> "ActingAgent":
        """:meth:`make_agent` for a checkpoint of the present run, with the planner options of ``config``."""
        planner = vars(config.planner) if self.plans else {}
        return self.make_agent(checkpoint, device, planner, packages_in(asdict(config)))

    def require_no_planner(self, checkpoint: "Checkpoint", planner: Mapping[str, Any]) -> None:
        """Raise UserError, which names the options, if planner options are set for an agent that does not plan."""
        require(
            not planner,
            f"'{checkpoint.name}' holds a policy of learner={self.kind}, which acts without planning: leave out "
            f"planner and {', '.join(f'planner.{name}' for name in planner)}",
        )


def make_learner(spec: object, allow: Sequence[str] | None) -> Learner:
    """Make the learner that ``learner=`` or a checkpoint names; arguments and errors: :func:`~..building.build`."""
    return build(spec, Learner, "learner", allow)
