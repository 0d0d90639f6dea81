"""Attention over windows of episodes: choice of windows, their mean, a model of known pattern, and output files."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.analysis import attention
from trajectory_transformer.analysis.attention import (
    average_attention,
    choose_windows,
    context_transitions,
    evaluate_attention,
)
from trajectory_transformer.analysis.attention_masses import AttentionMasses
from trajectory_transformer.configuration import AttentionConfig
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.data.transitions import TransitionTable
from trajectory_transformer.data.windows import TokenWindows
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import RunFacts
from trajectory_transformer.model.gpt import Block
from trajectory_transformer.planning.trained_transformer import TrainedTransformer

from ..evaluation.scripted import WALK, environment_spec

WIDTH, TRANSITIONS = 5, 3  # o o a r v
TOKENS = TRANSITIONS * WIDTH - 1
RUN = RunFacts("tests/walk-v0", "Walk-v0", 3, None, "python evaluate.py task=attention")


def model(transitions: int = TRANSITIONS, **sizes: int) -> TrajectoryTransformerModel:
    torch.manual_seed(0)
    config = TrajectoryTransformerConfig(
        vocab_size=8, block_size=transitions * WIDTH - 1, observation_dim=2, action_dim=1, transition_dim=WIDTH,
        **({"n_layer": 2, "n_head": 2, "n_embd": 16, "initializer_range": 0.5} | sizes),  # pyright: ignore
    )  # fmt: skip
    return TrajectoryTransformerModel(config).eval()


def table(*lengths: int) -> TransitionTable:
    values = np.random.default_rng(0).uniform(-1, 1, (sum(lengths), WIDTH)).astype(np.float32)
    return TransitionTable(values, np.array(lengths), np.zeros(len(lengths), dtype=bool))


def discretizer() -> UniformDiscretizer:
    return UniformDiscretizer(8).fit(np.array([[-1.0] * WIDTH, [1.0] * WIDTH], dtype=np.float32))


class TestWindows:
    def test_all_are_taken_where_there_are_no_more(self) -> None:
        chosen = choose_windows(np.array([5, 2, 3, 4]), transitions=3, count=100, seed=0)
        assert chosen.first.tolist() == [0, 1, 2, 7, 10, 11]
        assert chosen.episodes.tolist() == [0, 0, 0, 2, 3, 3]
        assert chosen.steps.tolist() == [0, 1, 2, 0, 0, 1]

    def test_they_are_drawn_without_replacement_by_the_seed(self) -> None:
        lengths = np.full(20, 30)
        one, same, other = (choose_windows(lengths, 10, 50, seed) for seed in (1, 1, 2))
        assert len(set(one.first.tolist())) == 50
        assert (one.first == same.first).all()
        assert (one.first != other.first).any()
        assert (one.first == 30 * one.episodes + one.steps).all()
        assert one.steps.max() <= 20

    def test_episodes_that_are_all_too_short_are_refused(self) -> None:
        with pytest.raises(
            UserError, match="all 2 held-out episodes are shorter than a context of 6 transitions, the lo"
        ):
            choose_windows(np.array([4, 5]), 6, 10, 0)


class TestContext:
    def test_all_that_the_model_sees_unless_fewer_are_wanted(self) -> None:
        assert context_transitions(model(transitions=5), None) == 5
        assert context_transitions(model(transitions=5), 4) == 4

    def test_more_than_the_model_sees_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"attention\.transitions=6 exceeds the 5 transitions"):
            context_transitions(model(transitions=5), 6)

    def test_a_model_conditioned_on_goals_is_refused(self) -> None:
        with pytest.raises(UserError, match="is conditioned on goals, which task=attention does not support"):
            context_transitions(model(transitions=5, goal_conditioned=True), None)

    def test_a_model_that_sees_too_little_is_refused(self) -> None:
        with pytest.raises(UserError, match=r"the model sees 2 transitions.*data\.sequence_length=3"):
            context_transitions(model(transitions=2), None)


def test_options_are_checked() -> None:
    for options, words in (
        ({"transitions": 2}, "at least 3"),
        ({"windows": 0}, "windows=0"),
        ({"windows": 4, "shown": 4}, r"shown=4 must lie in \[0, attention\.windows=4\)"),
    ):
        with pytest.raises(UserError, match=words):
            AttentionConfig(**options)


def test_a_loop_over_windows_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_WEIGHTS_AT_ONCE", 2 * 4 * TOKENS**2)  # two windows at a time
    network, data = model(), table(6, 2, 5)
    windows = TokenWindows(data, discretizer(), TRANSITIONS)
    chosen = choose_windows(data.lengths, TRANSITIONS, 100, 0)
    measured, mean, shown = average_attention(network, windows, chosen, shown=5)
    maps = []
    for first in (0, 1, 2, 3, 8, 9, 10):
        tokens = discretizer().encode(torch.from_numpy(data.values[first : first + TRANSITIONS])).flatten()[:-1]
        with torch.no_grad():
            output = network(tokens[None], output_attentions=True)
        maps.append(torch.cat(output.attentions).numpy())
    np.testing.assert_allclose(mean, np.mean(maps, axis=0), atol=1e-6)
    np.testing.assert_allclose(shown, maps[5], atol=1e-6)
    assert measured.masses.shape[:3] == (7, 2, 2)
    masses = AttentionMasses(network.layout, network.mask)
    for index, one in enumerate(maps):
        expected = masses.of(torch.from_numpy(one)).numpy()
        np.testing.assert_allclose(measured.masses[index], expected, atol=1e-6)
    assert measured.episodes.tolist() == [0, 0, 0, 0, 2, 2, 2]


def striped_model() -> TrajectoryTransformerModel:
    """One head that gives nine times the usual weight to the predicted dimension's previous token.

    Positions have orthogonal embeddings and tokens none. Normalised, embedding p has the product δ_pq - 1/16, over the
    variance of its entries, with embedding q. Keys are the embeddings; queries are the embeddings of WIDTH - 1
    positions before, scaled so that the score there is ln 9 higher than elsewhere.
    """
    network = model(n_layer=1, n_head=1, n_embd=16)
    (block,) = network.blocks
    assert isinstance(block, Block)
    with torch.no_grad():
        network.tok_emb.weight.zero_()
        network.pos_emb[0] = 1000.0 * torch.eye(16)[:TOKENS]  # beside which layer_norm_eps is nothing
        variance = 1 / 16 - 1 / 256
        for part in (block.attn.key, block.attn.query):
            part.bias.zero_()
        block.attn.key.weight.copy_(torch.eye(16))
        before = torch.eye(16).roll(-(WIDTH - 1), dims=0)
        block.attn.query.weight.copy_(before * variance * 16**0.5 * np.log(9.0))
    return network


def test_a_model_with_a_known_pattern(tmp_path: Path) -> None:
    trained = TrainedTransformer(striped_model(), discretizer(), environment_spec(WALK))
    measurements = evaluate_attention(trained, table(4, 6), AttentionConfig(windows=5), RUN, tmp_path)
    values = {
        measurement.name: measurement.value for measurement in measurements if measurement.method == "layer 1 head 1"
    }
    stripe, previous = [], []
    for predicted in range(2 * WIDTH, 3 * WIDTH):
        seen = [key for key in range(predicted) if key % WIDTH != WIDTH - 1]
        weights = {key: 9.0 if key == predicted - WIDTH else 1.0 for key in seen}
        total = sum(weights.values())
        previous.append(sum(weight for key, weight in weights.items() if key // WIDTH == 1) / total)
        if predicted % WIDTH != WIDTH - 1:
            stripe.append((9.0 + 1.0) / total)  # the one before has no more than any other
    assert values["mass_same_dimension_as_predicted"] == pytest.approx(np.mean(stripe), abs=1e-5)
    assert values["mass_previous_transition"] == pytest.approx(np.mean(previous), abs=1e-5)
    assert values["ratio_same_dimension_as_predicted"] > 2.0 > values["ratio_same_dimension_as_query"]


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = TrainedTransformer(model(), discretizer(), environment_spec(WALK))
    measurements = evaluate_attention(trained, table(4, 6, 2), AttentionConfig(windows=5, shown=4), RUN, tmp_path)
    with (tmp_path / "figures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["name"]) for row in rows] == [
        (measurement.method, measurement.name) for measurement in measurements
    ]
    assert {row["command"] for row in rows} == {RUN.command}
    assert {row["count"] for row in rows} == {"2"}
    lines = {(row["method"], row["name"]): float(row["value"]) for row in rows}
    assert lines["all layers", "num_windows"] == 5
    regions = ("present_transition", "previous_transition", "earlier_transitions")
    for method in ("uniform attention", "layer 1 head 2", "layer 2", "all layers"):
        assert sum(lines[method, f"mass_{region}"] for region in regions) == pytest.approx(1.0, abs=1e-5)
    pictures = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert pictures == ["attention_mean.png", "attention_summary.png", "attention_window.png"]
    assert "5 windows of 2 held-out episodes" in capsys.readouterr().out


def test_a_window_that_is_not_there_is_refused(tmp_path: Path) -> None:
    trained = TrainedTransformer(model(), discretizer(), environment_spec(WALK))
    with pytest.raises(UserError, match=r"attention\.shown=6: only 6 windows"):
        evaluate_attention(trained, table(4, 6), AttentionConfig(shown=6), RUN, tmp_path)
