"""The search: its trials, that it continues where it stopped, and that it survives failures."""

import math
from pathlib import Path
from typing import Any

import pytest

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.app.tune import search
from trajectory_transformer.configuration import ParameterConfig, TuneConfig
from trajectory_transformer.errors import UserError


class Trials:
    """Replaces training: the score is highest at x = 3."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, Any]]] = []
        self.failing: BaseException | None = None

    def __call__(self, values: dict[str, Any], directory: Path) -> float:
        self.seen.append((int(directory.name), values))
        if self.failing is not None:
            raise self.failing
        score = math.nan if values["kind"] == "bad" else -((values["x"] - 3.0) ** 2)
        directory.mkdir(exist_ok=True)
        status = "failed" if math.isnan(score) else "finished"
        RunRecord(status, {name: str(value) for name, value in values.items()}, score).write(directory)
        return score


def space(trials: int) -> TuneConfig:
    x = ParameterConfig(low=0.0, high=10.0)
    return TuneConfig(
        {"x": x, "n": ParameterConfig(low=1, high=8, log=True), "kind": ParameterConfig(choices=["a", None, "bad"])},
        trials,
    )


def test_it_finds_the_best_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = Trials()
    best = search(space(25), tmp_path, 0, trials)
    assert [number for number, _ in trials.seen] == list(range(25))
    assert best == max(-((v["x"] - 3.0) ** 2) for _, v in trials.seen if v["kind"] != "bad")
    assert best > -1.0
    assert all(isinstance(v["n"], int) and 1 <= v["n"] <= 8 for _, v in trials.seen)
    assert "best of 25 trials" in capsys.readouterr().out
    assert (tmp_path / "sweep.csv").exists()


def test_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    first = Trials()
    search(space(4), tmp_path, 0, first)
    second = Trials()
    search(space(7), tmp_path, 0, second)
    assert [number for number, _ in second.seen] == [4, 5, 6]
    assert {v["x"] for _, v in first.seen}.isdisjoint(v["x"] for _, v in second.seen)
    third = Trials()
    search(space(7), tmp_path, 0, third)
    assert not third.seen


def test_an_interrupted_trial_is_run_again_with_the_same_values(tmp_path: Path) -> None:
    search(space(2), tmp_path, 0, Trials())
    stopped = Trials()
    stopped.failing = SystemExit(143)
    with pytest.raises(SystemExit):
        search(space(4), tmp_path, 0, stopped)
    again = Trials()
    search(space(4), tmp_path, 0, again)
    assert again.seen[0] == stopped.seen[0]
    assert [number for number, _ in again.seen] == [2, 3]


def test_other_choices_in_the_same_folder_are_refused(tmp_path: Path) -> None:
    search(space(3), tmp_path, 0, Trials())
    other = TuneConfig({"x": ParameterConfig(low=0.0, high=1.0), "kind": ParameterConfig(choices=["c"])}, 4)
    with pytest.raises(UserError, match="kind"):
        search(other, tmp_path, 0, Trials())


@pytest.mark.parametrize(
    "wrong",
    [
        {"low": 1.0},
        {"low": 2, "high": 1},
        {"low": 0.0, "high": 1.0, "log": True},
        {"choices": []},
        {"choices": [1], "low": 0, "high": 1},
        {"low": True, "high": 3},
    ],
)
def test_a_range_that_is_none_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        ParameterConfig(**wrong)
