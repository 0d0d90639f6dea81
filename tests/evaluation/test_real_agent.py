"""The planning agent fits the interface that evaluation expects, and its episodes depend on their seeds alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.evaluate import evaluate
from trajectory_transformer.evaluation.records import RolloutOptions
from trajectory_transformer.evaluation.results import read_results
from trajectory_transformer.evaluation.rollout import run_episodes
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.planner import BeamPlanner

from .scripted import WALK, environment_spec, request_of


def untrained_agent(deadline_ms: float | None = None, **arguments: Any) -> Agent:
    """An agent for the walk with random weights, whose plans differ in every state."""
    torch.manual_seed(0)
    width = 2 + 1 + 2
    config = TrajectoryTransformerConfig(
        vocab_size=20, block_size=6 * width - 1, observation_dim=2, action_dim=1, transition_dim=width,
        n_layer=1, n_head=2, n_embd=16, initializer_range=0.5,
    )  # fmt: skip
    bounds = torch.tensor([[0.0, -3.0, -1.0, -2.0, -5.0], [30.0, 3.0, 1.0, 2.0, 5.0]])
    settings = PlannerConfig(
        horizon=3, beam_width=4, n_expand=2, context=3, discount=0.99, plan_freq=2, deadline_ms=deadline_ms
    )
    planner = BeamPlanner(TrajectoryTransformerModel(config), UniformDiscretizer(20).fit(bounds), settings)
    return Agent(planner, environment_spec(WALK, **arguments))


def test_episodes_do_not_depend_on_the_number_of_environments(tmp_path: Path) -> None:
    request = request_of(5, 1, 3)
    alone = evaluate(untrained_agent(), request, tmp_path / "alone")
    beside = evaluate(untrained_agent(), replace(request, num_envs=3), tmp_path / "beside")
    other = evaluate(untrained_agent(), replace(request, first_episode_seed=40), tmp_path / "other")
    assert alone["episodes"] == beside["episodes"]
    assert [e["return"] for e in alone["episodes"]] != [e["return"] for e in other["episodes"]]
    assert len({episode["length"] for episode in alone["episodes"]}) > 1
    assert (tmp_path / "alone" / "plots" / "plan_vs_outcome.png").exists()


def test_what_a_deadline_did_is_recorded(tmp_path: Path) -> None:
    request = request_of(3, 2, 3)
    evaluate(untrained_agent(deadline_ms=1e-6), request, tmp_path / "hopeless")
    results = read_results(tmp_path / "hopeless" / "results.json")
    plans = sum(episode["length"] for episode in results["episodes"])  # of one step each
    assert results["deadline"] == {"ms": 1e-6, "plans": plans, "shortened": plans, "narrowed": plans, "late": plans}
    assert (tmp_path / "hopeless" / "plots" / "plan_vs_outcome.png").exists()
    relaxed = evaluate(untrained_agent(deadline_ms=1e9), request, tmp_path / "relaxed")
    assert relaxed["deadline"] == {
        "ms": 1e9, "plans": sum((episode["length"] + 1) // 2 for episode in relaxed["episodes"]),
        "shortened": 0, "narrowed": 0, "late": 0,
    }  # fmt: skip
    assert relaxed["episodes"] == evaluate(untrained_agent(), request, tmp_path / "without")["episodes"]


@pytest.mark.parametrize("reward", [np.nan, np.inf])
def test_a_reward_that_is_not_finite_is_one_message(reward: float) -> None:
    agent = untrained_agent(bad_reward_at=2, bad_reward=reward)
    with pytest.raises(UserError, match=rf"at step 2 of episode 0 \(seed 100\): its reward is {reward}"):
        run_episodes(agent, agent.environment, 1, 1, 100, RolloutOptions(progress=False))


def test_every_second_act_plans() -> None:
    agent = untrained_agent()
    record = run_episodes(agent, agent.environment, 1, 1, 3, RolloutOptions(progress=False))
    assert agent.settings.plan_freq == 2
    assert len(record.plan_seconds) == (record.episodes[0].length + 1) // 2
