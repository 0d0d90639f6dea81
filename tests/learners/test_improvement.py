"""The training of the correction of planned actions."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.transitions import TransitionTable, following_returns, join_episodes
from trajectory_transformer.environments.spec import SpaceLeaf, SpaceSpec
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.learners import improvement as improvement_file
from trajectory_transformer.learners.improvement import fit_improvement
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.model.action_improvement import ActionImprovement
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.progress import WorkProgress
from trajectory_transformer.training.fit import fit, make_module

from ..training.small_run import small_config, small_data, small_datamodule, small_fit, weights

LAYOUT = TransitionLayout(1, 2)


def one_step_episodes(observations: np.ndarray, actions: np.ndarray, rewards: np.ndarray) -> TransitionTable:
    """Terminated episodes of a single step, whose return is its reward."""
    values = np.concatenate([observations, actions, rewards[:, None], np.zeros((len(rewards), 1))], axis=1)
    ones = np.ones(len(rewards))
    return TransitionTable(values.astype(np.float32), ones.astype(np.int64), ones.astype(bool))


def random_table(steps: int = 50) -> TransitionTable:
    generator = np.random.default_rng(0)
    observations, actions = generator.normal(size=(steps, 1)), generator.normal(size=(steps, 2))
    return one_step_episodes(observations, actions, generator.normal(size=steps))


def fitted(table: TransitionTable, updates: int = 900, seed: int = 0) -> ActionImprovement:
    torch.manual_seed(seed)
    network = ActionImprovement(LAYOUT.observation_dim, LAYOUT.action_dim)
    stream, progress = torch.Generator().manual_seed(seed), WorkProgress("", shown=False)
    fit_improvement(network, table, LAYOUT, updates, stream, lambda: False, progress)
    return network


def test_the_difference_is_that_of_weighted_and_plain_means_given_a_noisy_action() -> None:
    """In states of +1 the action 5 has a return of 1, and -5 of 0; in states of -1 it is the other way round.

    So advantages are ±0.5, their deviation is 0.5, and the weights exp(±3) are 20 at most. Standardised actions are ±1;
    given that noise of deviation 1 made y of one, the odds of +1 are exp(2 y), times those of the weights. The second
    action is noise.
    """
    generator = np.random.default_rng(0)
    states, signs = generator.choice([-1.0, 1.0], (2, 4000))
    noise = generator.normal(size=4000)
    table = one_step_episodes(states[:, None], np.stack([5 * signs, noise], axis=1), (signs * states > 0) * 1.0)
    network = fitted(table)
    assert network.fitted == 1.0
    for planned in (-2.0, -1.0, 0.0, 1.0):
        weighted = math.tanh(planned + 0.5 * math.log(20.0 / math.exp(-3.0)))
        expected = 5.0 * (weighted - math.tanh(planned))
        actions = torch.tensor([[5.0 * planned, 0.0], [-5.0 * planned, 0.0]])
        found = network(torch.tensor([[1.0], [-1.0]]), actions)
        assert found[:, 0].tolist() == pytest.approx([expected, -expected], abs=0.6)
        assert found[:, 1].abs().max() < 0.3
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_same_stream_gives_the_same_network_whatever_was_drawn_before() -> None:
    table = random_table()
    first = fitted(table, updates=6)
    torch.manual_seed(0)
    network = ActionImprovement(1, 2)
    torch.rand(7)
    stream = torch.Generator().manual_seed(0)
    fit_improvement(network, table, LAYOUT, 6, stream, lambda: False, WorkProgress("", shown=False))
    for name, value in first.state_dict().items():
        assert torch.equal(value, network.state_dict()[name])


def test_equal_returns_have_nothing_to_improve() -> None:
    table = one_step_episodes(np.ones((8, 1)), np.random.default_rng(0).normal(size=(8, 2)), np.full(8, 3.0))
    assert fitted(table).fitted == 0.0


@pytest.mark.parametrize("asked", [0, 1, 3])
def test_stopped_it_leaves_no_trace(asked: int) -> None:
    table = random_table()
    network = ActionImprovement(1, 2)
    before = {name: value.clone() for name, value in network.layers.state_dict().items()}
    answers = iter([False] * asked + [True] * 10)
    progress = WorkProgress("", shown=False)
    fit_improvement(network, table, LAYOUT, 6, torch.Generator(), lambda: next(answers), progress)
    assert network.fitted == 0.0
    assert all(torch.equal(value, before[name]) for name, value in network.layers.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_of_a_large_set_as_many_steps_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is not drawn has no influence."""
    monkeypatch.setattr(improvement_file, "LARGEST_SET", 40)
    table = random_table()
    chosen = set(torch.randperm(50, generator=torch.Generator().manual_seed(0))[:40].tolist())
    first = fitted(table, updates=6)
    for step in range(50):
        if step not in chosen:
            table.values[step] = 1e6
    assert torch.equal(first.get_parameter("layers.0.weight"), fitted(table, 6).get_parameter("layers.0.weight"))


def test_returns_are_those_of_the_table_by_another_discount() -> None:
    episodes = small_data(episodes=5).episodes
    table = join_episodes(episodes, DataConfig(discount=0.5, termination_penalty=-100.0))
    other = join_episodes(
        episodes, DataConfig(discount=0.9, continue_truncated=True, termination_penalty=-100.0)
    ).values
    assert {bool(end) for end in table.terminated} == {True, False}
    np.testing.assert_allclose(following_returns(table, 0.9), other[:, -2] + 0.9 * other[:, -1], rtol=1e-5)


class TestInTraining:
    def test_the_agent_uses_what_was_fitted_before_the_first_update(self, tmp_path: Path) -> None:
        report = small_fit(tmp_path, small_config())
        kept = weights(report.last)
        assert kept["improvement.fitted"] == 1.0
        agent = Agent.from_checkpoint(report.last, act="mean")
        assert agent.settings.improvement == 2.0
        config = small_config()
        without = small_config()
        without.model.action_improvement = 0.0
        plain = fit(TransformerLearner(), without, tmp_path / "plain", small_datamodule(without), [], [], resume=False)
        for name, value in weights(plain.last).items():  # the rest of the training is the same to the bit
            assert torch.equal(value, kept[name])
        assert set(kept) - set(weights(plain.last)) == {name for name in kept if name.startswith("improvement.")}
        assert config.model.action_improvement > 0.0

    def test_it_is_not_made_for_goals_and_for_indices(self) -> None:
        config = small_config()
        module = make_module(TransformerLearner(), config, small_datamodule(config))
        assert module.improvement is not None
        config.model.goal_conditioned = True
        datamodule = small_datamodule(config)
        assert make_module(TransformerLearner(), config, datamodule).improvement is None
        config = small_config()
        data = small_data()
        for episode in data.episodes:
            episode.actions[:] = episode.actions > 0
        discrete = SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (1.0,)),))
        data = replace(data, environment=replace(data.environment, action=discrete))
        module = make_module(TransformerLearner(), config, small_datamodule(config, data))
        assert module.improvement is None

    def test_initial_weights_do_not_need_it(self, tmp_path: Path) -> None:
        without = small_config(max_steps=2)
        without.model.action_improvement = 0.0
        trained = small_fit(tmp_path / "first", without)
        config = small_config(max_steps=2)
        config.init_from = str(trained.last)
        started = fit(TransformerLearner(), config, tmp_path / "second", small_datamodule(config), [], [], resume=False)
        assert Agent.from_checkpoint(started.last, act="mean").settings.improvement == 2.0
