"""A whole search as one CUDA graph, so that its thousands of small kernels do not wait for the CPU."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .beam_search import SearchResult

log = logging.getLogger(__name__)

Search = Callable[[Tensor, Tensor], SearchResult]
"""Prefixes (environment, time) and uniforms (environment, …) -> the result; the CPU must not wait for the GPU in it."""

Capture = Callable[[Search, Tensor, Tensor], tuple[Callable[[], None], SearchResult]]
"""A search and its two input tensors -> a function that repeats it on their new contents, and its result's tensors."""


@dataclass(frozen=True)
class _Captured:
    prefix: Tensor
    uniforms: Tensor
    replay: Callable[[], None]
    result: SearchResult


class CapturedSearch:
    """A search that is captured at the first prefix of each length, and then replayed with a single launch.

    If there are fewer environments than before, they are padded with copies of the first, so that one graph serves all
    numbers of environments, at the cost of the largest; if there are more, the search is captured again.

    The first capture is checked: its replay must find what the search finds, or do so with other draws in case rounding
    decided the difference. If it does not, for example because the search branches in Python on computed values, one
    warning is logged, and searches are no longer captured. The check has not been run on a GPU yet; tests replay a
    stand-in.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._environments = 0
        self._captured: dict[int, _Captured] = {}
        self._proven: bool | None = None

    def __call__(self, search: Search, prefix: Tensor, uniforms: Tensor) -> SearchResult:
        """The result of ``search``, which must be the same function at every call.

        The search's result for an environment must not depend on the others, and it must keep its memory for the
        largest number of environments so far.
        """
        if self._proven is False:
            return search(prefix, uniforms)
        environments, length = prefix.shape
        if environments > self._environments:
            self._captured.clear()  # the graphs write to memory that the search is about to replace
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
            "planning without a CUDA graph, in %.1f ms instead of %.1f: the replayed search finds other plans (scores "
            "differ by up to %.2g), as it does if Python code branches on values that the search has computed",
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
        search(prefix, uniforms)  # allocates persistent memory and loads kernels
    present.wait_stream(stream)
    # On that stream, so that it is captured on the prefix's GPU, which may not be the current one.
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        result = search(prefix, uniforms)
    return graph.replay, result


def _copied(result: SearchResult, environments: int) -> SearchResult:
    """A copy of the first environments' results, because the next replay overwrites them."""

    def part(values: Tensor) -> Tensor:
        return values[:environments].clone()

    steps = [replace(step, **{name: part(values) for name, values in vars(step).items()}) for step in result.steps]
    found = {name: part(getattr(result, name)) for name in ("tokens", "rewards", "value", "score")}
    return replace(result, steps=steps, observations=[], **found)
