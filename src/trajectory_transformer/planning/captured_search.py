"""A whole search as one CUDA graph: its thousands of small kernels then wait for nothing but each other."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .beam_search import SearchResult, SearchStep

Search = Callable[[Tensor, Tensor], SearchResult]
"""(environment, time) prefixes and (environment, …) uniforms -> what was found; the CPU never waits for the GPU."""

Capture = Callable[[Search, Tensor, Tensor], tuple[Callable[[], None], SearchResult]]
"""Gives what runs a search again, on what is then in the same tensors, and where its result then is."""


class CapturedSearch:
    """A search that is captured when a prefix of some length first comes, and then replayed with a single launch.

    Fewer environments than before are filled up with copies of the first, so that a graph serves them all; when there
    are more, all is captured anew.

    Args:
        search: gives each environment what it would give it alone, and keeps what it allocates for as many as it saw.
        capture: how.
    """

    def __init__(self, search: Search, capture: Capture) -> None:
        self._search, self._capture = search, capture
        self._environments = 0
        self._captured: dict[int, tuple[Tensor, Tensor, Callable[[], None], SearchResult]] = {}

    def __call__(self, prefix: Tensor, uniforms: Tensor) -> SearchResult:
        environments, length = prefix.shape
        if environments > self._environments:
            self._captured.clear()  # it writes to what the search is about to replace
            self._environments = environments
        inputs = self._filled_up(prefix), self._filled_up(uniforms)
        if length not in self._captured:
            self._captured[length] = *inputs, *self._capture(self._search, *inputs)
        captured_prefix, captured_uniforms, replay, result = self._captured[length]
        captured_prefix.copy_(inputs[0])
        captured_uniforms.copy_(inputs[1])
        replay()
        return _first(result, environments)

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
    with torch.cuda.graph(graph):
        result = search(prefix, uniforms)
    return graph.replay, result


def _first(result: SearchResult, environments: int) -> SearchResult:
    """Copies, as the next replay overwrites what it gave."""

    def part(values: Tensor) -> Tensor:
        return values[:environments].clone()

    steps = [SearchStep(*(part(values) for values in vars(step).values())) for step in result.steps]
    found = {name: part(getattr(result, name)) for name in ("tokens", "rewards", "value", "score")}
    return replace(result, steps=steps, **found)
