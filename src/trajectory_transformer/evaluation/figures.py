"""``figures.csv``: the numbers of one evaluation, a line each, with all that says where they come from.

Copies of these files make up ``results/``, and the tables of the documentation are made from those.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import write_whole


@dataclass(frozen=True)
class RunFacts:
    """What all figures of a run have in common.

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
class Figure:
    """One number.

    Attributes:
        method: what it is a figure of: a planner, a model, "behaviour".
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


COLUMNS = (*(field.name for field in fields(Figure)), *(field.name for field in fields(RunFacts)))


def write_figures(path: Path, run: RunFacts, figures: Sequence[Figure]) -> None:
    """Write them whole; numbers have six significant digits.

    Raises:
        UserError: the file cannot be written.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    for figure in figures:
        table.writerow({name: _cell(value) for name, value in {**asdict(figure), **asdict(run)}.items()})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.getvalue())
    except OSError as error:
        raise UserError(f"figures cannot be written to {path}: {error.strerror or error}") from error


def planning_figures(results: dict[str, Any]) -> tuple[RunFacts, list[Figure]]:
    """The figures of a ``results.json``: of its planner, and of the behaviour beside it."""
    facts = RunFacts(*(results[name] for name in ("dataset", "env_id", "seed", "commit", "command")))
    summary, behavior, count = results["summary"], results["behavior"], len(results["episodes"])
    planner = results["planner"]["name"]
    low, high = summary["return_ci95"]
    figures = [
        Figure("behaviour", "return_mean", behavior["return_mean"], None, None, behavior["episodes"]),
        Figure(planner, "return_mean", summary["return_mean"], low, high, count),
    ]
    if "percent_of_data_return" in summary:
        mean, low, high = summary["percent_of_data_return"]
        figures.append(Figure(planner, "percent_of_data_return", mean, low, high, count))
    if summary["normalized_score_mean"] is not None:
        figures.append(Figure(planner, "normalized_score_mean", summary["normalized_score_mean"], None, None, count))
    if summary["success_rate"] is not None:
        low, high = summary["success_ci95"]
        figures.append(Figure(planner, "success_rate", summary["success_rate"], low, high, count))
    figures.append(Figure(planner, "plan_latency_ms_p50", summary["plan_latency_ms"]["p50"], None, None, count))
    return facts, figures


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
