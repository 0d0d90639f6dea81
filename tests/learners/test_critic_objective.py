"""TT(+Q): scores worked out by hand from a critic whose values are known, and mistakes."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.planning.conftest import ACTION_DIM, BINS, ENVIRONMENT, OBSERVATION_DIM, PLANNER
from tests.specs import box
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import OBJECTIVES, PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.learners.critic import Critic
from trajectory_transformer.learners.critic_objective import CriticValue
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.iql_network import ImplicitQ
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.objectives import Candidates, PlanningContext, make_objective
from trajectory_transformer.planning.planner import BeamPlanner

LAYOUT = TransitionLayout(OBSERVATION_DIM, ACTION_DIM)


def with_critic(path: object = "critic.ckpt", score: str = "return") -> dict[str, Any]:
    return {"_target_": OBJECTIVES["critic"], "critic": str(path), "score": score}


class Sum(ImplicitQ):
    """Q(s, a) = sum(s) + 10 · sum(a), V(s) = 7 · sum(s)."""

    def v(self, observations: Tensor) -> Tensor:
        return 7.0 * observations.sum(-1)

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        return observations.sum(-1) + 10.0 * actions.sum(-1)


@pytest.fixture
def critic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Critic:
    """The critic that is read from critic.ckpt."""
    monkeypatch.chdir(tmp_path)
    Path("critic.ckpt").touch()
    network = Sum(ENVIRONMENT, ImplicitQLearning())
    known = Critic(network, 2.0, -1.0, 0.5, ENVIRONMENT)
    read(monkeypatch, known)
    return known


def read(monkeypatch: pytest.MonkeyPatch, critic: Critic) -> None:
    monkeypatch.setattr(Checkpoint, "read", lambda path: None)
    monkeypatch.setattr(Critic, "of", lambda checkpoint, device: critic)


@pytest.mark.parametrize("score", ["return", "v", "q"])
def test_scores_by_hand(critic: Critic, discretizer: Discretizer, score: str) -> None:
    objective = CriticValue("critic.ckpt", score)
    objective.prepare(PlanningContext(LAYOUT, discretizer, PlannerConfig(**PLANNER), "cpu"))
    tokens = torch.randint(0, BINS, (2, 3, LAYOUT.transition_dim), generator=torch.Generator().manual_seed(0))
    returns = torch.full((2, 3, 4), 1e6)  # the reward of the transition itself, and what comes after, have no part
    returns[..., 0], returns[..., 1] = 3.0, 0.25
    centers = (discretizer.edges[:, 1:] + discretizer.edges[:, :-1]) / 2
    found = objective(Candidates(2, returns, torch.ones(4), tokens, LAYOUT, discretizer.decode))
    for environment in range(2):
        for row in range(3):
            decoded = [float(centers[d, tokens[environment, row, d]]) for d in range(OBSERVATION_DIM + ACTION_DIM)]
            q = sum(decoded[:OBSERVATION_DIM]) + 10.0 * sum(decoded[OBSERVATION_DIM:])
            # Rewards as the critic knows them: 2 · 3 - 1 and 2 · 0.25 - 1, discounted by 0.5.
            rewards, v = 5.0 + 0.5 * -0.5, 7.0 * sum(decoded[:OBSERVATION_DIM])
            expected = {"q": q, "return": rewards + 0.25 * q, "v": rewards + 0.25 * v}[score]
            assert found[environment, row].item() == pytest.approx(expected, abs=1e-4)


def test_the_plan_takes_the_action_that_the_critic_values_most(
    model: TrajectoryTransformerModel, discretizer: Discretizer, critic: Critic
) -> None:
    """One transition, with so many candidates that they include the largest actions."""
    options = PLANNER | {"objective": with_critic(), "horizon": 1, "beam_width": 1000, "cdf_act": None}
    planner = BeamPlanner(model, discretizer, PlannerConfig(**options))
    found = planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator().manual_seed(0)])
    (step,) = found.steps
    actions = discretizer.decode(step.tokens[0, :, :ACTION_DIM], LAYOUT.action).sum(-1)
    assert found.tokens[0, 0, LAYOUT.action].tolist() == step.tokens[0, actions.argmax(), :ACTION_DIM].tolist()
    observation = discretizer.decode(torch.tensor([1, 2, 3]), LAYOUT.observation).sum()
    assert found.score.item() == pytest.approx(float(observation + 10 * actions.max()), abs=1e-4)


def test_a_plan_s_value_is_that_of_its_last_state(
    model: TrajectoryTransformerModel, discretizer: Discretizer, critic: Critic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rewards the score is that state's value alone, and continuations of one state tie."""
    read(monkeypatch, replace(critic, reward_scale=0.0, reward_shift=0.0))
    options = PLANNER | {"objective": with_critic(score="v"), "horizon": 2, "beam_width": 20, "k_obs": None}
    planner = BeamPlanner(model, discretizer, PlannerConfig(**options))
    found = planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator().manual_seed(0)])
    sums = discretizer.decode(found.tokens[0, :, LAYOUT.observation], LAYOUT.observation).sum(-1)
    assert found.score.item() == pytest.approx(0.5 * 7.0 * float(sums[1]), abs=1e-4)
    first, second = (discretizer.decode(step.tokens[0, :, :ACTION_DIM], LAYOUT.action) for step in found.steps)
    assert len(first) == 40  # all of the same score: the first ones drawn are kept
    assert found.steps[0].kept[0].tolist() == list(range(20))
    assert found.steps[1].kept[0, 0] % 2 == 0  # the first of two continuations of one state
    assert len(second) == 40


