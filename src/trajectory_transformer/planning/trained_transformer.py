"""A trained Trajectory Transformer with its discretiser and environment, from a checkpoint."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from omegaconf import OmegaConf

from ..building import TYPED_BY_USER
from ..checkpoint import Checkpoint, fitting_parts
from ..configuration import OBJECTIVES, PlannerConfig, require
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..model.action_improvement import ActionImprovement
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer, sample_logits
from .objectives import Objective, Return, make_objective
from .search import make_search

log = logging.getLogger(__name__)

ROUNDING = 0.05  # largest difference of logits, in their standard deviations, by another device or precision


@dataclass(frozen=True)
class TrainedTransformer:
    """A trained model with the discretiser and environment that its tokens refer to.

    Of an ensemble (``model.members``), ``model`` is the first one.
    """

    model: TrajectoryTransformer  # with its trained weights, in evaluation mode
    discretizer: Discretizer  # the one that it was trained with
    environment: EnvironmentSpec  # the spaces of its data, and the environment to act in
    improvements: tuple[ActionImprovement, ...] = ()  # of each member; correct planned actions; on the CPU
    others: tuple[TrajectoryTransformer, ...] = ()  # the ensemble's other models

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "cpu", allow: Sequence[str] = ()) -> "TrainedTransformer":
        """Load the model of a checkpoint to a device; its blocks may come from this package and those allowed.

        Raises:
            UserError: the checkpoint's parts do not fit together, or are not a transformer's.
        """
        checkpoint.require_kind("transformer")
        with fitting_parts(checkpoint.name):
            config = TransformerConfig(**checkpoint.model)
        make, outline = partial(TrajectoryTransformer, config, allow), partial(TrajectoryTransformer.outline, config)
        beginnings = ["", *(f"others.{index}." for index in range(config.members - 1))]  # of their weights' names
        model, *others = (checkpoint.build(f"{begin}model", make, outline) for begin in beginnings)
        _warn_of_other_code(checkpoint, model)
        discretizer = checkpoint.training.discretizer
        if discretizer is None:
            raise UserError(f"checkpoint '{checkpoint.name}' has no discretiser, so its tokens cannot be decoded")
        improvements = ()
        if improves(checkpoint):
            sizes = partial(ActionImprovement, config.observation_dim, config.action_dim)
            improvements = tuple(checkpoint.build(f"{begin}improvement", sizes) for begin in beginnings)
        parts = model.to(device).eval(), discretizer.to(device), checkpoint.training.environment
        return cls(*parts, improvements, tuple(other.to(device).eval() for other in others))


def _warn_of_other_code(checkpoint: Checkpoint, model: TrajectoryTransformer) -> None:
    """Warn if the model computes other logits than when it was saved: its code was changed since."""
    saved = checkpoint.training.sample_logits
    if saved is None:  # an older checkpoint, or one of divided weights
        return
    found = sample_logits(model)
    if saved.shape != found.shape or (saved - found).abs().max() > ROUNDING * saved.float().std():
        log.warning(
            "%s: the code of the model computes something else now than when this checkpoint was saved, so plans are "
            "not those of the model that was trained; restore that code, or train again",
            checkpoint.name,
        )


def improves(checkpoint: Checkpoint) -> bool:
    """True if the checkpoint has a network that corrects planned actions (:class:`ActionImprovement`)."""
    fitted = checkpoint.state_dict.get("improvement.fitted")
    return fitted is not None and bool(fitted.any())


def planner_settings(
    checkpoint: Checkpoint, changes: Mapping[str, Any], allow: Sequence[str] = ()
) -> tuple[PlannerConfig, Objective]:
    """Planner settings of a checkpoint with some changed, discount and ``act`` resolved; and their objective.

    A search of one's own is built, too. If ``changes`` name another built-in planner, its objective replaces the
    recorded one; an ``objective`` or ``search`` without ``_target_`` only changes options of it. The checkpoint may
    name classes of this package and of those allowed.

    Raises:
        UserError: a name is not a planner option, a value is out of range, the checkpoint has no planner, or its
            objective or search must not be imported.
    """
    known = [field.name for field in fields(PlannerConfig)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise UserError(f"planner has no option {', '.join(unknown)}; it has {', '.join(known)}")
    recorded = checkpoint.training.planner
    if recorded is None:
        raise UserError(f"checkpoint '{checkpoint.name}' does not say how to plan with it")
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
    search = changes.get("search")
    own_search = search is not None and not (isinstance(search, Mapping) and "_target_" not in search)
    if search is not None and not own_search:
        require(recorded.search is not None, "planner.search has no class: give planner.search._target_=my_module.Mine")
        changes = {**changes, "search": OmegaConf.to_container(OmegaConf.merge(recorded.search, search))}
    if changes.get("discount", recorded.discount) is None:
        changes = {**changes, "discount": checkpoint.training.data.discount}
    settings = replace(recorded, **changes)
    objective = make_objective(settings, allow if given is None or partly else TYPED_BY_USER)
    settings = replace(settings, search=make_search(settings, TYPED_BY_USER if own_search else allow))
    if objective.by_token and settings.act == "auto":
        settings = replace(settings, act="best")
    model = checkpoint.model
    pretrained = model.get("numerical_embedding") is not None and model.get("numerical_pretraining", 0.0) > 0.0
    by_return = type(objective) is Return
    settings = settings.resolve_act(checkpoint.training.value_r2, by_return, pretrained)
    return settings.resolve_improvement(by_return, improves(checkpoint)), objective
