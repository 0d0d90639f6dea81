"""The table at the end of a sweep or search: all jobs, and the mean score over seeds."""

import csv
import io
import math
import os
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException
from omegaconf import DictConfig

from ..configuration import LoggerConfig, require
from ..errors import UserError
from ..files import is_in_use, write_output
from .jobs import REFUSAL, STATUS, RunRecord, parameters_of
from .page import SWEEP, write_sweep_page
from .schema import as_typed

HYDRA = ".hydra"  # subfolder of a job's folder that Hydra writes first


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep: its folder relative to the sweep's, or its number if it has none, and its record."""

    name: str
    record: RunRecord

    @property
    def status(self) -> str:
        return self.record.status

    def values(self, names: Sequence[str]) -> list[str]:
        """Return its parameters of these names; an empty text for each that was not set."""
        return [self.record.parameters.get(name, "") for name in names]


@dataclass(frozen=True)
class Group:
    """Jobs that differ only in their seed, with the mean and 95 % interval (half width) of the finished ones."""

    jobs: list[SweepJob]
    mean: float | None
    half_width: float | None

    @property
    def seeds(self) -> int:
        return sum(job.record.score is not None for job in self.jobs)


def confidence(scores: Sequence[float]) -> tuple[float | None, float | None]:
    """Return the mean and the half width of its 95 % interval by Student's t; None if there are too few scores."""
    if len(scores) < 2:
        return (scores[0] if scores else None), None
    from scipy.special import stdtrit  # imported here so that options are refused sooner

    quantile = float(stdtrit(len(scores) - 1, 0.975))
    return statistics.fmean(scores), quantile * statistics.stdev(scores) / math.sqrt(len(scores))