@pytest.mark.usefixtures("critic")
@pytest.mark.parametrize("options", [{"horizon": 1}, {"plan_freq": 3}, {"deadline_ms": 20.0}])
def test_values_of_states_leave_the_last_action_open(options: dict[str, Any]) -> None:
    """So the last action must never be taken."""
    with pytest.raises(UserError, match=r"score=v .* above planner.plan_freq, and no planner.deadline_ms"):
        make_objective(PlannerConfig(**{**PLANNER, "objective": with_critic(score="v"), **options}))
    make_objective(PlannerConfig(**{**PLANNER, "objective": with_critic(score="q"), **options}))


def test_a_sum_with_a_critic_loads_it_and_checks_what_it_checks(
    model: TrajectoryTransformerModel, discretizer: Discretizer, critic: Critic
) -> None:
    """One transition: Q(s, a) = sum(s) + 10 · sum(a), minus half the expected reward and return-to-go."""

    def both(score: str) -> dict[str, Any]:
        terms = {
            "critic": {"weight": 1.0, "objective": with_critic(score=score)},
            "return": {"weight": -0.5, "objective": {"_target_": OBJECTIVES["return"]}},
        }
        return {"_target_": "trajectory_transformer.planning.objectives.WeightedSum", "terms": terms}

    options = PLANNER | {"horizon": 1, "beam_width": 20, "cdf_act": None}
    planner = BeamPlanner(model, discretizer, PlannerConfig(**options, objective=both("q")))
    found = planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator().manual_seed(0)])
    decoded = discretizer.decode(found.tokens[0, 0], slice(0, LAYOUT.transition_dim))
    q = decoded[LAYOUT.observation].sum() + 10.0 * decoded[LAYOUT.action].sum()
    expected = q - 0.5 * (found.rewards[0, 0] + PLANNER["discount"] * found.value[0])
    assert found.score.item() == pytest.approx(float(expected), abs=1e-4)
    with pytest.raises(UserError, match=r"score=v .* above planner.plan_freq"):
        make_objective(PlannerConfig(**options, objective=both("v")))


