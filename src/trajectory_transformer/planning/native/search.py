"""A whole search in the native kernel (``search.h``), by one call from Python.

It does what :func:`~..beam_search.beam_search` does with a :class:`~.decoder.NativeDecoder` whose window does not
slide, without a deadline and with the objective :class:`~..objectives.Return`. This saves PyTorch's small calls, a
third of the time with small models; and a thread samples the next actions of a beam without waiting for other beams.
"""

import ctypes

import torch
from torch import Tensor

from ...configuration import PlannerConfig
from ...layout import TransitionLayout
from ..beam_search import SearchResult, SearchStep
from .decoder import NativeDecoder

_INTEGERS = ("environments", "time", "horizon", "width", "expand", "observation_dim", "k_observation", "k_action")
_FLOATS = ("temperature", "cdf", "fraction", "discount")
_ARRAYS = (
    "prefix", "uniforms", "centers", "observations", "tokens", "rewards", "values", "value_probabilities", "kept",
    "best", "best_rewards", "best_value", "best_score",
)  # fmt: skip


class _Search(ctypes.Structure):
    """``Search`` of ``search.h``, with the same fields."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in _FLOATS),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
    )


def native_search(
    decoder: NativeDecoder,
    prefix: Tensor,
    layout: TransitionLayout,
    settings: PlannerConfig,
    centers: Tensor,
    uniforms: Tensor,
) -> SearchResult:
    """Plan ``settings.horizon`` transitions, as :func:`~..beam_search.beam_search` does.

    ``centers`` (transition_dim, vocab_size) float32 are the bins' real values, from which rewards and return-to-go are
    estimated as ``settings.percentile`` says.
    """
    assert settings.discount is not None
    environments, horizon, width = len(prefix), settings.horizon, settings.beam_width
    candidates, observation_dim = width * settings.n_expand, layout.observation_dim
    whole, conditioned = torch.int64, settings.act == "conditioned"
    arrays = {
        "prefix": prefix.to(whole).contiguous(),
        "uniforms": uniforms.contiguous(),
        "centers": centers.contiguous(),
        "observations": torch.empty(horizon - 1, environments, width, observation_dim, dtype=whole),
        "tokens": torch.empty(horizon, environments, candidates, layout.transition_dim - observation_dim, dtype=whole),
        "rewards": torch.empty(horizon, environments, candidates),
        "values": torch.empty(horizon, environments, candidates),
        "value_probabilities": torch.empty(horizon, environments, candidates, centers.shape[1] if conditioned else 0),
        "kept": torch.empty(horizon, environments, width, dtype=whole),
        "best": torch.empty(environments, horizon, layout.transition_dim, dtype=whole),
        "best_rewards": torch.empty(environments, horizon),
        "best_value": torch.empty(environments),
        "best_score": torch.empty(environments),
    }
    numbers = (
        environments, prefix.shape[1], horizon, width, settings.n_expand, observation_dim,
        settings.k_obs or 0, settings.k_act or 0, settings.temperature,
        -1.0 if settings.cdf_act is None else settings.cdf_act,
        -1.0 if settings.percentile == "mean" else float(settings.percentile), settings.discount,
    )  # fmt: skip
    decoder.search(_Search(*numbers, *(arrays[name].data_ptr() for name in _ARRAYS)))
    names = ["tokens", "rewards", "values", "kept", *(["value_probabilities"] if conditioned else [])]
    of_steps = (arrays[name].unbind(0) for name in names)
    return SearchResult(
        tokens=arrays["best"],
        rewards=arrays["best_rewards"],
        value=arrays["best_value"],
        score=arrays["best_score"],
        steps=[SearchStep(*step) for step in zip(*of_steps, strict=True)],
        beam_width=width,
        observations=list(arrays["observations"].unbind(0)),
    )
