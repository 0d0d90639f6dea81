"""What is replayed, and when anew; with a stand-in for the graph, that like one reads and writes the same tensors."""

from collections.abc import Callable

import torch
from torch import Tensor

from trajectory_transformer.planning.beam_search import SearchResult, SearchStep
from trajectory_transformer.planning.captured_search import CapturedSearch, Search


def search(prefix: Tensor, uniforms: Tensor) -> SearchResult:
    """Each environment's figures follow from its own inputs alone."""
    total = prefix.sum(dim=1, keepdim=True) + uniforms.sum(dim=1, keepdim=True)
    step = SearchStep(prefix.unsqueeze(1) + 1, total, total + 1, prefix + 2)
    return SearchResult(prefix.unsqueeze(2) + 3, total + 4, total[:, 0] + 2, total[:, 0] + 3, [step], beam_width=7)


def tensors(result: SearchResult) -> list[Tensor]:
    (step,) = result.steps
    return [result.tokens, result.rewards, result.value, result.score, *vars(step).values()]


class Graph:
    """Counts captures."""

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []

    def __call__(self, search: Search, prefix: Tensor, uniforms: Tensor) -> tuple[Callable[[], None], SearchResult]:
        self.captured.append(prefix.shape)
        result = search(prefix, uniforms)
        for values in tensors(result):
            values.fill_(-1)  # capturing computes nothing

        def replay() -> None:
            for place, values in zip(tensors(result), tensors(search(prefix, uniforms)), strict=True):
                place.copy_(values)

        return replay, result


def inputs(environments: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(environments, length, generator=generator), torch.rand(environments, 5, generator=generator)


def test_every_call_gives_what_the_search_gives() -> None:
    graph = Graph()
    captured = CapturedSearch(search, graph)
    found, wanted = [], []
    for seed, (environments, length) in enumerate([(3, 4), (3, 4), (1, 4), (3, 6), (2, 6), (3, 4), (5, 6), (5, 4)]):
        given = inputs(environments, length, seed)
        found.append(tensors(captured(*given)))
        wanted.append(tensors(search(*given)))
    for ours, expected in zip(found, wanted, strict=True):  # at the end: nothing was overwritten by a later replay
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)
    # Once for each length; anew, all of them, when there are more environments than before.
    assert graph.captured == [(3, 4), (3, 6), (5, 6), (5, 4)]
    assert captured(*inputs(1, 4, 9)).beam_width == 7


def test_what_was_given_stays_as_it_was() -> None:
    captured = CapturedSearch(search, Graph())
    first, second = inputs(2, 4, 0), inputs(2, 4, 1)
    copies = [values.clone() for values in first]
    captured(*first)
    captured(*second)
    for ours, expected in zip(first, copies, strict=True):
        torch.testing.assert_close(ours, expected, atol=0, rtol=0)
