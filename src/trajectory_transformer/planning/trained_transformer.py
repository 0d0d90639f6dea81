"""A trained Trajectory Transformer with its discretiser and environment, from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..checkpoint import Checkpoint
from ..configuration import PlannerConfig
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..model.config import TrajectoryTransformerConfig
from ..model.gpt import TrajectoryTransformerModel


@dataclass(frozen=True)
class TrainedTransformer:
    """A model with all that gives its tokens a meaning.

    Attributes:
        model: with its trained weights, in evaluation mode.
        discretizer: the one it was trained with.
        environment: the spaces of its data, and the environment to act in.
    """

    model: TrajectoryTransformerModel
    discretizer: Discretizer
    environment: EnvironmentSpec

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "cpu") -> "TrainedTransformer":
        """The model in a checkpoint.

        Raises:
            UserError: its parts do not fit together, or are no transformer's.
        """
        checkpoint.require_kind("transformer")
        try:
            model = TrajectoryTransformerModel(TrajectoryTransformerConfig(**checkpoint.model))
            model.load_state_dict(checkpoint.weights("model"))
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"the contents of checkpoint '{checkpoint.name}' do not fit together: {error}") from error
        discretizer = checkpoint.training.discretizer
        if discretizer is None:
            raise UserError(f"checkpoint '{checkpoint.name}' has no discretiser, so its tokens mean nothing")
        return cls(model.to(device).eval(), discretizer.to(device), checkpoint.training.environment)


def planner_settings(checkpoint: Checkpoint, changes: Mapping[str, Any]) -> PlannerConfig:
    """How a checkpoint's agent plans: the recorded settings with some replaced, and the data's discount if none is set.

    Raises:
        UserError: a name is not a planner option, a value is out of range, or there is no record of a planner.
    """
    known = [field.name for field in fields(PlannerConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise UserError(f"planner has no option {', '.join(unknown)}; it has {', '.join(known)}")
    if checkpoint.training.planner is None:
        raise UserError(f"checkpoint '{checkpoint.name}' does not say how to plan with it")
    settings = replace(checkpoint.training.planner, **changes)
    return settings if settings.discount is not None else replace(settings, discount=checkpoint.training.data.discount)
