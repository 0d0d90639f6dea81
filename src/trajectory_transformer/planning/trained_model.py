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
from .objectives import make_objective


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
) -> tuple[PlannerConfig, float]:
    """How a checkpoint's agent plans: the recorded settings with some fields replaced, and the data's discount.

    Args:
        contents: of :func:`~..checkpoint.read_checkpoint`.
        changes: what the user gave. A ``name`` alone also chooses the objective that it stands for; an ``objective``
            without ``_target_`` changes options of the recorded one.
        allow: packages besides this one whose classes the checkpoint may name.

    Returns:
        settings, whose objective is built; and the discount of the data.

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
    given = changes.get("objective")
    partly = isinstance(given, Mapping) and "_target_" not in given
    if partly:
        changes = {**changes, "objective": OmegaConf.to_container(OmegaConf.merge(recorded.objective_spec, given))}
    elif given is not None:
        changes = {"name": "", **changes}
    elif changes.get("name") in OBJECTIVES:
        changes = {**changes, "objective": None}
    settings = replace(recorded, **changes)
    trusted = allow if given is None or partly else TYPED_BY_USER
    return replace(settings, objective=make_objective(settings, trusted)), discount
