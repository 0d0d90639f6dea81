"""``figures.csv``: the numbers of one evaluation, one per line, with their origin.

Copies of these files in ``results/`` are the source of the documentation's tables.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..files import write_output
from .results import return_interval


@dataclass(frozen=True)
class RunFacts:
    """The origin of the measurements of a run."""

    dataset: str  # Minari ids, joined by commas
    env_id: str
    seed: int
    commit: str | None  # of this project; None outside a repository
    command: str


@dataclass(frozen=True)
class Measurement:
    """A finite number with its interval."""

    method: str  # subject of the measurement: a planner, a model, "behaviour"
    name: str  # such as ``return_mean``
    value: float
    low: float | None  # ends of its 95 % interval, if it has one
    high: float | None
    count: int  # number of observations (episodes, samples)


COLUMNS = (*(field.name for field in fields(Measurement)), *(field.name for field in fields(RunFacts)))


def write_measurements(path: Path, run: RunFacts, measurements: Sequence[Measurement]) -> None:
    """Write measurements with six significant digits; raises UserError if the file cannot be written."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for measurement in measurements:
        cells = {**asdict(measurement), **asdict(run)}
        table.writerow({name: f"{cell:.6g}" if isinstance(cell, float) else cell for name, cell in cells.items()})
    write_output("figures", path, text.getvalue())


def planning_measurements(results: dict[str, Any]) -> tuple[RunFacts, list[Measurement]]:
    """Return the measurements in a ``results.json``: those of its planner and of the behaviour."""
    facts = RunFacts(*(results[name] for name in ("dataset", "env_id", "seed", "commit", "command")))
    summary, behavior = results["summary"], results["behavior"]
    planner, count, no_ends = results["planner"]["name"], len(results["episodes"]), (None, None)
    ends = return_interval(results)
    share, *share_ends = summary.get("percent_of_data_return", (None, None, None))
    rows = [
        ("behaviour", "return_mean", behavior["return_mean"], *no_ends, behavior["episodes"]),
        (planner, "return_mean", summary["return_mean"], *(ends or no_ends), count),
        (planner, "percent_of_data_return", share, *(share_ends if ends else no_ends), count),
        (planner, "normalized_score_mean", summary["normalized_score_mean"], *no_ends, count),
        (planner, "success_rate", summary["success_rate"], *(summary["success_ci95"] or no_ends), count),
        (planner, "plan_latency_ms_p50", summary["plan_latency_ms"]["p50"], *no_ends, count),
    ]
    measurements = [Measurement(*row) for row in rows]
    return facts, [measurement for measurement in measurements if measurement.value is not None]
