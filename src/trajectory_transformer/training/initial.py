"""Initial weights of a run from a trained network, and the check that they fit."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ..building import targets_in, with_defaults
from ..checkpoint import Checkpoint, TrainingRecord, require_shapes
from ..configuration import require
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .learner_module import LearnerModule

log = logging.getLogger(__name__)

# Options of a model that its weights depend on, sizes of the data and windows first.
DECISIVE = (
    "observation_dim", "action_dim", "vocab_size", "goal_conditioned", "block_size", "n_layer", "n_embd", "n_head",
    "hidden_act", "layer_norm_eps", "numerical_embedding", "numerical_dynamics", "block", "members",
)  # fmt: skip


@dataclass(frozen=True)
class InitialWeights:
    """The weights of a trained network, with its options and data."""

    source: str  # as given by the user, for messages
    kind: str  # short name of their learner
    model: Mapping[str, Any]  # options and sizes that rebuild the network, as far as known
    weights: Mapping[str, Tensor]  # by their names in the training module
    record: TrainingRecord | None = None  # if they are from a checkpoint

    @classmethod
    def of_checkpoint(cls, path: str) -> Self:
        """The weights in a ``.ckpt`` file; raises as :meth:`~..checkpoint.Checkpoint.read`."""
        checkpoint = Checkpoint.read(path)
        return cls(path, checkpoint.training.kind, checkpoint.model, checkpoint.state_dict, checkpoint.training)

    def give_to(self, module: LearnerModule) -> None:
        """Copy the parameters to a module, but for those that it fits to its own data.

        Its buffers, such as means of the data, do not change.

        Raises:
            UserError: the weights belong to another learner, model or spaces, or a tensor is missing or has another
                shape.
        """
        here, now = f"init_from={self.source}", module.record
        require(self.kind == now.kind, f"{here} holds weights of learner={self.kind}, but this run trains {now.kind}")
        if self.record is not None:
            self._require_spaces(here, self.record.environment, now.environment)
        wanted = module.model_options()
        for name in DECISIVE:
            was, value = self.model.get(name, wanted.get(name)), wanted.get(name)
            if name == "block" and set(targets_in(was)) <= set(targets_in(value)):  # classes that the user named
                was = with_defaults(was, here)  # an older checkpoint does not record them
            if was != value:
                raise UserError(f"{here} holds a model with {self._difference(name, was, value, wanted)}")
        parameters = {
            name: parameter
            for name, parameter in module.named_parameters()
            if not _belongs(name, module.only_own_data)
            and (name in self.weights or not _belongs(name, module.only_training))
        }
        try:
            require_shapes(parameters, self.weights)
        except ValueError as error:
            raise UserError(f"{here} does not hold the weights that this run trains: {error}") from None
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(self.weights[name])
        bins = None if self.record is None else self.record.discretizer
        if now.discretizer is not None and (bins is None or not torch.equal(bins.edges, now.discretizer.edges)):
            known = "not known" if bins is None else "not this run's"
            log.warning(
                "%s: the bins that it was trained with are %s, so its tokens may stand for other values", here, known
            )

    def _difference(self, name: str, was: Any, value: Any, wanted: Mapping[str, Any]) -> str:
        """End of the message on an entry of :data:`DECISIVE`, with the option that changes it, if one does."""
        if name == "block_size":  # the tokens of a window
            lengths = ((size + 1) // wanted["transition_dim"] - wanted["goal_conditioned"] for size in (was, value))
            name, (was, value) = "data.sequence_length", lengths
        elif name.endswith("_dim"):
            return f"{name}={was}, but this run's data have {value}"
        else:
            if name == "block" and isinstance(was, Mapping):
                value = value or {}
                key = next(key for key in {**was, **value} if was.get(key) != value.get(key))
                name, was, value = f"block.{key}", was.get(key), value.get(key)
            group = "model" if self.kind == "transformer" else "learner"
            name = "data.discretizer.num_bins" if name == "vocab_size" else f"{group}.{name}"
        was, value = json.dumps(was), json.dumps(value)  # as on the command line: null, true, false
        return f"{name}={was}, but this run has {value}: give {name}={was}"

    @staticmethod
    def _require_spaces(here: str, was: EnvironmentSpec, now: EnvironmentSpec) -> None:
        for what in ("observation", "action"):
            sizes = [getattr(environment, f"{what}_dim") for environment in (was, now)]
            require(sizes[0] == sizes[1], f"{here} is for {sizes[0]} {what} dimensions, but the data have {sizes[1]}")
            same = getattr(was, what).structure == getattr(now, what).structure
            require(same, f"{here} is for another {what} space than the data's, with other keys, kinds or shapes")
        require(
            was.observation_indices == now.observation_indices,
            f"{here} uses the observation's dimensions {was.observation_indices}, this run {now.observation_indices}; "
            "train with the same data.observation_indices",
        )


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    """True if a parameter belongs to one of these parts of the module, or of a member of its ensemble."""
    return any(f".{part}" in f".{name}" for part in parts)
