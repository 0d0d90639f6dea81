"""A whole search as one CUDA graph, so that its thousands of small kernels do not wait for the CPU."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..cuda_graph import Capture, CaptureError
from .beam_search import SearchResult

log = logging.getLogger(__name__)

Search = Callable[..., SearchResult]
"""Prefixes (environment, time), uniforms (environment, …) and further tensors (environment, …) -> the result.

If the CPU waits for the GPU in it, it is not captured.
"""


@dataclass(frozen=True)
class _Captured:
    inputs: tuple[Tensor, ...]
    replay: Callable[[], None]
    result: SearchResult

    def repeat(self, inputs: tuple[Tensor, ...]) -> SearchResult:
        """Replay the search on these inputs; returns its result's tensors, which the next replay overwrites."""
        for place, values in zip(self.inputs, inputs, strict=True):
            place.copy_(values)
        self.replay()
        return self.result


class CapturedSearch:
    """A search that is captured at the first prefix of each length, and then replayed with a single launch.

    If there are fewer environments than before, they are padded with copies of the first, so that one graph serves all
    numbers of environments, at the cost of the largest; if there are more, the search is captured again.

    The first capture is checked: its replay must find what the search finds. If they differ, the check is repeated with
    other draws, because rounding can decide between close candidates. If they differ again, for example because the
    search branches in Python on values that it can know without waiting, one warning is logged, and searches are no
    longer captured. Nor are they if the CPU waits for the GPU in a search.
    """

    def __init__(self, capture: Capture[SearchResult]) -> None:
        self._capture = capture
        self._environments = 0
        self._captured: dict[int, _Captured] = {}
        self._proven: bool | None = None

    def __call__(self, search: Search, *inputs: Tensor) -> SearchResult:
        """The result of ``search`` of ``inputs``; it must be the same function at every call.

        The search's result for an environment must not depend on the others, and it must keep its memory for the
        largest number of environments so far.
        """
        if self._proven is False:
            return search(*inputs)
        environments, length = inputs[0].shape
        if environments > self._environments:
            self._captured.clear()  # the graphs write to memory that the search is about to replace
            self._environments = environments
        filled = tuple(self._filled_up(values) for values in inputs)
        if length not in self._captured:
            places = tuple(values.clone() for values in filled)
            try:
                self._captured[length] = _Captured(places, *self._capture(partial(search, *places), inputs[0].device))
            except CaptureError as error:
                self._proven = False
                self._captured.clear()
                log.warning("planning without a CUDA graph, which is several times slower: %s", error)
                return search(*inputs)
        captured = self._captured[length]
        if self._proven is None and not self._prove(search, captured, filled):
            self._captured.clear()
            return search(*inputs)
        return _copied(captured.repeat(filled), environments)

    def _prove(self, search: Search, captured: _Captured, inputs: tuple[Tensor, ...]) -> bool:
        largest, seconds, replayed = 0.0, 0.0, 0.0
        prefix, uniforms, *others = inputs
        for draws in (uniforms, uniforms.flip(-1)):
            began = time.perf_counter()
            wanted = search(prefix, draws, *others).score.cpu()  # waits for a GPU
            seconds, began = time.perf_counter() - began, time.perf_counter()
            found = captured.repeat((prefix, draws, *others)).score.cpu()
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


def _copied(result: SearchResult, environments: int) -> SearchResult:
    """A copy of the first environments' results, because the next replay overwrites them."""

    def part(values: Tensor) -> Tensor:
        return values[:environments].clone()

    steps = [replace(step, **{name: part(values) for name, values in step.tensors.items()}) for step in result.steps]
    found = {name: part(getattr(result, name)) for name in ("tokens", "rewards", "value", "score")}
    return replace(result, steps=steps, observations=[], **found)
