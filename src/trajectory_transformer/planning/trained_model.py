"""What a checkpoint holds of a trained Trajectory Transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from omegaconf import OmegaConf

from ..building import TYPED_BY_USER
from ..checkpoint import SECTION, require_kind, weights_of
from ..configuration import OBJECTIVES, PlannerConfig
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..model.config import TrajectoryTransformerConfig
from ..model.gpt import TrajectoryTransformerModel
from .objectives import Objective, make_objective


@dataclass(frozen=True)
class TrainedModel:
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
    def from_contents(cls, contents: Mapping[str, Any], device: str = "cpu") -> "TrainedModel":
        """From what :func:`~..checkpoint.read_checkpoint` returned.

        Raises:
            UserError: the contents do not fit together, or are no transformer's.
        """
        require_kind(contents, "transformer")
        record = contents[SECTION]
        try:
            model = TrajectoryTransformerModel(TrajectoryTransformerConfig(**record["model"]))
            model.load_state_dict(weights_of(contents, "model"))
            discretizer = Discretizer.from_dict(record["discretizer"]).to(device)
            environment = EnvironmentSpec.from_dict(record["environment"])
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint's contents do not fit together: {error}") from error
        return cls(model.to(device).eval(), discretizer, environment)


def recorded_settings(
    contents: Mapping[str, Any], changes: Mapping[str, Any], allow: Sequence[str] = ()
) -> tuple[PlannerConfig, Objective, float]:
    """How a checkpoint's agent plans: the recorded settings with some fields replaced, and the data's discount.

    Args:
        contents: of :func:`~..checkpoint.read_checkpoint`.
        changes: what the user gave. Another built-in's ``name`` also chooses its objective; an ``objective`` without
            ``_target_`` changes options of what is there.
        allow: packages besides this one whose classes the checkpoint may name.

    Returns:
        settings, their objective, and the discount of the data.

    Raises:
        UserError: a name is not a planner option, a value is out of range, the record is not ours, or its objective
            must not be imported.
    """
    known = [field.name for field in fields(PlannerConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise UserError(f"planner has no option {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        recorded = PlannerConfig.from_record(contents[SECTION]["planner"])
        discount = float(contents[SECTION]["data"]["discount"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the checkpoint's record of its planner cannot be read: {error}") from error
    given, name = changes.get("objective"), changes.get("name", recorded.name)
    partly = isinstance(given, Mapping) and "_target_" not in given
    renamed = name != recorded.name and name in OBJECTIVES
    if partly:
        present = {"_target_": OBJECTIVES[name]} if renamed else recorded.objective_spec
        changes = {**changes, "objective": OmegaConf.to_container(OmegaConf.merge(present, given))}
    elif given is not None:
        changes = {"name": "", **changes}
    elif renamed:
        changes = {**changes, "objective": None}
    settings = replace(recorded, **changes)
    return settings, make_objective(settings, allow if given is None or partly else TYPED_BY_USER), discount
