"""The benchmark's arithmetic by hand, and its rows on tiny tasks; speeds are not asserted."""

import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import pytest

from trajectory_transformer import TrajectoryTransformerConfig
from trajectory_transformer.benchmark import __main__ as command
from trajectory_transformer.benchmark import planning, training
from trajectory_transformer.benchmark.machine import Hardware, forward_operations, make_model, peak_memory
from trajectory_transformer.benchmark.planning import PlanningSetting, PlanningSpeed, measure, planning_operations
from trajectory_transformer.configuration import DataConfig, ModelConfig, PlannerConfig
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.transitions import TransitionTable, join_episodes
from trajectory_transformer.layout import TransitionLayout

ALONE = Hardware("cpu", threads=1)


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


def small(window: str, environments: int) -> PlanningSetting:
    planner = PlannerConfig(horizon=3, beam_width=2, context=2, window=window)
    return PlanningSetting(
        "small", TransitionLayout(2, 1), ModelConfig(n_layer=1, n_head=1, n_embd=8), planner, environments
    )


@pytest.mark.parametrize(("window", "environments"), [("growing", 2), ("sliding", 1)])
def test_measured_figures_are_consistent(monkeypatch: pytest.MonkeyPatch, window: str, environments: int) -> None:
    monkeypatch.setattr(Hardware, "product_size", 256)  # small ones say less of the hardware, and take less time
    setting = small(window, environments)
    speed = measure(setting, ALONE, seconds=0.05)
    p50, p95 = speed.milliseconds
    assert 0 < p50 <= p95
    assert speed.shares is not None
    assert sum(speed.shares) == pytest.approx(1.0)
    assert all(share > 0 for share in speed.shares)
    assert 50 < speed.peak_memory < 10_000
    operations = planning_operations(setting, make_model(setting.layout, setting.model).config)
    assert speed.ideal_milliseconds == pytest.approx(1e3 * operations / speed.rate)


def test_a_search_that_runs_as_one_graph_has_no_shares() -> None:
    row = planning.planning_row(small("growing", 1), PlanningSpeed((2.0, 3.0), 0.5, None, 345, 1e11))
    assert row[-2:] == ("–", "345")


def growth_with_300_mib() -> int:
    before = peak_memory()
    held = bytearray(300 * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    return peak_memory() - before


@pytest.mark.slow
def test_peak_memory_grows_with_what_is_held() -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:  # nothing else was ever held in it
        assert 200 <= pool.submit(growth_with_300_mib).result() <= 400


def test_the_planning_table_has_a_row_for_each_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "PLANNING", [small("growing", 2), small("sliding", 1)])
    speed = PlanningSpeed((2.0, 3.0), 0.5, (0.7, 0.2, 0.1), 345, 1e11)
    monkeypatch.setattr(command, "measure_alone", lambda setting, hardware: speed)
    monkeypatch.setattr(Hardware, "matmul_rate", lambda self: 1e11)
    monkeypatch.setattr("sys.argv", ["benchmark", "planning", "--markdown"])
    command.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| small | growing | 3 | 2 | 2 | 2.0 | 3.0 | 4.00 | 70 / 20 / 10 | 345 |"
    assert lines[3].startswith("| small | sliding | 3 | 2 | 1 |")
    assert lines[4].endswith("100 GFLOP/s in 2048 × 2048 products")


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own() -> None:
    ballast = bytearray(2**30)
    ballast[::4096] = b"x" * len(ballast[::4096])
    assert planning.measure_alone(small("growing", 1), ALONE).peak_memory < 1024


def test_tokenising_begins_with_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []

    def join(episodes: Sequence[Episode], config: DataConfig) -> TransitionTable:
        joined.append(len(episodes))
        return join_episodes(episodes, config)

    monkeypatch.setattr(training, "join_episodes", join)
    ((name, seconds, _),) = training.tokenising_rows(ALONE, episodes=10, steps=30, rounds=1)
    assert name == "episodes to windows, 300 transitions of width 25"
    assert seconds.endswith(" s")
    assert joined == [9, 1] * 3  # to count windows, to warm up, to be timed


@pytest.mark.parametrize("bf16", [False, True])
def test_training_on_the_cpu(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    monkeypatch.setattr(training, "BASE", ModelConfig(n_layer=1, n_head=1, n_embd=8))
    monkeypatch.setattr(training, "TINY", ModelConfig(n_layer=1, n_head=1, n_embd=8))
    rows = training.training_rows(Hardware("cpu", threads=1, bf16=bf16), rate=1e11)
    assert [name.split(",")[1] for name, _, _ in rows] == [" tiny", " base"]
    assert all(float(speed.removesuffix(" tokens/s").replace(",", "")) > 0 for _, speed, _ in rows)


def test_an_accelerator_that_is_not_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["benchmark", "training", "--accelerator", "gpu"])
    with pytest.raises(SystemExit):
        command.main()
    assert "torch finds none on this machine" in capsys.readouterr().err
