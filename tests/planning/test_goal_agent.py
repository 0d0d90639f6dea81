"""Planning to goals: the search's inputs, and mistakes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import ModelConfig, PlannerConfig, TrainConfig
from trajectory_transformer.data.discretizer import Discretizer, UniformDiscretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import SearchResult
from trajectory_transformer.planning.objectives import Goal, WeightedSum, make_objective
from trajectory_transformer.planning.planner import BeamPlanner

from .conftest import ACTION_DIM, BINS, ENVIRONMENT, OBSERVATION_DIM, WIDTH
from .decoders import make_model

TRANSITIONS = 5  # besides the goal
GOAL: dict[str, Any] = {"name": "goal", "horizon": 2, "beam_width": 3, "context": 3, "discount": 0.9}


@pytest.fixture(scope="module")
def discretizer() -> Discretizer:
    return UniformDiscretizer(BINS).fit(torch.tensor([[-1.0] * WIDTH, [1.0] * WIDTH]))


def goal_model(goal_conditioned: bool) -> TrajectoryTransformerModel:
    length = TRANSITIONS + goal_conditioned
    return make_model(OBSERVATION_DIM, ACTION_DIM, length, BINS, spread=0.3, goal_conditioned=goal_conditioned)


@pytest.fixture(scope="module")
def model() -> TrajectoryTransformerModel:
    return goal_model(True)


def make_agent(model: TrajectoryTransformerModel, discretizer: Discretizer, **options: Any) -> Agent:
    return Agent(BeamPlanner(model, discretizer, PlannerConfig(**(GOAL | options))), ENVIRONMENT)


def test_value_tokens_are_hidden_and_the_goal_is_not(model: TrajectoryTransformerModel) -> None:
    """Changing a token changes later logits, past the goal's transition too, unless it is a value token."""
    tokens = torch.randint(0, BINS, (1, 4 * WIDTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens, use_cache=False).logits
        for position in range(2 * WIDTH):
            changed = tokens.clone()
            changed[0, position] = (changed[0, position] + 1) % BINS
            later = model(changed, use_cache=False).logits[0, position + 1 :] - before[0, position + 1 :]
            value = position % WIDTH == WIDTH - 1
            assert (later == 0).all() if value else (later.abs() > 1e-4).any(dim=1).all(), position


def test_plans_begin_with_the_goal_and_then_the_past(
    model: TrajectoryTransformerModel, discretizer: Discretizer
) -> None:
    agent = make_agent(model, discretizer)
    seen: list[torch.Tensor] = []
    plan = agent._planner.plan

    def watched(prefix: torch.Tensor, generators: Sequence[torch.Generator], *others: Any) -> SearchResult:
        seen.append(prefix.clone())
        return plan(prefix, generators, *others)

    agent._planner.plan = watched  # type: ignore[method-assign]
    agent.reset(2)
    goals = np.array([[0.3, -0.7, 0.9], [-0.2, 0.0, 0.5]], dtype=np.float32)
    for _ in range(4):
        agent.aim(goals)
        agent.act(np.zeros((2, OBSERVATION_DIM), dtype=np.float32))
        agent.observe(np.zeros((2, ACTION_DIM)), np.zeros(2), np.zeros(2, dtype=bool))
    stop = torch.full((2, WIDTH - OBSERVATION_DIM), BINS)
    expected = torch.cat([discretizer.encode(torch.from_numpy(goals), slice(0, OBSERVATION_DIM)), stop], dim=1)
    assert [prefix.shape[1] for prefix in seen] == [WIDTH * past + OBSERVATION_DIM for past in (1, 2, 3, 3)]
    for prefix in seen:
        assert torch.equal(prefix[:, :WIDTH], expected)


def test_other_goals_give_other_plans(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    agent = make_agent(model, discretizer)
    agent.reset(8)
    agent.aim(np.random.default_rng(0).uniform(-1, 1, (8, OBSERVATION_DIM)).astype(np.float32))
    actions = agent.act(np.zeros((8, OBSERVATION_DIM), dtype=np.float32))
    assert len(np.unique(actions, axis=0)) > 1
    assert np.isnan(agent.last_plan.rewards).all()
    assert (agent.last_plan.score < 0).all()


def test_goals_outside_the_map_are_refused(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    agent = make_agent(model, discretizer)
    agent.reset(2)
    agent.aim(np.array([[1.05, 0.0, 0.0], [0.0, 0.0, -1.05]]))  # as far as noise may carry them
    message = (
        r"goal \[0, 1.2, 0\] of environment 1 lies outside the map: the data range from \[-1, -1, -1\] to \[1, 1, 1\]"
    )
    with pytest.raises(UserError, match=message):
        agent.aim(np.array([[0.0, 0.0, 0.0], [0.0, 1.2, 0.0]]))
    with pytest.raises(UserError, match="lies outside the map"):
        agent.aim(np.array([[0.0, 0.0, np.nan], [0.0, 0.0, 0.0]]))
    with pytest.raises(UserError, match=r"goals have shape \(1, 3\), expected \(2, 3\)"):
        agent.aim(np.zeros((1, 3)))


def test_an_episode_needs_a_goal_of_its_own(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    agent = make_agent(model, discretizer)
    agent.reset(2)
    observations = np.zeros((2, OBSERVATION_DIM), dtype=np.float32)
    with pytest.raises(UserError, match=r"environment \[0, 1\] has no goal"):
        agent.act(observations)
    agent.aim(np.zeros((2, OBSERVATION_DIM)))
    agent.act(observations)
    agent.begin_episode(1, seed=3)
    with pytest.raises(UserError, match=r"environment \[1\] has no goal"):
        agent.act(observations)
    agent.act(observations, active=np.array([True, False]))


def test_models_and_planners_of_different_purpose(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    for name in ("return", "imitation"):
        with pytest.raises(UserError, match=f"planner={name} cannot plan with a model that was trained to reach goals"):
            make_agent(model, discretizer, name=name)
    ordinary = goal_model(False)
    with pytest.raises(UserError, match="planner=goal needs a model that was trained to reach goals"):
        make_agent(ordinary, discretizer)
    agent = make_agent(ordinary, discretizer, name="imitation")
    with pytest.raises(UserError, match="planner=imitation takes no goals"):
        agent.aim(np.zeros((1, OBSERVATION_DIM)))
    with pytest.raises(UserError, match="cannot plan with a model that was trained to reach goals"):
        TransformerLearner().check(TrainConfig(model=ModelConfig(goal_conditioned=True)))
    with pytest.raises(UserError, match=r"planner=goal needs planner\.window=growing"):
        make_objective(PlannerConfig(name="goal", window="sliding"))


def test_a_sum_with_a_goal_plans_to_it(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    """By the likelihood of sampled candidates; a model without goals is refused, as for the goal alone."""
    objective = WeightedSum({"goal": {"weight": 2.0, "objective": Goal()}})
    agent = make_agent(model, discretizer, name="sum", objective=objective)
    assert agent.needs_goal
    agent.reset(1)
    with pytest.raises(UserError, match=r"environment \[0\] has no goal"):
        agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    agent.aim(np.zeros((1, OBSERVATION_DIM)))
    agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    assert np.isfinite(agent.last_plan.score[0])
    with pytest.raises(UserError, match="planner=sum needs a model that was trained to reach goals"):
        make_agent(goal_model(False), discretizer, name="sum", objective=objective)
    with pytest.raises(UserError, match=r"needs planner\.window=growing"):
        make_agent(model, discretizer, name="sum", objective=objective, window="sliding")


def test_the_goal_takes_no_room_from_context_and_plan(
    model: TrajectoryTransformerModel, discretizer: Discretizer
) -> None:
    agent = make_agent(model, discretizer, context=3, horizon=3)
    agent.reset(1)
    for _ in range(3):
        agent.aim(np.zeros((1, OBSERVATION_DIM)))
        agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
        agent.observe(np.zeros((1, ACTION_DIM)), np.zeros(1), np.zeros(1, dtype=bool))
    with pytest.raises(UserError, match="need 6 transitions, but the model can see 5"):
        make_agent(model, discretizer, context=3, horizon=4)
