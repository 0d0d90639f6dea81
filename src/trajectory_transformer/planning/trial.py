"""Trials of an objective and of a model on random numbers, so that a mistake shows before a training, not after it."""

import functools
import inspect
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..configuration import require
from ..errors import UserError, in_one_line
from ..model.gpt import TrajectoryTransformer
from .objectives import Candidates, Objective, PlanningContext, WeightedSum
from .proof import decoding_error, tolerance_of
from .transformer_decoder import TransformerDecoder

log = logging.getLogger(__name__)

_ENVIRONMENTS = 2  # of which the first is at its episode's first step
_ROWS = 3  # sequences decoded
_TRANSITIONS = 3  # of each
_NOISE = 0.1  # deviation


@torch.inference_mode()
def try_model(model: TrajectoryTransformer) -> None:
    """Decode a few random tokens with an untrained model, and compare the logits with those of one forward pass.

    The weights are changed by noise first, so that what a weight of 0 would hide shows, too.

    Raises:
        UserError: a block fails or returns another shape than its input's, with the line of its code; or its
            predictions depend on more than the tokens that it may attend to.
    """
    block, generator = type(model.blocks[0]), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.add_(_NOISE * torch.randn(parameter.shape, generator=generator))
    code = inspect.unwrap(block.forward).__code__
    defined = _place(code.co_filename, code.co_firstlineno)
    name = "model/gpt.py" if model.config.block is None else f"model.block: {_name(model.blocks[0])}"

    def require_like_input(_: object, inputs: tuple[Any, ...], output: object) -> None:
        expected, found = tuple(inputs[0].shape), getattr(output, "shape", None)
        got = f"a {type(output).__name__}" if found is None else f"shape {tuple(found)}"
        require(
            found == inputs[0].shape,
            f"{name} returns {got} for an input of shape {expected} ({defined}); forward(x, layer, memory) must return "
            "a tensor like x, (batch, time, n_embd)",
        )

    for module in model.blocks:
        module.register_forward_hook(require_like_input)
    try:
        decoder = TransformerDecoder(model.eval(), _TRANSITIONS, True, _ROWS)
        error = decoding_error(decoder, model, _TRANSITIONS, True, _ROWS)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        place = _last_line(error, code.co_filename, code.co_firstlineno)
        raise UserError(f"{name} fails on random tokens: {in_one_line(error)} ({place})") from error
    require(
        error <= tolerance_of(model),
        f"{name} cannot be used for planning ({defined}): its predictions token by token differ from those of one "
        f"forward pass (a logit by {error:.2g} of its size, far more than rounding); all attention must go through "
        "memory.attend, positions must come from memory.positions, nothing else may mix the tokens of a sequence, and "
        "nothing may be random in evaluation mode (evaluation.episodes=0 trains without planning)",
    )


@torch.inference_mode()
def try_objective(objective: Objective, context: PlanningContext) -> None:
    """Score random candidates of a plan's first and last transition with a prepared objective.

    They are as many as the search of ``context.settings`` has, in two environments, and in the range of the data. An
    objective that is searched token by token is not called by a search, and not tried. One that gives all plans the
    same score is told in a warning, once in a process.

    Raises:
        UserError: the objective fails, returns scores of another shape than (environment, n), or all scores of an
            environment are NaN; the message names its class, the error, and the line of its code.
    """
    if objective.by_token:
        return
    transitions = sorted({0, context.settings.horizon - 1})
    tried = [_scores(objective, _random_candidates(objective, context, t)) for t in transitions]
    last = tried[-1].nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    if last.shape[1] > 1 and (last == last[:, :1]).all():
        _warn_of_equal_scores(_name(objective), _place(*_definition(objective)), context.settings.horizon)


@functools.cache
def _warn_of_equal_scores(name: str, place: str, horizon: int) -> None:
    log.warning(
        "planner.objective: %s gives all random plans the same score (%s), so it chooses none; with planner.horizon=%d "
        "plans differ in their actions, rewards and value%s",
        name,
        place,
        horizon,
        " alone" if horizon == 1 else ", and in the observations after the first",
    )


