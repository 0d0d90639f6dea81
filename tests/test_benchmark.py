"""The benchmark's arithmetic by hand, and its rows on tiny work. Speeds themselves are not asserted."""

from collections.abc import Sequence

import pytest

from trajectory_transformer import benchmark
from trajectory_transformer.benchmark import PlanningSetting, forward_operations, planning_operations
from trajectory_transformer.configuration import ModelConfig, PlannerConfig
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.transitions import TransitionTable, join_episodes
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.model.config import TrajectoryTransformerConfig


def test_operations_of_the_paper_model() -> None:
    # 6.33 million operations for each token of an update, backward twice the forward.
    config = TrajectoryTransformerConfig()
    assert 3 * forward_operations(config, config.block_size) == pytest.approx(6.33e6, rel=0.001)


def test_planning_operations_by_hand() -> None:
    layout = TransitionLayout(1, 1)
    config = TrajectoryTransformerConfig(
        vocab_size=1, observation_dim=1, action_dim=1, transition_dim=4, block_size=39, n_layer=1, n_head=1, n_embd=1
    )
    planner = PlannerConfig(horizon=2, beam_width=3, n_expand=2, context=1)
    setting = PlanningSetting("", layout, ModelConfig(), planner)

    def token(keys: float) -> float:
        return 24 + 4 * keys + 4

    # Context: one token. Then action and reward for 6 candidates, value and observation for 3 beams, twice the former.
    expected = (token(0.5) - 4) + 6 * (token(2) + token(3)) + 3 * (token(4) + token(5)) + 6 * (token(6) + token(7))
    assert planning_operations(setting, config) == expected


def test_planning_rows_measure_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ModelConfig(n_layer=1, n_head=1, n_embd=8)
    settings = [
        PlanningSetting("growing", TransitionLayout(2, 1), model, PlannerConfig(horizon=2, beam_width=2, context=2), 2),
        PlanningSetting(
            "sliding",
            TransitionLayout(2, 1),
            model,
            PlannerConfig(horizon=3, beam_width=2, context=2, window="sliding"),
        ),
    ]
    monkeypatch.setattr(benchmark, "PLANNING", settings)
    rows = benchmark.planning_rows(rate=1e9, rounds=1)
    assert [row[0] for row in rows] == [
        "planning, growing: horizon 2, beam 2",
        "planning, sliding: horizon 3, beam 2",
    ]
    assert all("ms per action" in row[1] and "×" in row[2] for row in rows)


def test_tokenising_begins_with_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    def join(episodes: Sequence[Episode], discount: float, penalty: float | None) -> TransitionTable:
        joined.append(len(episodes))
        return join_episodes(episodes, discount, penalty)

    monkeypatch.setattr(benchmark, "join_episodes", join)
    ((name, seconds, _),) = benchmark.tokenising_rows(episodes=10, steps=30, rounds=1)
    assert name == "episodes to windows, 300 transitions of width 25"
    assert seconds.endswith(" s")
    assert joined == [9, 1] * 3  # to count windows, to warm up, to be timed
