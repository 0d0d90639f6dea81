"""A whole search as one CUDA graph: its thousands of small kernels then wait for nothing but each other."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .beam_search import SearchResult

log = logging.getLogger(__name__)

Search = Callable[[Tensor, Tensor], SearchResult]
"""(environment, time) prefixes and (environment, …) uniforms -> what was found; the CPU never waits for the GPU."""

Capture = Callable[[Search, Tensor, Tensor], tuple[Callable[[], None], SearchResult]]
"""Gives what runs a search again, on what is then in the same tensors, and where its result then is."""


@dataclass(frozen=True)
class _Captured:
    prefix: Tensor
    uniforms: Tensor
    replay: Callable[[], None]
    result: SearchResult


class CapturedSearch:
    """A search that is captured when a prefix of some length first comes, and then replayed with a single launch.

    Fewer environments than before are filled up with copies of the first, so that one graph serves them all, at the
    price of the most; when there are more, all is captured anew.

    The first capture is proven: replayed, it must find what the search finds, or, where rounding decided otherwise, do
    so for other draws. If it does not, as where a search decides in Python by what it has computed, one warning is
    logged, and all searches run as they are. The proof was not run on a GPU yet; tests replay a stand-in.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._environments = 0
        self._captured: dict[int, _Captured] = {}
        self._proven: bool | None = None

    def __call__(self, search: Search, prefix: Tensor, uniforms: Tensor) -> SearchResult:
        """The plans that ``search``, the same one at every call, finds.

        It gives each environment what it would give it alone, and keeps what it allocates for as many as it has seen.
        """
        if self._proven is False:
            return search(prefix, uniforms)
        environments, length = prefix.shape
        if environments > self._environments:
            self._captured.clear()  # it writes to what the search is about to replace
            self._environments = environments
        prefix, uniforms = self._filled_up(prefix), self._filled_up(uniforms)
        if length not in self._captured:
            places = prefix.clone(), uniforms.clone()
            self._captured[length] = _Captured(*places, *self._capture(search, *places))
        captured = self._captured[length]
        if self._proven is None and not self._prove(search, captured, prefix, uniforms):
            self._captured.clear()
            return search(prefix[:environments], uniforms[:environments])
        captured.prefix.copy_(prefix)
        captured.uniforms.copy_(uniforms)
        captured.replay()
        return _copied(captured.result, environments)

    def _prove(self, search: Search, captured: _Captured, prefix: Tensor, uniforms: Tensor) -> bool:
        largest, seconds, replayed = 0.0, 0.0, 0.0
        for draws in (uniforms, uniforms.flip(-1)):
            began = time.perf_counter()
            wanted = search(prefix, draws).score.cpu()  # waits for a GPU
            seconds, began = time.perf_counter() - began, time.perf_counter()
            captured.prefix.copy_(prefix)
            captured.uniforms.copy_(draws)
            captured.replay()
            found = captured.result.score.cpu()
            replayed = time.perf_counter() - began
            largest = max(largest, float((found - wanted).abs().max()))
            self._proven = bool(found.isclose(wanted, rtol=1e-3, atol=1e-3, equal_nan=True).all())
            if self._proven:
                return True
        log.warning(
            "planning without a CUDA graph, in %.1f ms instead of %.1f: replayed, the search finds other plans (scores "
            "differ by up to %.2g), as where Python decides by what a search has computed",
            seconds * 1e3, replayed * 1e3, largest,
        )  # fmt: skip
        return False

    def _filled_up(self, values: Tensor) -> Tensor:
        missing = self._environments - len(values)
        return torch.cat([values, values[:1].expand(missing, *values.shape[1:])])


def cuda_graph(search: Search, prefix: Tensor, uniforms: Tensor) -> tuple[Callable[[], None], SearchResult]:
    """:data:`Capture` on the prefix's GPU."""
    graph, present = torch.cuda.CUDAGraph(), torch.cuda.current_stream(prefix.device)
    stream = torch.cuda.Stream(prefix.device)
    stream.wait_stream(present)
    with torch.cuda.stream(stream):
        search(prefix, uniforms)  # allocates what outlives a search, and loads kernels
    present.wait_stream(stream)
    # On that stream, so that what is captured is on the prefix's GPU, whichever is the current one.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = search(prefix, uniforms)
    return graph.replay, result


def _copied(result: SearchResult, environments: int) -> SearchResult:
    """The first environments' part, in copies, as the next replay overwrites what it gave."""

    def part(values: Tensor) -> Tensor:
        return values[:environments].clone()

    steps = [replace(step, **{name: part(values) for name, values in vars(step).items()}) for step in result.steps]
    found = {name: part(getattr(result, name)) for name in ("tokens", "rewards", "value", "score")}
    return replace(result, steps=steps, observations=[], **found)
