"""Checks, for every planner built, that the kernel computes what the model and the search in Python compute."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...configuration import PlannerConfig
from ...errors import UserError
from ...model.config import TransformerConfig
from ...model.gpt import TrajectoryTransformer
from ..beam_search import SearchResult
from ..decoder import BeamDecoder
from ..proof import decoding_error, tolerance_of
from ..sampling import Choice, choose
from ..transformer_decoder import TransformerDecoder
from .decoder import NativeDecoder, expected_shapes, unavailable_reason, unsupported_reason
from .search import native_search

log = logging.getLogger(__name__)

PythonSearch = Callable[[BeamDecoder, Tensor, PlannerConfig, Tensor], SearchResult]
"""Decoder, prefixes (environment, time), settings and uniforms -> the result of the search in Python."""

NativeSearch = Callable[[Tensor, Tensor], SearchResult]
"""Prefixes (environment, time) and uniforms (environment, …) -> the result of the search in C."""

_ENVIRONMENTS = 4
_MOST_DIFFERENT = 1  # environments whose plans may differ; rounding changes one in ten thousand


class _SamplingInPython(NativeDecoder):
    """A native decoder whose tokens are sampled by :func:`~..sampling.choose`."""

    extend = BeamDecoder.extend


def make_decoder(
    model: TrajectoryTransformer, window: int, sliding: bool, settings: PlannerConfig
) -> NativeDecoder | None:
    """The native decoder; or None, with one warning, if it is not available or its logits differ from the model's.

    Raises:
        UserError: instead of the warning, if ``planner.decoder`` is native.
    """
    decoder, cost = None, "several times slower than natively"
    reason = unavailable_reason(model)
    if reason is None:
        decoder = NativeDecoder(model, window, sliding)
        error = decoding_error(decoder, model, window, sliding)
        if error <= tolerance_of(model):
            if _same_sampling(decoder, model, settings):
                return decoder
            reason = "planning/sampling.py chooses other tokens than the faster code in planning/native"
            if settings.decoder != "native":
                log.warning("sampling and searching in Python, decoding natively: %s", reason)
                return _SamplingInPython(model, window, sliding)
        else:
            block = model.config.block
            code = "the model's code" if block is None else f"the code of model.block={block['_target_']}"
            reason = (
                f"its logits differ from those of the model's forward pass (by up to {error:.2g} of a logit's size): "
                f"planning/native does not match {code}"
            )
    if settings.decoder == "native":
        raise UserError(f"planner.decoder=native is not available: {reason}; use planner.decoder=auto")
    if decoder is None and unsupported_reason(model) is None:
        decoder = _RandomDecoder(model.config, window, sliding)  # only to measure its speed
    if decoder is not None:
        eager = TransformerDecoder(model, window, sliding, settings.beam_width * settings.n_expand)
        native_seconds, seconds = (_transition_seconds(some, model, settings) for some in (decoder, eager))
        cost = (
            f"which takes about {_rounded(seconds / native_seconds):g} times as long as natively (about "
            f"{_rounded(seconds * 1e3):g} ms of processor time for a transition of all candidates)"
        )
    log.warning("planning in PyTorch, %s: the native kernel cannot be used, because %s", cost, reason)
    return None


class _RandomDecoder(NativeDecoder):
    """A native decoder with random weights of a configuration's sizes."""

    def __init__(self, config: TransformerConfig, window: int, sliding: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        weights = {name: torch.randn(shape, generator=generator) for name, shape in expected_shapes(config).items()}
        for name in (name for name in weights if name.startswith("numbers.")):  # not larger than the token embeddings
            weights[name] /= weights[name].shape[-1] ** 0.5
        self._prepare(config, weights, window, sliding)


class _RandomSamplingInPython(_RandomDecoder):
    """The same, with sampling in Python, to compare searches: its logits do not depend on the search, to the bit."""

    extend = BeamDecoder.extend


@torch.inference_mode()
def _same_sampling(decoder: NativeDecoder, model: TrajectoryTransformer, settings: PlannerConfig) -> bool:
    """True if C samples the same tokens as :func:`~..sampling.choose`, except for a few that rounding may change."""
    uniforms = torch.rand(1, 1, 64, generator=torch.Generator().manual_seed(0))
    for k, cdf in ((settings.k_act, settings.cdf_act), (settings.k_obs, None)):
        choice = Choice(k, cdf, settings.temperature)
        decoder.prefill(torch.zeros(1, model.layout.observation_dim, dtype=torch.int64))
        decoder.expand(64)
        logits = decoder.logits
        wanted, found = choose(logits, uniforms[:, 0], choice), decoder.extend(uniforms, choice)[:, :, 0]
        if logits.isfinite().all() and int((found != wanted).sum()) > 8:
            return False
    return True


def _transition_seconds(decoder: BeamDecoder, model: TrajectoryTransformer, settings: PlannerConfig) -> float:
    """Processor time of decoding one transition of a plan on one thread, the shortest of three measurements.

    By the clock, a busy machine interrupts PyTorch but not the kernel, which is done sooner; and where several threads
    wait for each other, their time is not that of the work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _shortest_seconds(decoder, model, settings)
    finally:
        torch.set_num_threads(threads)


def _shortest_seconds(decoder: BeamDecoder, model: TrajectoryTransformer, settings: PlannerConfig) -> float:
    layout, candidates, took = model.layout, settings.beam_width * settings.n_expand, math.inf
    uniforms = torch.rand(1, layout.action_dim + 1, candidates, generator=torch.Generator().manual_seed(0))
    for _ in range(3):
        began = time.thread_time()
        decoder.prefill(torch.zeros(1, layout.observation_dim, dtype=torch.int64))
        decoder.expand(candidates)
        decoder.extend(uniforms, Choice(settings.k_act, settings.cdf_act, settings.temperature))
        took = min(took, time.thread_time() - began)
    return took


def _rounded(value: float) -> float:
    """The nearest of …, 0.5, 1, 2, 5, 10, …; short times are not measured more exactly than that."""
    power = 10.0 ** math.floor(math.log10(value))
    return min((power, 2 * power, 5 * power, 10 * power), key=lambda near: abs(math.log(value / near)))


def make_search(
    decoder: BeamDecoder, model: TrajectoryTransformer, settings: PlannerConfig, centers: Tensor,
    search: PythonSearch,
) -> NativeSearch | None:  # fmt: skip
    """The search in C; None if the decoder is not native, or, with one warning, if Python's search finds other plans.

    The decoder's window must not slide; ``settings`` must have no deadline and the objective must be the return.
    ``centers`` (transition_dim, vocab_size) float32 are the bins' real values.

    Raises:
        UserError: Python's search finds other plans, and ``planner.decoder`` is native.
    """
    if not isinstance(decoder, NativeDecoder) or isinstance(decoder, _SamplingInPython):
        return None
    native, layout = decoder, model.layout
    difference = _search_difference(model.config, settings, centers, search)
    if difference is not None:
        reason = f"the search in planning/beam_search.py finds other plans than planning/native ({difference})"
        if settings.decoder == "native":
            raise UserError(f"planner.decoder=native is not available: {reason}; use planner.decoder=auto")
        log.warning("searching in Python, decoding natively: %s", reason)
        return None
    return lambda prefix, uniforms: native_search(native, prefix, layout, settings, centers, uniforms)


@torch.inference_mode()
def _search_difference(
    config: TransformerConfig, settings: PlannerConfig, centers: Tensor, search: PythonSearch
) -> str | None:
    """A description of the difference between the plans of both searches, or None.

    The complete results of small searches in several environments are compared. Pairs of candidates share their
    uniforms, so that some candidates are equal. Rounding may change a drawn token, so one environment may differ.
    """
    small = replace(
        settings, horizon=min(3, settings.horizon), beam_width=min(4, settings.beam_width),
        n_expand=min(4, settings.n_expand), context=min(2, settings.context), plan_freq=1,
    )  # fmt: skip
    candidates, dim = small.beam_width * small.n_expand, config.transition_dim
    window = small.context - 1 + small.horizon
    shape = {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": window * dim}
    decoder = _RandomSamplingInPython(replace(config, hidden_act="relu", **shape), window, sliding=False)
    generator = torch.Generator().manual_seed(0)
    length = (small.context - 1) * dim + config.observation_dim
    prefix = torch.randint(0, config.vocab_size, (_ENVIRONMENTS, length), generator=generator)
    uniforms = torch.rand(_ENVIRONMENTS, small.horizon, dim, candidates, generator=generator)
    uniforms = uniforms[..., torch.arange(candidates) // 2]
    began = time.process_time()
    found = native_search(decoder, prefix, config.layout, small, centers, uniforms)
    native_seconds, began = time.process_time() - began, time.process_time()
    wanted = search(decoder, prefix, small, uniforms)
    seconds = time.process_time() - began
    if int(_differ(found, wanted).sum()) <= _MOST_DIFFERENT:
        return None
    largest = (found.score - wanted.score).abs().max()
    return (
        f"scores of small plans differ by up to {largest:.2g}; such a search takes {native_seconds * 1e3:.1f} ms of "
        f"processor time in C and {seconds * 1e3:.1f} ms in Python"
    )


def _differ(found: SearchResult, wanted: SearchResult) -> Tensor:
    """Mask (environment,) of the environments whose results differ by more than rounding."""
    differ = torch.zeros(len(found.score), dtype=torch.bool)
    parts = [_parts_of(result) for result in (found, wanted)]
    if found.beam_width != wanted.beam_width or [p.shape for p in parts[0]] != [p.shape for p in parts[1]]:
        return ~differ
    for ours, theirs in zip(*parts, strict=True):
        if ours.is_floating_point():
            scale = float(theirs[theirs.isfinite()].abs().mean()) if theirs.isfinite().any() else 0.0
            same = ours.isclose(theirs, rtol=1e-4, atol=1e-4 * scale, equal_nan=True)
        else:
            same = ours == theirs
        differ |= ~same.flatten(1).all(dim=1) if same.dim() > 1 else ~same
    return differ


def _parts_of(result: SearchResult) -> list[Tensor]:
    """All tensors of a result; their first dimension is the environment."""
    steps = [part for step in result.steps for part in step.tensors.values()]
    return [result.tokens, result.rewards, result.value, result.score, *steps]
