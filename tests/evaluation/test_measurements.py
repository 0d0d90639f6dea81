"""figures.csv: its figures of a results.json."""

import csv
from pathlib import Path

import pytest

from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import (
    COLUMNS,
    Measurement,
    RunFacts,
    planning_measurements,
    write_measurements,
)

RUN = RunFacts("tests/walk-v0", "Walk-v0", 3, "abc123", "python evaluate.py checkpoint='a b.ckpt'")
RESULTS = {
    "dataset": "tests/walk-v0", "env_id": "Walk-v0", "seed": 3, "commit": "abc123", "command": RUN.command,
    "planner": {"name": "goal"},
    "episodes": [{}] * 5,
    "behavior": {"return_mean": 1.5, "episodes": 9},
    "summary": {
        "return_mean": 0.5, "return_ci95": [0.0, 1.0], "normalized_score_mean": None, "success_rate": 0.5,
        "success_ci95": [0.1, 0.9], "plan_latency_ms": {"p50": 2.0},
    },
}  # fmt: skip


def test_a_plan_has_its_figures_and_the_behaviours() -> None:
    facts, measurements = planning_measurements(RESULTS)
    assert facts == RUN
    assert measurements == [
        Measurement("behaviour", "return_mean", 1.5, None, None, 9),
        Measurement("goal", "return_mean", 0.5, 0.0, 1.0, 5),
        Measurement("goal", "success_rate", 0.5, 0.1, 0.9, 5),
        Measurement("goal", "plan_latency_ms_p50", 2.0, None, None, 5),
    ]


def test_the_file_reads_back(tmp_path: Path) -> None:
    write_measurements(
        tmp_path / "new" / "figures.csv", RUN, [Measurement("goal", "success_rate", 2 / 3, None, 1.0, 20)]
    )
    with (tmp_path / "new" / "figures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert rows == [
        {
            "method": "goal", "name": "success_rate", "value": "0.666667", "low": "", "high": "1", "count": "20",
            "dataset": RUN.dataset, "env_id": RUN.env_id, "seed": "3", "commit": "abc123", "command": RUN.command,
        }
    ]  # fmt: skip


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"figures cannot be written to .*file/figures\.csv"):
        write_measurements(tmp_path / "file" / "figures.csv", RUN, [])


def test_imitation_is_measured_by_the_return_of_its_data() -> None:
    summary = {**RESULTS["summary"], "percent_of_data_return": [100 / 3, 0.0, 200 / 3]}
    _, measurements = planning_measurements({**RESULTS, "summary": summary})
    share = next(measurement for measurement in measurements if measurement.name == "percent_of_data_return")
    assert (share.low, share.count) == (0.0, 5)
    assert (share.value, share.high) == pytest.approx((100 / 3, 200 / 3))
    assert "percent_of_data_return" not in {measurement.name for measurement in planning_measurements(RESULTS)[1]}