def _random_candidates(objective: Objective, context: PlanningContext, t: int) -> Candidates:
    layout, settings, discretizer = context.layout, context.settings, context.discretizer
    assert settings.discount is not None
    generator, shape = torch.Generator().manual_seed(0), (_ENVIRONMENTS, settings.beam_width * settings.n_expand)
    size = *shape, t + 1, layout.transition_dim
    plans = torch.randint(discretizer.num_bins, size, generator=generator).to(context.device)
    plans[:, :, 0, layout.observation] = plans[:, :1, 0, layout.observation]  # the present one
    values = discretizer.decode(plans)
    returns = torch.zeros(*shape, settings.horizon + 1, device=values.device)
    returns[:, :, : t + 1] = values[..., layout.reward]
    returns[:, :, t + 1] = values[:, :, -1, layout.value]
    executed = values[:, 0, 0, layout.action].clone()
    executed[0] = torch.nan
    return Candidates(
        t=t,
        returns=returns,
        discounts=settings.discount ** torch.arange(settings.horizon + 1, device=values.device),
        tokens=plans[:, :, -1],
        layout=layout,
        decode=discretizer.decode,
        sampled=-torch.rand(shape, generator=generator).to(values) if objective.needs_log_likelihoods else None,
        traced=lambda: plans,
        executed=executed,
        probabilities=torch.rand(*shape, 2, discretizer.num_bins, generator=generator).to(values),
    )


def _scores(objective: Objective, candidates: Candidates) -> Tensor:
    """Scores (environment, n) of the candidates; UserError if something is wrong with the objective, or a term."""
    found = _scores_or_fault(objective, candidates)
    if isinstance(found, Tensor):
        return found
    if isinstance(objective, WeightedSum):
        for term in objective.objectives:
            _scores(term, candidates)
    raise UserError(f"planner.objective: {found}")


def _scores_or_fault(objective: Objective, candidates: Candidates) -> Tensor | str:
    """Score the candidates, or say what is wrong with the objective, its class and line included."""
    try:
        scores = objective(candidates)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        return _failure(objective, error)
    expected = tuple(candidates.tokens.shape[:2])
    if not isinstance(scores, Tensor):
        fault = f"returns a {type(scores).__name__}"
    elif tuple(scores.shape) != expected:
        fault = f"returns scores of shape {tuple(scores.shape)}"
    elif scores.isnan().all(dim=1).any():
        fault = "returns NaN for each candidate"
    else:
        return scores
    needed = f"it must return a tensor of scores, one for each candidate, {expected}"
    return f"{_name(objective)} {fault} ({_place(*_definition(objective))}); {needed}"


def _failure(objective: Objective, error: Exception) -> str:
    """Return the message about an exception, with the last line in the file of the innermost objective called."""
    trace, failed, (file, line) = error.__traceback__, objective, _definition(objective)
    while trace is not None:
        caller = trace.tb_frame.f_locals.get("self")
        if isinstance(caller, Objective):
            failed, file = caller, trace.tb_frame.f_code.co_filename
        trace = trace.tb_next
    return f"{_name(failed)} fails on random candidates: {in_one_line(error)} ({_last_line(error, file, line)})"


def _last_line(error: Exception, file: str, line: int) -> str:
    """Return the place of the last line of ``file`` in an exception's traceback; ``line`` if it has none."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return _place(file, line)


def _definition(objective: Objective) -> tuple[str, int]:
    """Return the file and line of the function that computes an objective's scores."""
    code = inspect.unwrap(type(objective).__call__).__code__
    return code.co_filename, code.co_firstlineno


def _name(instance: object) -> str:
    return f"{type(instance).__module__}.{type(instance).__qualname__}"


def _place(file: str, line: int) -> str:
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