def test_a_critic_is_needed_and_of_the_same_dimensions(
    model: TrajectoryTransformerModel, discretizer: Discretizer, critic: Critic, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"planner.objective: .*CriticValue: missing a required argument: 'critic'"):
        BeamPlanner(model, discretizer, PlannerConfig(**PLANNER, name="critic"))
    with pytest.raises(UserError, match=r"planner.objective.score='values' is not one of return, v, q"):
        make_objective(PlannerConfig(**PLANNER, objective=with_critic(score="values")))
    with pytest.raises(UserError, match=r"planner.objective.critic: checkpoint 'no.ckpt' does not exist"):
        make_objective(PlannerConfig(**PLANNER, objective=with_critic("no.ckpt")))
    read(monkeypatch, replace(critic, environment=replace(ENVIRONMENT, observation=box(5))))
    message = "planner.objective.critic was trained on 5 observation and 2 action dimensions, the model on 3 and 2"
    with pytest.raises(UserError, match=message):
        BeamPlanner(model, discretizer, PlannerConfig(**PLANNER, objective=with_critic()))


@pytest.fixture
def files(
    tmp_path: Path, model: TrajectoryTransformerModel, discretizer: Discretizer
) -> Callable[..., tuple[Path, Path]]:
    """Checkpoints of a model and of a critic; options change what the critic records."""

    def write(**changes: Any) -> tuple[Path, Path]:
        dataset = {"ids": ["test/data-v0"], "fingerprint": "a" * 64}
        record: dict[str, Any] = {
            "format": 1,
            "environment": ENVIRONMENT.to_dict(),
            "dataset": dataset,
            "data": {"discount": 0.9},
        }
        transformer = record | {
            "model": model.config.to_dict(), "discretizer": discretizer.to_dict(), "planner": PLANNER
        }  # fmt: skip
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        write_checkpoint(tmp_path / "model.ckpt", {"trajectory_transformer": transformer, "state_dict": weights})
        network = ImplicitQ(ENVIRONMENT, ImplicitQLearning(hidden_width=4))
        weights = {f"network.{name}": value for name, value in network.state_dict().items()}
        options = {"hidden_width": 4, "reward_scale": 1.0, "reward_shift": 0.0}
        critics = record | {"kind": "iql", "model": options} | changes
        write_checkpoint(tmp_path / "critic.ckpt", {"trajectory_transformer": critics, "state_dict": weights})
        return tmp_path / "model.ckpt", tmp_path / "critic.ckpt"

    return write


def test_an_agent_plans_with_a_critic_from_its_file(files: Callable[..., tuple[Path, Path]]) -> None:
    model, critic = files()
    agent = Agent.from_checkpoint(model, objective=with_critic(critic))
    agent.reset(2)
    assert np.isfinite(agent.act(np.zeros((2, OBSERVATION_DIM), dtype=np.float32))).all()
    assert (agent.settings.name, agent.settings.objective) == ("critic", with_critic(critic))


def test_a_critic_of_other_data_is_refused(files: Callable[..., tuple[Path, Path]]) -> None:
    model, critic = files(dataset={"ids": ["other/data-v1"], "fingerprint": "b" * 64})
    message = r"planner.objective.critic was trained on other data \(other/data-v1\) than the checkpoint's model"
    with pytest.raises(UserError, match=message):
        Agent.from_checkpoint(model, objective=with_critic(critic))


def test_a_critic_of_other_observation_dimensions_is_refused(files: Callable[..., tuple[Path, Path]]) -> None:
    environment = replace(ENVIRONMENT, observation_indices=(2, 1, 0)).to_dict()
    model, critic = files(environment=environment)
    with pytest.raises(
        UserError, match=r"planner.objective.critic sees the observation's dimensions \(2, 1, 0\), .* None"
    ):
        Agent.from_checkpoint(model, objective=with_critic(critic))


def test_something_else_than_a_critic_is_refused(files: Callable[..., tuple[Path, Path]]) -> None:
    model, critic = files()
    with pytest.raises(UserError, match="trained with learner=transformer, and one of learner=iql is"):
        Agent.from_checkpoint(model, objective=with_critic(model))
    with pytest.raises(UserError, match="trained with learner=iql, and one of learner=transformer is"):
        Agent.from_checkpoint(critic)
