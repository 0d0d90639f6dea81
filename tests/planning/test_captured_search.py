"""Capture and replay of searches, with a stand-in for CUDA graphs that reads and writes the same tensors."""

import copy
import functools
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import SearchResult, SearchStep
from trajectory_transformer.planning.captured_search import CapturedSearch
from trajectory_transformer.planning.planner import BeamPlanner, is_captured

from .conftest import OBSERVATION_DIM

aten = torch.ops.aten


def search(prefix: Tensor, uniforms: Tensor) -> SearchResult:
    """A search in which each environment's results depend on its own inputs alone."""
    total = prefix.sum(dim=1, keepdim=True) + uniforms.sum(dim=1, keepdim=True)
    step = SearchStep(prefix.unsqueeze(1) + 1, total, total + 1, prefix + 2)
    return SearchResult(prefix.unsqueeze(2) + 3, total + 4, total[:, 0] + 2, total[:, 0] + 3, [step], beam_width=7)


def tensors(result: SearchResult) -> list[Tensor]:
    steps = [values for step in result.steps for values in step.tensors.values()]
    return [result.tokens, result.rewards, result.value, result.score, *steps]


class WithoutWaiting(TorchDispatchMode):
    """Fails at operations for which the CPU would wait for a GPU; these cannot be captured."""

    WAITING = (
        aten.nonzero, aten._local_scalar_dense, aten.masked_select, aten._unique2, aten.equal,
        aten.repeat_interleave.Tensor,
    )  # fmt: skip
    INDEXING = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = func.overloadpacket
        assert not {func, operation} & {*self.WAITING}, f"{func} makes the CPU wait for the GPU"
        if operation in self.INDEXING:
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{func} with a mask makes the CPU wait for the GPU"
        return func(*args, **(kwargs or {}))


class Graph:
    """Counts captures, and fails where a CUDA graph would."""

    def __init__(self) -> None:
        self.captured: list[torch.Size] = []

    def __call__(
        self, run: Callable[[], SearchResult], device: torch.device
    ) -> tuple[Callable[[], None], SearchResult]:
        assert isinstance(run, functools.partial)
        self.captured.append(run.args[0].shape)
        with WithoutWaiting():
            result = run()
        result = replace(
            result,
            steps=[
                replace(step, **{name: -torch.ones_like(v) for name, v in step.tensors.items()})
                for step in result.steps
            ],
            **{name: -torch.ones_like(getattr(result, name)) for name in ("tokens", "rewards", "value", "score")},
        )  # capturing computes nothing

        def replay() -> None:
            for place, values in zip(tensors(result), tensors(run()), strict=True):
                place.copy_(values)

        return replay, result


