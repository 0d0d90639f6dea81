"""Trials of a user's learner, loss or search on examples, so that a mistake in its code shows before a training."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..building import PACKAGE
from ..checkpoint import Checkpoint
from ..configuration import PlannerConfig, TrainConfig, require
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..errors import UserError, in_one_line
from ..model.gpt import TrajectoryTransformer
from ..planning.planner import BeamPlanner
from ..training.datamodule import OfflineDataModule
from ..training.fit import make_module
from ..training.learner import Learner
from .transformer_module import TrajectoryModule
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


def try_search(
    model: TrajectoryTransformer, discretizer: Discretizer, settings: PlannerConfig, environment: EnvironmentSpec
) -> None:
    """Plan twice from random tokens with the search that ``settings`` name and an untrained model.

    Raises:
        UserError: the search cannot be made; its result has wrong shapes or depends on more than the given random
            numbers; or its code fails, with the part of the traceback that lies in it.
    """
    planner = BeamPlanner(model, discretizer, replace(settings, act="best", improvement=None), environment)
    layout, generator = model.layout, torch.Generator().manual_seed(0)
    length = layout.observation_dim + layout.transition_dim * model.config.goal_conditioned
    prefix = torch.randint(discretizer.num_bins, (2, length), generator=generator)
    name = f"planner.search: {planner.settings.search['_target_']}"
    try:
        first, second = (
            planner.plan(prefix, [torch.Generator().manual_seed(seed) for seed in (0, 1)]) for _ in range(2)
        )
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        message = f"{name} fails when it is tried before training: {in_one_line(error)}"
        raise UserError.of_own_code(message, error) from error
    require(
        torch.equal(first.tokens, second.tokens),
        f"{name} finds other plans when it is called again with the same random numbers, so results would not be "
        "reproducible: draw by problem.uniforms alone, and keep nothing from one plan to the next",
    )


def try_loss(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule[Any]) -> None:
    """Compute the loss that ``trainer.loss`` names, and its gradient, for a few windows and an untrained model.

    Raises:
        UserError: its result is not a loss and logits (:meth:`TrainingLoss.forward`), it is not finite, depends on no
            weight of the model or changes the batch, or its code fails, with the part of the traceback that lies in it.
    """
    name = f"trainer.loss: {config.trainer.loss['_target_']}"
    module = make_module(learner, config, datamodule)
    assert isinstance(module, TrajectoryModule)
    batch = datamodule.train_examples.gather(torch.arange(min(_EXAMPLES, len(datamodule.train_examples))))
    before = [part.clone() for part in batch]
    try:
        result = module.loss(module.model, batch)
        loss = _require_result(
            name, module.loss.logged, result, (*batch.targets.shape, module.model.config.vocab_size + 1)
        )
        loss.backward()
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        message = f"{name} fails when it is tried before training: {in_one_line(error)}"
        raise UserError.of_own_code(message, error) from error
    require(
        any(parameter.grad is not None for parameter in module.model.parameters()),
        f"{name}: the loss does not depend on any weight of the model",
    )
    require(
        all(part.equal(same) for part, same in zip(batch, before, strict=True)),
        f"{name} changes the batch, which further losses and models use; let it change a copy",
    )


def _require_result(name: str, logged: Sequence[str], result: object, shape: tuple[int, ...]) -> Tensor:
    """Return the loss in the result of :meth:`TrainingLoss.forward`; UserError unless the result is valid."""
    length = 3 if logged else 2
    require(
        isinstance(result, tuple)
        and len(result) == length
        and all(isinstance(values, Mapping) for values in result[2:]),
        f"{name} must return the loss and the logits{' and a dict of the values to log' if logged else ''}, a tuple of "
        f"{length}; it returned a {type(result).__name__}"
        + (f" of {len(result)}" if isinstance(result, tuple) else "")
        + ("" if logged else " (values to log need their names in the class attribute 'logged')"),
    )
    assert isinstance(result, tuple)
    loss, logits, *further = result
    values = dict(*further)
    missing = [value for value in logged if value not in values]
    require(not missing, f"{name} returns no '{''.join(missing[:1])}' among the values to log, {', '.join(values)}")
    scalars = {"the loss": loss, **{f"'{key}'": values[key] for key in logged}}
    for what, value, expected in (*((w, v, ()) for w, v in scalars.items()), ("the tensor of logits", logits, shape)):
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"type {type(value).__name__}"
        require(
            isinstance(value, Tensor) and value.shape == expected, f"{name}: {what} has {found}, expected {expected}"
        )
    require(loss.requires_grad, f"{name}: the loss does not depend on any weight of the model")
    require(bool(loss.isfinite()), f"{name}: the loss is {loss.item()} for a few windows and an untrained model")
    return loss


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
