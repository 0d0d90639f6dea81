"""The table at the end of a sweep or search: every job, and the score over seeds."""

import csv
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from .jobs import REFUSAL, RunRecord


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: its folder's name, and its record."""

    name: str
    record: RunRecord

    @property
    def status(self) -> str:
        return self.record.status

    def values(self, names: Sequence[str]) -> list[str]:
        """Its parameters of these names; empty where it was not given one."""
        return [self.record.parameters.get(name, "") for name in names]


@dataclass(frozen=True)
class Group:
    """Jobs that differ only in their seed; mean and half width of the 95 % interval over those that finished."""

    jobs: list[SweepJob]
    mean: float | None
    half_width: float | None

    @property
    def seeds(self) -> int:
        return sum(job.record.score is not None for job in self.jobs)


def confidence(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and half width of its 95 % interval by Student's t; None where there are too few scores."""
    if len(scores) < 2:
        return (scores[0] if scores else None), None
    from scipy.special import stdtrit  # not for a refused option to wait for

    quantile = float(stdtrit(len(scores) - 1, 0.975))
    return statistics.fmean(scores), quantile * statistics.stdev(scores) / math.sqrt(len(scores))


def read_jobs(directory: Path) -> list[SweepJob]:
    """Jobs of a sweep, by their number, the failed ones included that left no record or were refused a folder."""
    folders = [path for path in directory.iterdir() if path.is_dir() and path.name.isdecimal()]
    lost = RunRecord("failed", reason="it left no record")
    return [
        SweepJob(path.name, RunRecord.read(path, REFUSAL) or RunRecord.read(path) or lost)
        for path in sorted(folders, key=lambda path: int(path.name))
    ]


def group_by_settings(jobs: Sequence[SweepJob]) -> list[Group]:
    """Jobs that differ only in their seed, together; in the order of their first job."""
    members: dict[tuple[tuple[str, str], ...], list[SweepJob]] = {}
    for job in jobs:
        settings = sorted((name, value) for name, value in job.record.parameters.items() if name != "seed")
        members.setdefault(tuple(settings), []).append(job)
    scores = [
        [job.record.score for job in same if job.status == "finished" and job.record.score is not None]
        for same in members.values()
    ]
    return [Group(same, *confidence(own)) for same, own in zip(members.values(), scores, strict=True)]


def report(directory: Path) -> list[SweepJob]:
    """Print the table of the sweep in ``directory`` and write it there as ``sweep.csv``; returns the jobs.

    Where planners were compared, ``tradeoff.png`` shows their returns against the time that an action takes.
    """
    jobs = read_jobs(directory)
    groups = group_by_settings(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.record.parameters))
    varied = [name for name in names if len({job.record.parameters.get(name) for job in jobs}) > 1] or names
    results = {job.name: evaluation for job in jobs if (evaluation := _evaluation(directory / job.name, job))}
    rows = [["job", "status", *varied, "score", "mean over seeds", "95 % ±", "seeds", "ms per plan", "reason"]]
    for group in groups:
        numbers = [_number(group.mean), _number(group.half_width), str(group.seeds)]  # in each row, for filters
        for job in group.jobs:
            planned = results.get(job.name)
            latency = "" if planned is None else _number(planned["summary"]["plan_latency_ms"]["p50"])
            score = _number(job.record.score)
            rows.append([job.name, job.status, *job.values(varied), score, *numbers, latency, job.record.reason])
    with (directory / "sweep.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    _show(groups, varied, f"{len(jobs)} jobs in {directory}")
    if len(results) > 1 and any(name.startswith("planner") for name in varied):
        _plot_tradeoff([job for job in jobs if job.name in results], results, varied, directory / "tradeoff.png")
    return jobs


def _evaluation(directory: Path, job: SweepJob) -> dict[str, Any] | None:
    """A finished job's ``results.json``, if it planned; a file that cannot be read is not a table's business."""
    from ..evaluation.results import read_results

    path = directory / "results.json"
    try:
        return read_results(path) if job.status == "finished" and path.exists() else None
    except UserError:
        return None


def _plot_tradeoff(
    jobs: Sequence[SweepJob], results: dict[str, dict[str, Any]], varied: Sequence[str], path: Path
) -> None:
    """The first planner option that was varied makes the lines, the others their points."""
    from ..evaluation.plots import TradeoffPoint, plot_tradeoff

    first, *rest = sorted(varied, key=lambda name: not name.startswith("planner"))
    points = []
    for job in jobs:
        summary = results[job.name]["summary"]
        series = f"{first.removeprefix('planner.')}={job.values([first])[0]}"
        interval = (summary["return_mean"], *summary["return_ci95"])
        points.append(TradeoffPoint(series, ", ".join(job.values(rest)), summary["plan_latency_ms"]["p50"], interval))
    any_result = results[jobs[0].name]
    numbers = f" (numbers: {', '.join(name.removeprefix('planner.') for name in rest)})" if rest else ""
    plot_tradeoff(points, any_result["behavior"]["return_mean"], any_result["env_id"] + numbers, path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _show(groups: Sequence[Group], varied: Sequence[str], title: str) -> None:
    """Print the jobs as a table, one section for each setting, and why jobs failed below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("job", "status", *varied, "score", "mean ± 95 %"):
        table.add_column(name, overflow="fold", no_wrap=name in ("job", "status"))
    for group in groups:
        interval = _number(group.mean)
        if group.half_width is not None:
            interval += f" ± {_number(group.half_width)} ({group.seeds} seeds)"
        for job in group.jobs:
            table.add_row(job.name, job.status, *job.values(varied), _number(job.record.score), interval)
            interval = ""
        table.add_section()
    console = Console()
    console.print(table)
    for job in (job for group in groups for job in group.jobs if job.record.reason):
        console.print(f"job {job.name} {job.status}: {job.record.reason}", markup=False, highlight=False)
