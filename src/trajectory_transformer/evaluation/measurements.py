"""``figures.csv``: the numbers of one evaluation, a line each, with all that says where they come from.

Copies of these files make up ``results/``, and the tables of the documentation are made from those.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files import write_output


@dataclass(frozen=True)
class RunFacts:
    """Origin of the measurements of a run.

    Attributes:
        dataset: Minari ids, joined by commas.
        env_id: of the environment.
        seed: of the run.
        commit: of this project, or None outside a repository.
        command: that made it.
    """

    dataset: str
    env_id: str
    seed: int
    commit: str | None
    command: str


@dataclass(frozen=True)
class Measurement:
    """A number with its interval.

    Attributes:
        method: what was measured: a planner, a model, "behaviour".
        name: such as ``return_mean``.
        value: finite.
        low, high: ends of its 95 % interval, or None where there is none.
        count: how many observations (episodes, samples) it is made of.
    """

    method: str
    name: str
    value: float
    low: float | None
    high: float | None
    count: int


COLUMNS = (*(field.name for field in fields(Measurement)), *(field.name for field in fields(RunFacts)))


def write_measurements(path: Path, run: RunFacts, measurements: Sequence[Measurement]) -> None:
    """Write them whole; numbers have six significant digits.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for measurement in measurements:
        table.writerow({name: _cell(value) for name, value in {**asdict(measurement), **asdict(run)}.items()})
    write_output("figures", path, text.getvalue())


def planning_measurements(results: dict[str, Any]) -> tuple[RunFacts, list[Measurement]]:
    """The measurements in a ``results.json``: of its planner, and of the behaviour beside it."""
    facts = RunFacts(*(results[name] for name in ("dataset", "env_id", "seed", "commit", "command")))
    summary, behavior, count = results["summary"], results["behavior"], len(results["episodes"])
    planner = results["planner"]["name"]
    low, high = summary["return_ci95"]
    measurements = [
        Measurement("behaviour", "return_mean", behavior["return_mean"], None, None, behavior["episodes"]),
        Measurement(planner, "return_mean", summary["return_mean"], low, high, count),
    ]
    if "percent_of_data_return" in summary:
        mean, low, high = summary["percent_of_data_return"]
        measurements.append(Measurement(planner, "percent_of_data_return", mean, low, high, count))
    if summary["normalized_score_mean"] is not None:
        measurements.append(
            Measurement(planner, "normalized_score_mean", summary["normalized_score_mean"], None, None, count)
        )
    if summary["success_rate"] is not None:
        low, high = summary["success_ci95"]
        measurements.append(Measurement(planner, "success_rate", summary["success_rate"], low, high, count))
    measurements.append(
        Measurement(planner, "plan_latency_ms_p50", summary["plan_latency_ms"]["p50"], None, None, count)
    )
    return facts, measurements


def _cell(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)
