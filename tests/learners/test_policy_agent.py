"""The agent of a critic's policy."""

import numpy as np
import pytest
import torch

from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.iql_network import ImplicitQ
from trajectory_transformer.learners.policy_agent import PolicyAgent

from ..specs import box

ENVIRONMENT = EnvironmentSpec("Walk-v0", None, box(2, -9.0, 9.0), box(1, 2.0, 6.0))


@pytest.fixture
def agent() -> PolicyAgent:
    """Its policy is 4 + 2 tanh(x − y), for actions from 2 to 6."""
    network = ImplicitQ(ENVIRONMENT, ImplicitQLearning(hidden_layers=1, hidden_width=2))
    weights = iter([torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(2), torch.tensor([[1.0, -1.0]]), None])
    for parameter in network.policy.parameters():
        value = next(weights)
        parameter.data = torch.zeros(1) if value is None else value
    agent = PolicyAgent(network.requires_grad_(False).policy_mean, ENVIRONMENT, "cpu", "iql_policy")
    agent.reset(3)
    return agent


def test_takes_the_most_likely_action_of_active_rows(agent: PolicyAgent) -> None:
    observations = np.array([[1.0, 0.5], [np.nan, 0.0], [-3.0, 1.0]], dtype=np.float32)
    actions = agent.act(observations, np.array([True, False, True]))
    expected = [[4 + 2 * np.tanh(0.5)], [0.0], [4 + 2 * np.tanh(-4.0)]]
    np.testing.assert_allclose(actions, expected, rtol=1e-6)
    assert actions.dtype == np.float32
    assert agent.planned.tolist() == [True, False, True]
    assert agent.counts.plans == 2
    np.testing.assert_array_equal(agent.last_plan.observations[:, 0], observations)
    agent.act(np.zeros((3, 2), dtype=np.float32))
    assert agent.counts.plans == 5


def test_refuses_what_is_no_observation(agent: PolicyAgent) -> None:
    with pytest.raises(UserError, match=r"^observations have shape \(3, 1\), expected \(3, 2\)$"):
        agent.act(np.zeros((3, 1), dtype=np.float32))
    bad = np.array([[0.0, 0.0], [0.0, np.inf], [0.0, 0.0]], dtype=np.float32)
    with pytest.raises(UserError, match=r"^the observation of environment \[1\] has NaN or infinite values$"):
        agent.act(bad)


def test_refuses_an_action_that_would_broadcast() -> None:
    """One number for two dimensions."""
    spaces = EnvironmentSpec("", None, box(2), box(2))
    agent = PolicyAgent(lambda observations: observations[:, :1], spaces, "cpu", "one")
    with pytest.raises(UserError, match=r"^the policy's actions have shape \(1,\), expected \(2,\)$"):
        agent.act(np.zeros((1, 2), dtype=np.float32))
