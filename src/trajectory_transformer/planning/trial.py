"""A trial of an objective on random candidates, so that a mistake in its code shows before a training, not after it."""

import inspect
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from .objectives import Candidates, Objective, PlanningContext, WeightedSum

_ENVIRONMENTS = 2  # of which the first is at its episode's first step


@torch.inference_mode()
def try_objective(objective: Objective, context: PlanningContext) -> None:
    """Score random candidates of a plan's first and last transition with a prepared objective.

    They are as many as the search of ``context.settings`` has, in two environments, and in the range of the data. An
    objective that is searched token by token is not called by a search, and not tried.

    Raises:
        UserError: the objective fails, returns scores of another shape than (environment, n), or all scores of an
            environment are NaN; the message names its class, the error, and the line of its code.
    """
    if objective.by_token:
        return
    for t in sorted({0, context.settings.horizon - 1}):
        _require_scores(objective, _random_candidates(objective, context, t))


def _random_candidates(objective: Objective, context: PlanningContext, t: int) -> Candidates:
    layout, settings, discretizer = context.layout, context.settings, context.discretizer
    assert settings.discount is not None
    generator, shape = torch.Generator().manual_seed(0), (_ENVIRONMENTS, settings.beam_width * settings.n_expand)
    size = *shape, t + 1, layout.transition_dim
    plans = torch.randint(discretizer.num_bins, size, generator=generator).to(context.device)
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
        traced=lambda: plans[..., layout.action],
        executed=executed,
    )


def _require_scores(objective: Objective, candidates: Candidates) -> None:
    if (fault := _fault(objective, candidates)) is None:
        return
    if isinstance(objective, WeightedSum):
        for term in objective.objectives:
            _require_scores(term, candidates)
    raise UserError(f"planner.objective: {fault}")


def _fault(objective: Objective, candidates: Candidates) -> str | None:
    """Score the candidates; returns what is wrong with the objective, its class and line included, or None."""
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
        return None
    needed = f"it must return a tensor of scores, one for each candidate, {expected}"
    return f"{_name(objective)} {fault} ({_place(*_definition(objective))}); {needed}"


def _failure(objective: Objective, error: Exception) -> str:
    """Return the message about an exception, with the last line in the file of the innermost objective called."""
    trace, failed, (file, line) = error.__traceback__, objective, _definition(objective)
    while trace is not None:
        frame = trace.tb_frame
        caller = frame.f_locals.get("self")
        if isinstance(caller, Objective):
            failed, file = caller, frame.f_code.co_filename
        if frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"{_name(failed)} fails on random candidates: {reason} ({_place(file, line)})"


def _definition(objective: Objective) -> tuple[str, int]:
    """Return the file and line of the function that computes an objective's scores."""
    code = inspect.unwrap(type(objective).__call__).__code__
    return code.co_filename, code.co_firstlineno


def _name(objective: Objective) -> str:
    return f"{type(objective).__module__}.{type(objective).__qualname__}"


def _place(file: str, line: int) -> str:
    path, here = Path(file), Path.cwd()
    return f"{path.relative_to(here) if path.is_relative_to(here) else path}:{line}"
