"""A whole search as one CUDA graph: its thousands of small kernels then wait for nothing but each other."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .beam_search import SearchResult

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

    Args:
        capture: how.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._environments = 0
        self._captured: dict[int, _Captured] = {}

    def __call__(self, search: Search, prefix: Tensor, uniforms: Tensor) -> SearchResult:
        """What ``search`` finds.

        Args:
            search: the same at every call. It gives each environment what it would give it alone, and keeps what it
                allocates for as many as it has seen.
            prefix, uniforms: what it takes.
        """
        environments, length = prefix.shape
        if environments > self._environments:
            self._captured.clear()  # it writes to what the search is about to replace
            self._environments = environments
        prefix, uniforms = self._filled_up(prefix), self._filled_up(uniforms)
        if length not in self._captured:
            self._captured[length] = _Captured(prefix, uniforms, *self._capture(search, prefix, uniforms))
        captured = self._captured[length]
        captured.prefix.copy_(prefix)
        captured.uniforms.copy_(uniforms)
        captured.replay()
        return _copied(captured.result, environments)

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
    return replace(result, steps=steps, **found)
