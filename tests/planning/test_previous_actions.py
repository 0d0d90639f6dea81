"""Actions before and within a plan, as objectives see them: by hand, by enumeration, and through an agent."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.planning.conftest import ACTION_DIM, ENVIRONMENT, OBSERVATION_DIM, PLANNER
from tests.planning.test_beam_search import VOCABULARY, TableDecoder, estimate, score_of
from tests.planning.test_captured_search import Graph
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import beam_search
from trajectory_transformer.planning.captured_search import CapturedSearch
from trajectory_transformer.planning.objectives import Candidates, Objective, Return
from trajectory_transformer.planning.planner import BeamPlanner


def tokens_themselves(tokens: Tensor, columns: slice) -> Tensor:
    """Real values of tokens in which an action's are equal to its token."""
    return tokens.float()


class Smooth(Return):
    """Return minus a penalty on the changes of the whole plan."""

    weight = 0.5

    def __call__(self, candidates: Candidates) -> Tensor:
        return super().__call__(candidates) - self.weight * candidates.action_changes.square().sum(dim=(2, 3))


class SmoothAtLast(Smooth):
    """Compares plans only when they are complete, so that a search that is wide enough prunes none of them."""

    def __init__(self, horizon: int) -> None:
        self.last = horizon - 1

    def __call__(self, candidates: Candidates) -> Tensor:
        return super().__call__(candidates) if candidates.t == self.last else torch.zeros(candidates.tokens.shape[:2])


def test_two_transitions_by_hand() -> None:
    """Two environments, of which the first has acted, and two candidates of one action dimension."""
    layout = TransitionLayout(1, 1)
    executed = torch.tensor([[2.5], [torch.nan]])
    common: dict[str, Any] = {"layout": layout, "decode": tokens_themselves, "executed": executed}
    returns, discounts = torch.zeros(2, 2, 3), torch.ones(3)
    tokens = torch.tensor([[[0, 1, 0, 0], [0, 4, 0, 0]], [[0, 7, 0, 0], [0, 2, 0, 0]]])
    first = Candidates(0, returns, discounts, tokens, **common)
    assert first.planned_actions.tolist() == [[[[1.0]], [[4.0]]], [[[7.0]], [[2.0]]]]
    assert first.previous_actions.tolist() == [[[2.5], [2.5]], [[0.0], [0.0]]]
    assert first.has_previous.tolist() == [[True, True], [False, False]]
    assert first.action_changes.tolist() == [[[[-1.5]], [[1.5]]], [[[0.0]], [[0.0]]]]
    assert first.planned_observations.tolist() == [[[[0.0]], [[0.0]]], [[[0.0]], [[0.0]]]]
    actions = torch.tensor([[[[4], [1]], [[1], [4]]], [[[7], [7]], [[2], [7]]]])
    seen = torch.tensor([[[[5], [6]], [[5], [8]]], [[[3], [1]], [[3], [2]]]])
    plans = torch.cat([seen, actions, torch.zeros(2, 2, 2, 2, dtype=torch.int64)], dim=3)
    second = Candidates(1, returns, discounts, tokens, **common, traced=lambda: plans)
    assert second.planned_actions.tolist() == actions.tolist()
    assert second.planned_observations.tolist() == seen.tolist()
    assert second.previous_actions.tolist() == [[[4.0], [1.0]], [[7.0], [2.0]]]
    assert second.has_previous.all()
    assert second.action_changes.flatten(2).tolist() == [[[1.5, -3.0], [-1.5, 3.0]], [[0.0, 0.0], [0.0, 5.0]]]


def test_a_search_that_was_told_of_no_action_has_none_before_the_first() -> None:
    tokens = torch.zeros(1, 2, 4, dtype=torch.int64)
    candidates = Candidates(0, torch.zeros(1, 2, 2), torch.ones(2), tokens, TransitionLayout(1, 1), tokens_themselves)
    assert not candidates.has_previous.any()
    assert candidates.previous_actions.tolist() == candidates.action_changes[:, :, 0].tolist() == [[[0.0], [0.0]]]


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_smoothest_plan_is_that_of_an_enumeration(horizon: int) -> None:
    """Of all action sequences of a small table, in environments of which the first is at its episode's first step."""
    layout, discount = TransitionLayout(1, 1), 0.9
    table, width = TableDecoder(layout, horizon), VOCABULARY**horizon
    settings = PlannerConfig(horizon=horizon, beam_width=width, n_expand=VOCABULARY, cdf_act=None, discount=discount)
    # As in test_beam_search: equal scores keep the first candidates, so that all sequences are candidates at the end.
    digits = (torch.arange(VOCABULARY * width) % VOCABULARY).expand(horizon, -1)
    uniforms = ((digits + 0.5) / VOCABULARY).unsqueeze(1).expand(VOCABULARY, horizon, layout.transition_dim, -1)
    executed = torch.tensor([[torch.nan], [1.3], [-0.4]])
    found = beam_search(
        table, torch.arange(VOCABULARY).unsqueeze(1), layout, settings, estimate, uniforms,
        None, SmoothAtLast(horizon), tokens_themselves, executed,
    )  # fmt: skip
    for environment, before in enumerate(([], [1.3], [-0.4])):
        scores = {}
        for actions in itertools.product(range(VOCABULARY), repeat=horizon):
            path = [*before, *actions]
            changes = sum((new - old) ** 2 for old, new in itertools.pairwise(path))
            scores[actions] = score_of(table, environment, actions, discount) - 0.5 * changes
        best = max(scores, key=lambda actions: scores[actions])
        assert tuple(found.tokens[environment, :, layout.action.start].tolist()) == best
        assert found.score[environment].item() == pytest.approx(scores[best], abs=1e-5)


