"""A trial of a user's learner on a few examples, so that a mistake in its code shows before a training."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..building import PACKAGE
from ..checkpoint import Checkpoint
from ..configuration import TrainConfig, require
from ..errors import UserError, in_one_line
from ..training.datamodule import OfflineDataModule
from ..training.fit import make_module
from ..training.learner import Learner
from .transition_module import TransitionModule

_EXAMPLES = 8


def try_learner(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule[Any]) -> None:
    """Compute the losses of a learner that is not one of this package's, and let its untrained agent act once.

    Raises:
        UserError: the losses are not scalars, or one that is logged is missing; the action has another shape than the
            data's; or the learner's code fails, with the part of the traceback that lies in it.
    """
    name = f"{type(learner).__module__}.{type(learner).__qualname__}"
    if name.startswith(f"{PACKAGE}."):
        return
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Using a target size")  # shapes that broadcast in a loss
            module = make_module(learner, config, datamodule)
            if isinstance(module, TransitionModule):
                examples = datamodule.train_examples
                _require_losses(module, module.losses(examples.gather(torch.arange(min(_EXAMPLES, len(examples))))))
            if learner.acts and not learner.plans:
                checkpoint = Checkpoint("(untrained)", module.record, module.model_options(), module.state_dict())
                agent = learner.own_agent(config, checkpoint, "cpu")
                agent.reset(1)
                action = agent.act(datamodule.data.episodes[0].observations[:1])
                expected, found = (1, datamodule.data.environment.action_dim), getattr(action, "shape", None)
                require(found == expected, f"its agent's actions have shape {found}, expected {expected}")
    except UserError as error:
        raise UserError(f"learner {name}, tried before training: {error}") from error
    except Exception as error:  # whatever the user's own code raises
        message = f"learner {name} fails when it is tried before training: {in_one_line(error)}"
        raise UserError.of_own_code(message, error) from error


def _require_losses(module: TransitionModule, result: object) -> None:
    """Raise UserError unless the result of :meth:`TransitionModule.losses` is valid."""
    place = f"{type(module).__qualname__}.losses"
    require(
        isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping),
        f"{place} must return the loss and a dict of the values to log; it returned a {type(result).__name__}",
    )
    assert isinstance(result, tuple)
    loss, values = result
    for what, value in {"the loss": loss, **{f"'{name}'": value for name, value in values.items()}}.items():
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        require(
            isinstance(value, Tensor) and value.ndim == 0,
            f"{place}: {what} has {shape}, expected a tensor of shape (), such as a mean",
        )
    require(loss.requires_grad, f"{place}: the loss does not depend on any weight of the network")
    missing = [name for name in ("loss", *module.logged) if name not in values]
    require(not missing, f"{place} returns no '{''.join(missing[:1])}' among the values to log, {', '.join(values)}")
    require("loss" in module.logged, f"{type(module).__qualname__}.logged has no 'loss', by which weights are chosen")