def read_jobs(directory: Path, planned: Sequence[Mapping[str, str]] = ()) -> list[SweepJob]:
    """Return the jobs of a sweep or search from their records in folders below ``directory``, at any depth.

    Jobs that failed without a record or were refused a folder are included. If the parameters of the ``planned`` jobs
    are given, jobs that left no folder are included too, and runs in nested folders that were not planned are not.
    """
    jobs = [
        SweepJob(path.relative_to(directory).as_posix(), record)
        for path in _folders(directory, itself=bool(planned))
        for record in _records(path, planned)
        if not planned or record.parameters in planned or path.parent == directory
    ]
    recorded = [job.record.parameters for job in jobs]
    for number, parameters in enumerate(planned):
        if parameters not in recorded:
            jobs.append(SweepJob(str(number), RunRecord("failed", dict(parameters), reason="it did not start")))

    def place(job: SweepJob) -> tuple[int, list[tuple[int, str]]]:
        order = planned.index(job.record.parameters) if job.record.parameters in planned else len(planned)
        return order, [(int(part or 0), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", job.name)]

    return sorted(jobs, key=place)


def _folders(directory: Path, itself: bool) -> Iterator[Path]:
    """Yield the folders of jobs, recognised by files that a job or Hydra has written."""
    for folder, inner, files in os.walk(directory):
        path = Path(folder)
        if {STATUS, REFUSAL} & {*files} or (HYDRA in inner and path != directory):
            if path == directory and not itself:  # a search, which has a record of its own
                continue
            inner[:] = inner if path == directory else []
            yield path


def _records(folder: Path, planned: Sequence[Mapping[str, str]]) -> Iterator[RunRecord]:
    """Yield the records in a job's folder: of a job that was refused it, and of its owner if that was planned too."""
    refused, own = RunRecord.read(folder, REFUSAL), RunRecord.read(folder)
    if refused is not None:
        yield refused
        if own is None or own.parameters not in planned or own.parameters == refused.parameters:
            return
    if own is None:
        own = RunRecord("failed", _overrides(folder), reason="it left no record")
    elif own.status == "running" and not is_in_use(folder):
        reason = "its process ended unexpectedly: it was killed, or ran out of memory"
        own = replace(own, status="failed", reason=reason)
    yield own


def _overrides(folder: Path) -> dict[str, str]:
    """Return a job's parameters as recorded by Hydra before the job began."""
    try:
        return parameters_of(yaml.safe_load((folder / HYDRA / "overrides.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return {}


def planned_jobs(config: DictConfig) -> list[dict[str, str]]:
    """Return the parameters of each job of a sweep by Hydra's basic sweeper; empty for another sweeper.

    Raises:
        UserError: there is no job, or one twice.
        hydra.errors.HydraException: it cannot make jobs of the options, or one chooses a file that does not exist.
    """
    if not config.hydra.sweeper._target_.endswith(BasicSweeper.__name__):
        return []
    given = [f"{name}={value}" for name, value in (config.hydra.sweeper.params or {}).items()]
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(loader)
    overrides = parser.parse_overrides([*given, *as_typed(config.hydra, "task")])
    jobs = [parameters_of(job) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]
    varied = " ".join(override.input_line or "" for override in overrides if override.is_sweep_override())
    require(len(jobs) > 0, f"{varied}: the sweep has no job; give values, as in seed=0,1,2")
    twice = next((job for number, job in enumerate(jobs) if job in jobs[:number]), {})
    same = " ".join(f"{name}={value}" for name, value in twice.items())
    require(not twice, f"the sweep has the job {same} twice, and would count it twice: give each value once")
    for name, value in dict.fromkeys(parameter for job in jobs for parameter in job.items()):
        choices = loader.get_group_options(name)  # none if it is not a group
        if choices and re.fullmatch(r"[\w-]+", value) and value not in (*choices, "null"):
            raise MissingConfigException(f"{name}={value}", f"{name}/{value}", choices)
    return jobs


def require_same_jobs(directory: Path, planned: Sequence[Mapping[str, str]]) -> None:
    """Raise UserError if a numbered folder of the sweep holds a run with other parameters than its planned job."""
    for number, parameters in enumerate(planned):
        folder = directory / str(number)
        if (record := RunRecord.read(folder)) is not None and (folder / "config.yaml").exists():
            held, own = (" ".join(f"{n}={v}" for n, v in given.items()) for given in (record.parameters, parameters))
            require(
                record.parameters == parameters,
                f"{directory} holds another sweep: its job {number} has {held or 'no options'}, and this one's "
                f"{own or 'none'}; to continue it repeat its options, or choose another folder with "
                "hydra.sweep.dir=DIR",
            )


def group_by_settings(jobs: Sequence[SweepJob]) -> list[Group]:
    """Group the jobs that differ only in their seed, in the order of their first job."""
    members: dict[tuple[tuple[str, str], ...], list[SweepJob]] = {}
    for job in jobs:
        settings = sorted((name, value) for name, value in job.record.parameters.items() if name != "seed")
        members.setdefault(tuple(settings), []).append(job)
    scores = [
        [job.record.score for job in same if job.status == "finished" and job.record.score is not None]
        for same in members.values()
    ]
    return [Group(same, *confidence(own)) for same, own in zip(members.values(), scores, strict=True)]


def report(
    directory: Path, planned: Sequence[Mapping[str, str]] = (), logger: LoggerConfig | None = None
) -> list[SweepJob]:
    """Print the table of :func:`read_jobs` and write it to ``directory`` as ``sweep.csv`` and a page; returns the jobs.

    If ``logger`` is W&B, the table is logged there too. If planner options were varied, ``tradeoff.png`` plots returns
    against the time per plan.
    """
    jobs = read_jobs(directory, planned)
    groups = group_by_settings(jobs)
    names = list(dict.fromkeys(name for job in jobs for name in job.record.parameters))
    varied = [name for name in names if len({job.record.parameters.get(name) for job in jobs}) > 1] or names
    results = {job.name: evaluation for job in jobs if (evaluation := _evaluation(directory / job.name, job))}
    scored = [job for job in jobs if job.record.score is not None]
    # Without episodes it is minus the validation loss, or a log-likelihood.
    score = "return_mean" if scored and all(job.name in results for job in scored) else "score"
    rows = [["job", "status", *varied, score, "mean over seeds", "95 % ±", "seeds", "ms per plan", "reason"]]
    for group in groups:
        # Repeated in each row, for filtering.
        numbers = [_number(group.mean), _number(group.half_width), str(group.seeds)]
        for job in group.jobs:
            acted = results.get(job.name)
            latency = "" if acted is None else _number(acted["summary"]["plan_latency_ms"]["p50"])
            own = _number(job.record.score)
            rows.append([job.name, job.status, *job.values(varied), own, *numbers, latency, job.record.reason])
    csv.writer(table := io.StringIO()).writerows(rows)
    write_output("the table of the sweep", directory / SWEEP, table.getvalue())
    _show(groups, varied, score, f"{len(jobs)} jobs in {directory}")
    if len(results) > 1 and any(name.startswith("planner") for name in varied):
        _plot_tradeoff([job for job in jobs if job.name in results], results, varied, directory / "tradeoff.png")
    write_sweep_page(directory)
    if logger is not None and logger.name == "wandb":
        from ..training.loggers import log_sweep  # imported here because it takes a second

        try:
            log_sweep(logger, directory, rows)
        except UserError as error:  # the jobs are already done
            print(f"the table was not logged: {error}")
    return jobs


def _evaluation(directory: Path, job: SweepJob) -> dict[str, Any] | None:
    """Return a finished job's ``results.json``; None if there is none, or if it is unreadable."""
    from ..evaluation.results import read_results

    path = directory / "results.json"
    try:
        return read_results(path) if job.status == "finished" and path.exists() else None
    except UserError:
        return None


def _plot_tradeoff(
    jobs: Sequence[SweepJob], results: dict[str, dict[str, Any]], varied: Sequence[str], path: Path
) -> None:
    """Plot returns against planning time: a line for each value of the first varied planner option."""
    from ..evaluation.plots import TradeoffPoint, plot_tradeoff
    from ..evaluation.results import return_interval

    first, *rest = sorted(varied, key=lambda name: not name.startswith("planner"))
    points = []
    for job in jobs:
        summary = results[job.name]["summary"]
        series = f"{first.removeprefix('planner.')}={job.values([first])[0]}"
        interval = (summary["return_mean"], *(return_interval(results[job.name]) or (math.nan, math.nan)))
        points.append(TradeoffPoint(series, ", ".join(job.values(rest)), summary["plan_latency_ms"]["p50"], interval))
    any_result = results[jobs[0].name]
    numbers = f" (numbers: {', '.join(name.removeprefix('planner.') for name in rest)})" if rest else ""
    plot_tradeoff(points, any_result["behavior"]["return_mean"], any_result["env_id"] + numbers, path)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _show(groups: Sequence[Group], options: Sequence[str], score: str, title: str) -> None:
    """Print the jobs as a table, a section for each setting, and the reasons of failures below it."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title)
    for name in ("job", "status", *options, score, "mean ± 95 %"):
        table.add_column(name, overflow="fold", no_wrap=name in ("job", "status"))
    for group in groups:
        interval = _number(group.mean)
        if group.half_width is not None:
            interval += f" ± {_number(group.half_width)} ({group.seeds} seeds)"
        for job in group.jobs:
            table.add_row(job.name, job.status, *job.values(options), _number(job.record.score), interval)
            interval = ""
        table.add_section()
    console = Console()
    console.print(table)
    for job in (job for group in groups for job in group.jobs if job.record.reason):
        console.print(f"job {job.name} {job.status}: {job.record.reason}", markup=False, highlight=False)
