"""Plans of an ensemble."""

import copy
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.environments.spec import SpaceLeaf, SpaceSpec
from trajectory_transformer.model.action_improvement import ActionImprovement
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import effective_share, return_weights
from trajectory_transformer.planning.planner import BeamPlanner

from .conftest import ACTION_DIM, BINS, ENVIRONMENT, OBSERVATION_DIM, PLANNER, TRANSITIONS
from .decoders import make_model

SEEN = np.array([[0.5, -1.0, 0.0], [0.0, 2.0, 0.3]], dtype=np.float32)


@pytest.fixture(scope="module")
def other() -> TrajectoryTransformerModel:
    torch.manual_seed(5)
    return make_model(OBSERVATION_DIM, ACTION_DIM, TRANSITIONS, BINS, spread=0.4, seed=5)


@pytest.fixture
def planners(model: TrajectoryTransformerModel, other: TrajectoryTransformerModel, discretizer: Discretizer):
    def make(**options: Any) -> list[BeamPlanner]:
        settings = PlannerConfig(**(PLANNER | options))
        return [BeamPlanner(each, discretizer, settings) for each in (model, other)]

    return make


def acted(agent: Agent, advance: int = 0) -> np.ndarray:
    """The agent's first actions in two environments whose generators have drawn as often as by so many plans."""
    agent.reset(2, [1, 2])
    for _ in range(advance):
        for generator in agent._generators:
            torch.rand(agent._planner._draws, generator=generator)
    return agent.act(SEEN)


@pytest.mark.parametrize("options", [{"act": "mean"}, {"act": "conditioned"}, {"act": "elite", "elite_share": 0.5}])
def test_the_action_is_the_mean_of_each_models_own(planners: Any, options: dict[str, Any]) -> None:
    first, second = planners(**options)
    alone = acted(Agent(first, ENVIRONMENT)), acted(Agent(second, ENVIRONMENT), advance=1)
    assert np.abs(alone[0] - alone[1]).min() > 1e-3
    ensemble = Agent(first, ENVIRONMENT, others=[second])
    np.testing.assert_allclose(acted(ensemble), (alone[0] + alone[1]) / 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ensemble.last_plan.actions[:, 0], acted(ensemble))


@pytest.mark.parametrize("options", [{"act": "best"}, {"act": "mean", "deadline_ms": 1e6}])
def test_without_a_mean_and_in_a_limited_time_the_first_model_plans_alone(
    planners: Any, options: dict[str, Any]
) -> None:
    first, second = planners(**options)
    ensemble = acted(Agent(first, ENVIRONMENT, others=[second]))
    np.testing.assert_array_equal(ensemble, acted(Agent(first, ENVIRONMENT)))


def test_the_correction_is_the_mean_of_the_members_at_the_mean_action(planners: Any, discretizer: Discretizer) -> None:
    """Times the mean of the effective shares of their candidates."""
    improvements = [ActionImprovement(OBSERVATION_DIM, ACTION_DIM) for _ in range(2)]
    first, second = planners(act="conditioned", improvement=1.0)
    corrected = acted(Agent(first, ENVIRONMENT, improvements, [second]))
    uncorrected = Agent(*(planners(act="conditioned", improvement=0.0)[0], ENVIRONMENT, improvements), [second])
    plain, shares = torch.from_numpy(acted(uncorrected)), list[torch.Tensor]()
    centers = discretizer.centers[OBSERVATION_DIM + ACTION_DIM + 1]
    for planner, advance in ((first, 0), (second, 1)):
        agent = Agent(planner, ENVIRONMENT)
        acted(agent, advance)
        steps = agent._searches[0][0].steps
        shares.append(effective_share(return_weights(steps, centers, 0.95, planner.settings.top_share))[:, 0])
    assert (shares[0] - shares[1]).abs().min() > 1e-3
    seen = torch.from_numpy(uncorrected.last_plan.observations[:, 0])
    difference = (improvements[0](seen, plain) + improvements[1](seen, plain)) / 2
    expected = plain + ((shares[0] + shares[1]) / 2).unsqueeze(1) * difference
    edges = discretizer.edges[OBSERVATION_DIM : OBSERVATION_DIM + ACTION_DIM]
    expected = expected.clamp(edges[:, 0], edges[:, -1])
    np.testing.assert_allclose(corrected, expected.numpy(), rtol=1e-4, atol=1e-5)
    assert np.abs(corrected - plain.numpy()).max() > 1e-3


def test_of_a_discrete_space_the_members_candidates_are_counted_together(
    planners: Any, discretizer: Discretizer
) -> None:
    space = SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (5.0,)),))
    discrete = replace(ENVIRONMENT, action=SpaceSpec((*space.leaves, *space.leaves)))
    first, second = planners(act="mean", horizon=1, beam_width=2)
    tokens = list[np.ndarray]()
    for planner, advance in ((first, 0), (second, 1)):
        agent = Agent(planner, discrete)
        acted(agent, advance)
        found, _ = agent._searches[0]
        candidates, _ = agent._candidates(found)
        tokens.append(candidates[:, :, 0].numpy())
    together = np.concatenate(tokens, axis=1)  # (environment, candidate, action_dim)
    taken = acted(Agent(first, discrete, others=[second]))
    for row in range(2):
        kinds, counts = np.unique(together[row], axis=0, return_counts=True)
        most = [tuple(kind) for kind, count in zip(kinds, counts, strict=True) if count == counts.max()]
        wanted = next(kind for kind in map(tuple, together[row]) if kind in most)  # of equal ones, the first
        columns = slice(OBSERVATION_DIM, OBSERVATION_DIM + ACTION_DIM)
        np.testing.assert_array_equal(taken[row], discretizer.decode(torch.tensor(wanted), columns).numpy())


def test_copies_and_pickles_of_an_ensemble_plan_alike(planners: Any) -> None:
    first, second = planners(act="mean")
    agent = Agent(first, ENVIRONMENT, others=[second])
    agent.reset(2, [1, 2])
    twins = copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))
    expected = agent.act(SEEN)
    for twin in twins:
        np.testing.assert_array_equal(twin.act(SEEN), expected)


def test_members_plan_in_each_environment_as_if_it_were_alone(planners: Any) -> None:
    first, second = planners(act="conditioned")
    agent = Agent(first, ENVIRONMENT, others=[second])
    together = acted(agent)
    for row in range(2):
        agent.reset(1, [row + 1])
        np.testing.assert_allclose(agent.act(SEEN[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-6)
