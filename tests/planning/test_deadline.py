"""Searches with a deadline: worked out by hand with a fake clock, and against searches without a deadline."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import beam_search
from trajectory_transformer.planning.deadline import Deadline
from trajectory_transformer.planning.plan import PlanCounts

from .conftest import BINS, OBSERVATION_DIM, PLANNER
from .decoders import MakeDecoder, both_decoders

Cost = Callable[[int, int], float]
"""(transition, rows) -> milliseconds."""


class Searches:
    """Searches of 4 beams and 3 transitions that take as long as they are told to."""

    def __init__(self, milliseconds: float) -> None:
        self.now = 0.0
        self.deadline = Deadline(milliseconds, lambda: self.now)

    def run(self, cost: Cost, environments: int = 1, share: float = 1.0) -> list[int]:
        """Run a search; returns the beams of each planned transition."""
        self.deadline.start(share)
        widths: list[int] = []
        while len(widths) < 3:
            width = self.deadline.width(len(widths), environments, widths[-1] if widths else 4)
            if width == 0:
                break
            self.now += cost(len(widths), environments * width) / 1000
            self.deadline.planned(len(widths), environments, width)
            widths.append(width)
        return widths


def each(milliseconds: float) -> Cost:
    return lambda transition, rows: milliseconds


def each_row(milliseconds: float) -> Cost:
    return lambda transition, rows: milliseconds * rows


def test_where_there_is_time_nothing_changes() -> None:
    searches = Searches(10)
    for _ in range(4):
        assert searches.run(each(3)) == [4, 4, 4]
        assert not searches.deadline.late


def test_nothing_is_expected_until_a_second_search_was_measured() -> None:
    """The first measurement may include compilation: it is ignored, also for estimates."""
    searches = Searches(10)
    assert searches.run(each(1000)) == [4]
    assert searches.deadline.late
    assert searches.run(each(3)) == [4, 4, 4]
    assert not searches.deadline.late
    assert searches.run(each(3)) == [4, 4, 4]


def test_the_horizon_is_cut_before_a_transition_that_would_be_late() -> None:
    searches = Searches(10)
    assert searches.run(each(4)) == [4, 4, 4]  # begins the third with 2 ms left, and knows no better
    assert searches.deadline.late
    for _ in range(3):  # by now it knows the first, and expects the same of the others
        assert searches.run(each(4)) == [4, 4]
        assert not searches.deadline.late


def test_the_width_is_halved_only_where_the_first_transition_is_too_slow() -> None:
    searches = Searches(10)
    assert searches.run(each_row(4)) == searches.run(each_row(4)) == [4]  # 16 ms
    assert searches.deadline.late
    assert searches.run(each_row(4)) == [2]  # 8 ms
    assert not searches.deadline.late
    slower = Searches(5)
    assert slower.run(each_row(4)) == slower.run(each_row(4)) == [4]
    assert slower.run(each_row(4)) == [1]  # 4 ms
    assert not slower.deadline.late


def test_one_beam_is_planned_with_however_late_it_is() -> None:
    searches = Searches(1)
    for expected in ([4], [4], [1], [1], [1]):
        assert searches.run(each_row(50)) == expected
        assert searches.deadline.late
    searches.deadline.start()
    searches.now += 1
    assert Searches(1).deadline.width(0, 1, 4) == 4
    assert searches.deadline.width(0, 1, 4) == 1
    assert searches.deadline.width(1, 1, 4) == 0


def test_one_hiccup_is_forgotten_in_time() -> None:
    searches = Searches(10)
    for _ in range(3):
        searches.run(each(2))
    assert searches.run(lambda transition, rows: 50 if transition == 1 else 2) == [4, 4]
    # 8 ms are left for what took 50, and 0.99 ** 182 * 50 > 8 > 0.99 ** 183 * 50.
    assert [searches.run(each(2)) for _ in range(183)] == [[4]] * 183
    assert [searches.run(each(2)) for _ in range(20)] == [[4, 4, 4]] * 20


def test_what_got_faster_is_believed_slowly_and_what_got_slower_at_once() -> None:
    searches = Searches(10)
    for _ in range(3):
        searches.run(each(1))
    searches.run(lambda transition, rows: 5 if transition == 0 else 1)
    known = searches.deadline._expected
    assert known[0, 4] == pytest.approx(0.005)
    searches.run(each(1))
    assert known[0, 4] == pytest.approx(0.8 * 0.99 * 0.005 + 0.2 * 0.001)
    for _ in range(20):
        searches.run(each(1))
    assert known[0, 4] == pytest.approx(0.001)


def test_a_guess_that_is_too_high_is_tried_in_time() -> None:
    """With another environment, a search is estimated to take 9 * 20 / 16 ms, but takes 9."""

    def cost(transition: int, rows: int) -> float:
        return 9 if transition == 0 else 100

    searches = Searches(10)
    for _ in range(3):
        searches.run(cost, environments=4)
    # 0.99 ** 11 * 11.25 > 10 > 0.99 ** 12 * 11.25
    assert [searches.run(cost, environments=5) for _ in range(12)] == [[2]] * 12
    assert [searches.run(cost, environments=5) for _ in range(20)] == [[4]] * 20
    assert not searches.deadline.late


def test_a_share_of_the_time() -> None:
    searches = Searches(40)
    for _ in range(2):
        assert searches.run(each_row(2)) == [4, 4, 4]
    assert searches.run(each_row(2), share=0.5) == [4, 4]
    assert searches.run(each_row(2), share=0.125) == [2]
    assert not searches.deadline.late


def test_late_is_after_the_end() -> None:
    searches = Searches(2**10)
    for taken, late in ((2**10 - 1, False), (2**10 + 1, True)):
        searches.now = 0.0
        searches.deadline.start()
        searches.now += taken / 1000
        searches.deadline.planned(0, 1, 4)
        assert searches.deadline.late == late


class Script(Deadline):
    """A deadline with given numbers of beams, whatever the time."""

    def __init__(self, widths: Sequence[int], late: bool = False) -> None:
        super().__init__(1.0)
        self.widths, self.is_late = widths, late
        self.shares: list[float] = []

    def start(self, share: float = 1.0) -> None:
        self.shares.append(share)

    def width(self, transition: int, environments: int, widest: int) -> int:
        return self.widths[transition]

    @property
    def late(self) -> bool:
        return self.is_late


def estimate(probabilities: Tensor) -> Tensor:
    bins = torch.linspace(-1.0, 2.0, BINS)
    return (probabilities[..., :BINS] * torch.stack([bins, 3 * bins])).sum(dim=-1)


@both_decoders
@pytest.mark.parametrize("window", ["growing", "sliding"])
@pytest.mark.parametrize("widths", [[4, 4, 4, 0], [4, 0], [2, 2, 2, 2], [1, 1, 0]])
def test_what_is_left_is_a_smaller_search(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder, window: str, widths: list[int]
) -> None:
    settings = PlannerConfig(horizon=4, beam_width=4, n_expand=2, context=3, window=window, discount=0.9)
    decoder = make_decoder(model, 3 if window == "sliding" else 8, window == "sliding")
    layout, generator = model.layout, torch.Generator().manual_seed(1)
    prefix = torch.randint(BINS, (3, 2 * layout.transition_dim + layout.observation_dim), generator=generator)
    uniforms = torch.rand(3, 4, layout.transition_dim, 8, generator=generator)
    found = beam_search(decoder, prefix, layout, settings, estimate, uniforms, Script(widths))
    horizon, width = len(widths) - widths.count(0), widths[0]
    smaller = replace(settings, horizon=horizon, beam_width=width)
    wanted = beam_search(decoder, prefix, layout, smaller, estimate, uniforms[:, :horizon, :, : 2 * width])
    assert found.beam_width == width
    assert found.tokens.shape == (3, horizon, layout.transition_dim)
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.rewards, wanted.rewards)
    torch.testing.assert_close(found.value, wanted.value)
    torch.testing.assert_close(found.score, wanted.score)


def scripted_agent(make_agent: Callable[..., Agent], script: Script, **options: Any) -> Agent:
    agent = make_agent(deadline_ms=1.0, **options)
    agent._planner._deadline = script
    return agent


def advance(agent: Agent, active: Sequence[bool], done: Sequence[bool] | None = None) -> np.ndarray:
    """Act and observe once; returns the environments with new plans."""
    actions = agent.act(np.zeros((len(active), OBSERVATION_DIM), dtype=np.float32), np.array(active))
    agent.observe(actions, np.zeros(len(active)), np.array(done or [False] * len(active)))
    return agent.planned


def test_a_plan_that_was_cut_short_ends_in_nan(make_agent: Callable[..., Agent]) -> None:
    agent = scripted_agent(make_agent, Script([4, 4, 0]))
    agent.reset(2)
    advance(agent, [True, False])
    plan = agent.last_plan
    for values in (plan.observations, plan.actions, plan.rewards):
        assert np.isfinite(values[0, :2]).all()
        assert np.isnan(values[0, 2:]).all()
        assert np.isnan(values[1]).all()
    assert np.isfinite(plan.score[0])
    # Of the plan alone: rewards discounted, and the return-to-go after the second.
    np.testing.assert_allclose(plan.score[0], plan.rewards[0, :2] @ [1.0, 0.95] + 0.95**2 * plan.value[0], rtol=1e-5)
    agent._planner._deadline = Script([4, 4, 4])
    agent.reset(1)
    advance(agent, [True])
    assert np.isfinite(agent.last_plan.observations).all()


def test_a_plan_that_ran_out_is_followed_by_another(make_agent: Callable[..., Agent]) -> None:
    """The clock advances by 1 ms at each reading: transitions take 2 ms, and the last begins with 1.5 ms left."""
    agent = make_agent(deadline_ms=6.5, plan_freq=3)
    reads = iter(range(1000))
    deadline = agent._planner._deadline
    assert deadline is not None
    deadline._clock = lambda: next(reads) / 1000
    agent.reset(1)
    planned = [step for step in range(12) if advance(agent, [True]).any()]
    assert planned == [0, 3, 5, 7, 9, 11]
    assert agent.counts == PlanCounts(plans=6, shortened=5)


def test_plans_are_counted_for_each_environment(make_agent: Callable[..., Agent]) -> None:
    agent = scripted_agent(make_agent, Script([2, 2, 0], late=True))
    agent.reset(3)
    assert agent.counts == PlanCounts()
    advance(agent, [True, True, True])
    advance(agent, [True, False, True])
    assert agent.counts == PlanCounts(plans=5, shortened=5, narrowed=5, late=5)
    agent._planner._deadline = Script([4, 4, 4])
    advance(agent, [True, False, False])
    assert agent.counts == PlanCounts(plans=6, shortened=5, narrowed=5, late=5)
    agent._planner._deadline = Script([4, 0, 0])
    advance(agent, [True, False, False])
    assert agent.counts == PlanCounts(plans=7, shortened=6, narrowed=5, late=5)
    agent.reset(3)
    assert agent.counts == PlanCounts()


def test_counts_can_be_written(make_agent: Callable[..., Agent]) -> None:
    agent = make_agent(deadline_ms=1e-6)
    agent.reset(2)
    for _ in range(3):
        advance(agent, [True, True])
    counts = json.loads(json.dumps(asdict(agent.counts)))
    assert counts == {"plans": 6, "shortened": 6, "narrowed": 6, "late": 6}


def test_pasts_of_different_length_share_the_time(make_agent: Callable[..., Agent]) -> None:
    script = Script([4, 4, 4])
    agent = scripted_agent(make_agent, script)
    agent.reset(4)
    advance(agent, [True] * 4, [True, False, False, False])
    advance(agent, [True] * 4)
    assert script.shares == [1.0, 0.25, 0.75]


def test_without_a_deadline_nothing_is_cut(make_agent: Callable[..., Agent]) -> None:
    unlimited, generous = make_agent(), make_agent(deadline_ms=1e9)
    for agent in (unlimited, generous):
        agent.reset(2)
        advance(agent, [True, True])
        assert agent.counts == PlanCounts(plans=2)
    np.testing.assert_array_equal(unlimited.last_plan.actions, generous.last_plan.actions)
    assert PLANNER["horizon"] == unlimited.last_plan.actions.shape[1]