class Watching(Objective):
    """Keeps what it reads, and ranks at random."""

    def __init__(self) -> None:
        self.seen: list[tuple[Candidates, dict[str, Tensor]]] = []

    def __call__(self, candidates: Candidates) -> Tensor:
        names = "planned_actions", "planned_observations", "previous_actions", "has_previous", "action_changes"
        self.seen.append((candidates, {name: getattr(candidates, name).clone() for name in names}))
        generator = torch.Generator().manual_seed(candidates.t)
        return torch.rand(candidates.tokens.shape[:2], generator=generator)


@pytest.mark.parametrize("environments", [1, 3])
@pytest.mark.parametrize("horizon", [1, 3])
@pytest.mark.parametrize("options", [{}, {"window": "sliding", "context": 2}, {"context": 1}])
def test_an_agent_remembers_what_was_executed(
    model: TrajectoryTransformerModel,
    discretizer: Discretizer,
    options: dict[str, Any],
    horizon: int,
    environments: int,
) -> None:
    """With any context; and within a plan, each candidate's actions are those of the sequence that it continues."""
    watching = Watching()
    settings = PlannerConfig(**PLANNER | options | {"horizon": horizon, "objective": watching})
    agent = Agent(BeamPlanner(model, discretizer, settings, objective=watching), ENVIRONMENT)
    agent.reset(environments, autoreset="Disabled")
    rng = np.random.default_rng(0)
    before: list[list[float] | None] = [None] * environments
    for step in range(5):
        watching.seen.clear()
        agent.act(rng.normal(size=(environments, OBSERVATION_DIM)).astype(np.float32))
        # An episode that began later has a past of another length, and so a search of its own.
        groups = len(watching.seen) // horizon
        firsts = [watching.seen[group * horizon][1] for group in range(groups)]
        given = [
            previous[0].tolist() if known[0] else None
            for seen in firsts
            for previous, known in zip(seen["previous_actions"], seen["has_previous"], strict=True)
        ]
        assert sorted(given, key=str) == sorted(before, key=str)
        for group in range(groups):
            _check_sequences(watching.seen[group * horizon :][:horizon], agent)
        taken = rng.normal(size=(environments, ACTION_DIM)).astype(np.float32)
        done = np.array([step == 2 and row == environments - 1 for row in range(environments)])
        agent.observe(taken, np.zeros(environments), done)
        before = [None if ended else action for action, ended in zip(taken.tolist(), done, strict=True)]
    agent.begin_episode(0, 1)
    watching.seen.clear()
    agent.act(np.zeros((environments, OBSERVATION_DIM), dtype=np.float32))
    assert sum(bool(seen["has_previous"][0, 0]) for _, seen in watching.seen[::horizon]) <= environments - 1


def _check_sequences(seen: list[tuple[Candidates, dict[str, Tensor]]], agent: Agent) -> None:
    """Follow each candidate of one search, whose ranking is known, back to its first transition."""
    width = agent.settings.beam_width
    paths: list[list[list[list[float]]]] = [[[]] for _ in seen[0][0].tokens]  # of the kept sequences, by environment
    states: list[list[list[list[float]]]] = [[[]] for _ in seen[0][0].tokens]
    for candidates, read in seen:
        generator = torch.Generator().manual_seed(candidates.t)
        kept = torch.rand(candidates.tokens.shape[:2], generator=generator).sort(descending=True, stable=True).indices
        for environment, actions in enumerate(candidates.actions.tolist()):
            each = len(actions) // len(paths[environment])
            grown = [[*paths[environment][row // each], action] for row, action in enumerate(actions)]
            assert read["planned_actions"][environment].tolist() == grown
            rows = enumerate(candidates.observations[environment].tolist())
            observed = [[*states[environment][row // each], values] for row, values in rows]
            assert read["planned_observations"][environment].tolist() == observed
            states[environment] = [observed[row] for row in kept[environment, :width].tolist()]
            if candidates.t > 0:
                assert read["previous_actions"][environment].tolist() == [path[-2] for path in grown]
                assert read["has_previous"].all()
            previous = read["previous_actions"][environment]
            change = (torch.tensor(actions) - previous) * read["has_previous"][environment, :, None]
            torch.testing.assert_close(read["action_changes"][environment, :, -1], change, atol=0, rtol=0)
            paths[environment] = [grown[row] for row in kept[environment, :width].tolist()]


@pytest.mark.parametrize("context", [1, 3])
def test_a_replayed_search_is_told_of_the_last_actions(
    model: TrajectoryTransformerModel, discretizer: Discretizer, context: int
) -> None:
    options = PLANNER | {"decoder": "eager", "context": context, "objective": Smooth()}
    plain, captured = (Agent(BeamPlanner(model, discretizer, PlannerConfig(**options)), ENVIRONMENT) for _ in range(2))
    captured._planner._captured = CapturedSearch(Graph())
    for agent in (plain, captured):
        agent.reset(2)
    rng = np.random.default_rng(1)
    for _ in range(4):
        observations = rng.normal(size=(2, OBSERVATION_DIM)).astype(np.float32)
        taken = rng.normal(size=(2, ACTION_DIM)).astype(np.float32)
        np.testing.assert_array_equal(captured.act(observations), plain.act(observations))
        np.testing.assert_array_equal(captured.last_plan.score, plain.last_plan.score)
        for agent in (plain, captured):
            agent.observe(taken, np.ones(2), np.zeros(2, dtype=bool))
