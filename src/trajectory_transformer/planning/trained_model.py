"""What a checkpoint holds of a trained Trajectory Transformer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from ..checkpoint import SECTION, require_kind, weights_of
from ..configuration import PlannerConfig
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer


@dataclass(frozen=True)
class TrainedModel:
    """A model with all that gives its tokens a meaning.

    Attributes:
        model: with its trained weights, in evaluation mode.
        discretizer: the one it was trained with.
        environment: the spaces of its data, and the environment to act in.
    """

    model: TrajectoryTransformer
    discretizer: Discretizer
    environment: EnvironmentSpec

    @classmethod
    def from_contents(
        cls, contents: Mapping[str, Any], device: str = "cpu", allow: Sequence[str] = ()
    ) -> "TrainedModel":
        """From what :func:`~..checkpoint.read_checkpoint` returned; ``allow`` as for
        :meth:`~.agent.Agent.from_checkpoint`.

        Raises:
            UserError: the contents do not fit together, name a class that is not allowed, or are no transformer's.
        """
        require_kind(contents, "transformer")
        record = contents[SECTION]
        try:
            model = TrajectoryTransformer(TransformerConfig(**record["model"]), allow)
            model.load_state_dict(weights_of(contents, "model"))
            discretizer = Discretizer.from_dict(record["discretizer"]).to(device)
            environment = EnvironmentSpec.from_dict(record["environment"])
        except UserError:
            raise
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint's contents do not fit together: {error}") from error
        return cls(model.to(device).eval(), discretizer, environment)


def recorded_settings(contents: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[PlannerConfig, float]:
    """How a checkpoint's agent plans: the recorded settings with some fields replaced, and the data's discount.

    Raises:
        UserError: a name is not a planner option, a value is out of range, or the record is not ours.
    """
    known = [field.name for field in fields(PlannerConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise UserError(f"planner has no option {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        recorded = PlannerConfig(**contents[SECTION]["planner"])
        discount = float(contents[SECTION]["data"]["discount"])
    except (KeyError, TypeError) as error:
        raise UserError(f"the checkpoint's record of its planner cannot be read: {error}") from error
    return replace(recorded, **changes), discount