def inputs(environments: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(environments, length, generator=generator), torch.rand(environments, 5, generator=generator)


def test_every_call_gives_what_the_search_gives() -> None:
    graph = Graph()
    captured = CapturedSearch(graph)
    found, wanted = [], []
    for seed, (environments, length) in enumerate([(3, 4), (3, 4), (1, 4), (3, 6), (2, 6), (3, 4), (5, 6), (5, 4)]):
        given = inputs(environments, length, seed)
        found.append(tensors(captured(search, *given)))
        wanted.append(tensors(search(*given)))
    for ours, expected in zip(found, wanted, strict=True):  # at the end: nothing was overwritten by a later replay
        for one, other in zip(ours, expected, strict=True):
            torch.testing.assert_close(one, other, atol=0, rtol=0)
    # Once for each length; anew, all of them, when there are more environments than before.
    assert graph.captured == [(3, 4), (3, 6), (5, 6), (5, 4)]
    assert captured(search, *inputs(1, 4, 9)).beam_width == 7


class Altered(Graph):
    """Doubles the scores of the first replays."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def __call__(
        self, run: Callable[[], SearchResult], device: torch.device
    ) -> tuple[Callable[[], None], SearchResult]:
        replay, result = super().__call__(run, device)

        def replay_altered() -> None:
            replay()
            if self.times > 0:
                result.score.mul_(2)
            self.times -= 1

        return replay_altered, result


def test_a_replay_that_finds_other_plans_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and no more graphs."""
    graph = Altered(times=100)
    captured = CapturedSearch(graph)
    for length in (4, 6, 4):
        for environments in (3, 2):
            given = inputs(environments, length, seed=length)
            for ours, expected in zip(tensors(captured(search, *given)), tensors(search(*given)), strict=True):
                torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    assert graph.captured == [(3, 4)]
    [record] = caplog.records
    assert re.search(r"without a CUDA graph, in [\d.]+ ms instead of [\d.]+: .*differ by up to [1-9]", record.message)


def test_one_replay_that_rounding_decides_otherwise_is_no_reason(caplog: pytest.LogCaptureFixture) -> None:
    graph = Altered(times=1)
    captured = CapturedSearch(graph)
    for seed in range(3):
        given = inputs(3, 4, seed)
        for ours, expected in zip(tensors(captured(search, *given)), tensors(search(*given)), strict=True):
            torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    assert graph.captured == [(3, 4)]
    assert caplog.records == []


def test_what_was_given_stays_as_it_was() -> None:
    captured = CapturedSearch(Graph())
    first, second = inputs(2, 4, 0), inputs(2, 4, 1)
    copies = [values.clone() for values in first]
    captured(search, *first)
    captured(search, *second)
    for ours, expected in zip(first, copies, strict=True):
        torch.testing.assert_close(ours, expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("device", "options", "expected"),
    [
        ("cuda", {}, True),
        ("cpu", {}, False),
        ("mps", {}, False),
        ("cuda", {"decoder": "eager"}, False),
        ("cuda", {"decoder": "compiled"}, False),
        ("cuda", {"deadline_ms": 20.0}, False),
    ],
)
def test_where_searches_are_captured(device: str, options: dict[str, Any], expected: bool) -> None:
    assert is_captured(PlannerConfig(**options), device) is expected


@pytest.mark.parametrize("options", [{"name": "return"}, {"name": "imitation"}, {"act": "conditioned"}])
def test_a_planner_hands_its_searches_over(make_agent: Callable[..., Agent], options: dict[str, Any]) -> None:
    """With the stand-in, plans are the same, and one without a finite prediction is refused."""
    plain, captured = make_agent(**options, decoder="eager"), make_agent(**options, decoder="eager")
    graph = Graph()
    captured._planner._captured = CapturedSearch(graph)
    for agent in (plain, captured):
        agent.reset(2)
    observations = np.zeros((2, OBSERVATION_DIM), dtype=np.float32)
    for step in range(4):
        actions = plain.act(observations + step)
        np.testing.assert_array_equal(captured.act(observations + step), actions)
        np.testing.assert_array_equal(captured.last_plan.score, plain.last_plan.score)
        for agent in (plain, captured):
            agent.observe(actions, np.ones(2), np.zeros(2, dtype=bool))
    assert len(graph.captured) == 3  # pasts of none, one and two transitions
    planner = captured._planner
    broken = copy.deepcopy(planner.model)
    broken.head.weight.data[:] = torch.nan
    refusing = BeamPlanner(broken, planner.discretizer, planner.settings)
    refusing._captured = CapturedSearch(Graph())
    with pytest.raises(UserError, match=r"is finite in environment \[0\]"):
        refusing.plan(torch.tensor([[1, 2, 3]]), [torch.Generator()])


def test_a_planner_goes_when_it_is_dropped(make_agent: Callable[..., Agent]) -> None:
    """Immediately, not at Python's next garbage collection, because it holds GPU memory."""
    planner = make_agent(decoder="eager")._planner
    planner._captured = CapturedSearch(Graph())
    planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator()])
    planner._captured = None  # the stand-in keeps the search, which a graph does not
    alive = weakref.ref(planner)
    del planner
    assert alive() is None
