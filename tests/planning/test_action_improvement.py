"""The correction of planned actions towards those that turned out better than expected."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.checkpoint import DatasetRecord
from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import DataConfig, PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.model.action_improvement import ActionImprovement
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import effective_share, return_weights
from trajectory_transformer.planning.objectives import Return, WeightedSum
from trajectory_transformer.planning.planner import BeamPlanner

from .conftest import ACTION_DIM, ENVIRONMENT, OBSERVATION_DIM, PLANNER


@pytest.fixture
def improvement() -> ActionImprovement:
    torch.manual_seed(0)
    network = ActionImprovement(OBSERVATION_DIM, ACTION_DIM)
    observations = torch.tensor([1.0, -2.0, 0.0]) + 3.0 * torch.randn(100, OBSERVATION_DIM)
    network.standardize_like(observations, torch.tensor([0.1, 4.0]) * torch.randn(100, ACTION_DIM))
    network.fitted.fill_(1.0)
    return network


def test_the_difference_is_that_of_the_two_means_in_units_of_the_actions(improvement: ActionImprovement) -> None:
    seen, actions = torch.randn(5, 4, OBSERVATION_DIM), torch.randn(5, 4, ACTION_DIM)
    near = (actions - improvement.action_mean) / improvement.action_deviation
    hidden = torch.cat([(seen - improvement.observation_mean) / improvement.observation_deviation, near], dim=2)
    for layer in (0, 2):
        hidden = improvement.layers[layer](hidden).clamp(min=0.0)
    output = improvement.layers[4](hidden)
    expected = (output[..., ACTION_DIM:] - output[..., :ACTION_DIM]) * improvement.action_deviation
    torch.testing.assert_close(improvement(seen, actions), expected)
    assert improvement.action_deviation == pytest.approx([0.1, 4.0], rel=0.2)
    assert not any(parameter.requires_grad for parameter in improvement.parameters())


@pytest.mark.parametrize("options", [{"act": "mean"}, {"act": "conditioned"}, {"act": "best"}, {"plan_freq": 2}])
def test_planned_actions_are_corrected_within_the_range_of_the_data(
    model: TrajectoryTransformerModel,
    discretizer: Discretizer,
    improvement: ActionImprovement,
    options: dict[str, Any],
) -> None:
    """Also those of later transitions, by the observations that the best sequence predicts; less if weights differ."""

    def planned(times: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        nonlocal shares
        settings = PlannerConfig(**(PLANNER | options), improvement=times)
        agent = Agent(BeamPlanner(model, discretizer, settings), ENVIRONMENT, [improvement])
        agent.reset(2, [1, 2])
        first = agent.act(np.array([[0.5, -1.0, 0.0], [0.0, 2.0, 9.0]], dtype=np.float32))
        if settings.act == "conditioned":
            assert settings.discount is not None
            steps, centers = agent._searches[0][0].steps, discretizer.centers[OBSERVATION_DIM + ACTION_DIM + 1]
            weights = return_weights(steps, centers, settings.discount, settings.top_share)
            shares = effective_share(weights).numpy()[:, :, None]
            assert (shares < 0.999).all()
        return first, agent.last_plan.actions, agent.last_plan.observations

    shares = np.ones((2, 1, 1))
    taken, plain, observations = planned(0.0)
    np.testing.assert_array_equal(taken, plain[:, 0])
    taken, corrected, again = planned(90.0)
    np.testing.assert_array_equal(taken, corrected[:, 0])
    np.testing.assert_array_equal(observations, again)
    edges = discretizer.edges[OBSERVATION_DIM : OBSERVATION_DIM + ACTION_DIM].numpy()
    expected = plain + 90.0 * shares * improvement(torch.from_numpy(observations), torch.from_numpy(plain)).numpy()
    assert (np.abs(expected - plain) > 0.01).all()
    np.testing.assert_allclose(corrected, expected.clip(edges[:, 0], edges[:, -1]), rtol=1e-5, atol=1e-6)
    assert (corrected != expected).any()  # some were clipped


def test_the_effective_share_of_candidates_by_hand() -> None:
    """Weights of four candidates, for three transitions: equal, one alone, and two equal with two of nothing."""
    weights = torch.tensor([[2.0, 0.0, 0.5], [2.0, 3.0, 0.0], [2.0, 0.0, 0.0], [2.0, 0.0, 0.5]]).unsqueeze(0)
    torch.testing.assert_close(effective_share(weights), torch.tensor([[1.0, 0.25, 0.5]]))


@pytest.fixture
def checkpoint(model: TrajectoryTransformerModel, discretizer: Discretizer, tmp_path: Path):
    """Writes a checkpoint with these weights of an improvement, and returns its path."""

    def write(improvement: ActionImprovement | None) -> Path:
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        if improvement is not None:
            state |= {f"improvement.{name}": value for name, value in improvement.state_dict().items()}
        section = {
            "format": 1,
            "model": model.config.to_dict() | {"action_improvement": 3.0},
            "discretizer": discretizer.to_dict(),
            "environment": ENVIRONMENT.to_dict(),
            "data": asdict(DataConfig(discount=0.95)),
            "dataset": DatasetRecord(("test/data-v0",), "abc", torch.zeros(1), None, "none").to_dict(),
            "seed": 0,
            "value_r2": 0.7,
            "planner": asdict(PlannerConfig(**PLANNER, act="auto")),
        }
        write_checkpoint(tmp_path / "best.ckpt", {"state_dict": state, "trajectory_transformer": section})
        return tmp_path / "best.ckpt"

    return write


def test_by_default_averaged_actions_are_corrected(checkpoint: Any, improvement: ActionImprovement) -> None:
    path = checkpoint(improvement)
    assert Agent.from_checkpoint(path).settings.act == "conditioned"
    other = WeightedSum({"a": {"weight": 1.0, "objective": Return()}})
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 2.0),
        ({"act": "mean"}, 2.0),
        ({"improvement": 0.5}, 0.5),
        ({"improvement": 0.0}, 0.0),
        ({"act": "best"}, 0.0),
        ({"act": "best", "improvement": 2.0}, 2.0),
        ({"act": "mean", "objective": other}, 0.0),
        ({"name": "imitation"}, 0.0),
    ]
    for options, times in cases:
        assert Agent.from_checkpoint(path, **options).settings.improvement == times
    agent = Agent.from_checkpoint(path, act="mean")
    agent.reset(1)
    agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    plain = Agent.from_checkpoint(path, act="mean", improvement=0.0)
    plain.reset(1)
    plain.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    seen, actions = plain.last_plan.observations, plain.last_plan.actions
    expected = actions + 2.0 * improvement(torch.from_numpy(seen), torch.from_numpy(actions)).numpy()
    inside = np.abs(agent.last_plan.actions - expected) < 1e-5
    assert inside.any()


def test_a_model_without_one_has_nothing_to_add(checkpoint: Any, improvement: ActionImprovement) -> None:
    unfitted = ActionImprovement(OBSERVATION_DIM, ACTION_DIM)
    for path in (checkpoint(None), checkpoint(unfitted)):
        assert Agent.from_checkpoint(path).settings.improvement == 0.0
        with pytest.raises(UserError, match=r"^planner\.improvement=1\.0 needs a model with an action improvement"):
            Agent.from_checkpoint(path, improvement=1.0)


def test_weights_of_another_size_are_refused(checkpoint: Any) -> None:
    several = ActionImprovement(OBSERVATION_DIM, ACTION_DIM)
    several.fitted = torch.ones(2)
    with pytest.raises(UserError, match=r"do not fit together: the tensor 'fitted' has shape"):
        Agent.from_checkpoint(checkpoint(several))
    other = ActionImprovement(OBSERVATION_DIM + 1, ACTION_DIM)
    other.fitted.fill_(1.0)
    with pytest.raises(UserError, match=r"do not fit together: the tensor 'observation_mean' has shape"):
        Agent.from_checkpoint(checkpoint(other))


def test_a_copied_agent_corrects_in_the_same_way(
    model: TrajectoryTransformerModel, discretizer: Discretizer, improvement: ActionImprovement
) -> None:
    settings = PlannerConfig(**PLANNER, act="mean", improvement=2.0)
    agent = Agent(BeamPlanner(model, discretizer, settings), replace(ENVIRONMENT), [improvement])
    agent.reset(1, [3])
    twin = copy.deepcopy(agent)
    seen = np.ones((1, OBSERVATION_DIM), dtype=np.float32)
    np.testing.assert_array_equal(agent.act(seen), twin.act(seen))
