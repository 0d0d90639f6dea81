"""Tables and sentences of a comparison, and the files they are written to."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..app.sweep import confidence
from ..files import write_output
from . import statistics
from .runs import Run, grouped
from .statistics import AGGREGATES, Estimate

Cell: TypeAlias = str | int | float | Estimate | None
FEW_RUNS = 5
THRESHOLDS = 101  # of a profile


@dataclass(frozen=True)
class Table:
    """A table; a column's cells are of one kind, or None."""

    name: str  # of its file
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    printed: bool = True  # else in files alone

    def texts(self) -> list[list[str]]:
        """Header and rows for people."""
        return [self.columns, *([_text(cell) for cell in row] for row in self.rows)]

    def plain(self) -> tuple[list[str], list[list[str | int | float | None]]]:
        """Columns and rows for programs: an estimate takes three, its interval's ends after it."""
        wide = [any(isinstance(row[i], Estimate) for row in self.rows) for i in range(len(self.columns))]
        names = [
            name + end
            for name, three in zip(self.columns, wide, strict=True)
            for end in ("", " low", " high")[: 3 if three else 1]
        ]
        return names, [
            [part for cell, three in zip(row, wide, strict=True) for part in _parts(cell, three)] for row in self.rows
        ]


@dataclass(frozen=True)
class Report:
    """A comparison; estimates by method, in the order of the methods."""

    tables: list[Table]
    notes: list[str]
    aggregates: dict[str, list[Estimate]] = field(default_factory=dict)  # as AGGREGATES
    thresholds: list[float] = field(default_factory=list)
    profiles: dict[str, list[Estimate]] = field(default_factory=dict)  # as thresholds
    budgets: dict[str, list[float]] = field(default_factory=dict)  # expected best of 1, 2, … policies


def compare(
    methods: Mapping[str, Sequence[Run]], scale: str, differences: Sequence[str] = (), remarks: Sequence[str] = ()
) -> Report:
    """The report of methods that have a task in common, with ``scale`` saying what a score is."""
    of_tasks = {method: grouped(runs, "task") for method, runs in methods.items()}
    all_tasks = list(dict.fromkeys(task for tasks in of_tasks.values() for task in tasks))
    tasks = [task for task in all_tasks if all(task in own for own in of_tasks.values())]
    scores = {
        method: [np.array([run.score for run in own[task]]) for task in tasks] for method, own in of_tasks.items()
    }
    commits = {method: sorted({run.commit for run in runs}) for method, runs in methods.items()}
    distinct = sorted(set(itertools.chain(*commits.values())))
    of_methods = "; ".join(f"{method} {', '.join(own)}" for method, own in commits.items())
    origin = f"commit {distinct[0]}" if len(distinct) == 1 else f"different commits: {of_methods}"
    if differences:
        origin += "; NOT ALIKE, see the notes"
    aggregates = {method: statistics.estimates(statistics.aggregates, own) for method, own in scores.items()}
    values = np.concatenate([task for own in scores.values() for task in own])
    thresholds = np.linspace(min(0.0, values.min()), values.max(), THRESHOLDS).tolist()

    def profile(own: statistics.Scores) -> np.ndarray:
        return statistics.profile(own, thresholds)

    profiles = {method: statistics.estimates(profile, own) for method, own in scores.items()}
    pairs = list(itertools.combinations(scores, 2))
    wins = {(a, b): statistics.estimates(statistics.improvement, scores[a], scores[b])[0] for a, b in pairs}
    budgets = {
        method: [
            float(np.mean([statistics.expected_best(task, tried + 1) for task in own]))
            for tried in range(min(map(len, own)))
        ]
        for method, own in scores.items()
    }
    over = f"{len(tasks)} task" + "s" * (len(tasks) != 1)
    policies = range(1, max(map(len, budgets.values())) + 1)
    tables = [
        Table(
            "tasks",
            f"By task: mean over runs and its 95 % interval by Student's t ({origin})",
            ["task", "method", "runs", "seeds", "episodes", "return", "score", "commit"],
            [
                _task_row(task, method, of_tasks[method][task])
                for task in all_tasks
                for method in of_tasks
                if task in of_tasks[method]
            ],
        ),
        Table(
            "aggregates",
            f"Over {over}: scores and 95 % stratified bootstrap intervals ({origin})",
            ["method", *AGGREGATES],
            [[method, *own] for method, own in aggregates.items()],
        ),
        Table(
            "improvement",
            f"Probability that a run of A is above one of B, over {over}: 95 % bootstrap intervals ({origin})",
            ["A", "B", "probability of improvement"],
            [[*pair, won] for pair, won in wins.items()],
        ),
        Table(
            "budget",
            f"Expected best score of n policies tried in each of {over} ({origin})",
            ["n", *budgets],
            [[n, *(own[n - 1] if n <= len(own) else None for own in budgets.values())] for n in policies],
        ),
        Table(
            "profiles",
            f"Performance profiles: share of runs above a score, over {over} ({origin})",
            ["score", *profiles],
            [[tau, *row] for tau, *row in zip(thresholds, *profiles.values(), strict=True)],
            printed=False,
        ),
        Table(
            "runs",
            f"Runs ({origin})",
            ["method", "task", "seed", "episodes", "return", "score", "commit", "folder"],
            [_run_row(run) for runs in methods.values() for run in runs],
            printed=False,
        ),
    ]
    told = [f"NOT ALIKE, compared all the same: {one}" for one in differences]
    told += [f"a score is in percent of the way between two returns: {scale}", *remarks]
    if len(tasks) < len(all_tasks):
        told.append(f"numbers over tasks are of the {len(tasks)} of {len(all_tasks)} that all methods have")
    told += [*_conclusions(scores, wins)]
    return Report([table for table in tables if table.rows], told, aggregates, thresholds, profiles, budgets)


def _task_row(task: str, method: str, runs: Sequence[Run]) -> list[Cell]:
    seeds = {run.seed if run.seed is not None else run.folder for run in runs}
    episodes = sum(len(run.results["episodes"]) for run in runs)
    returns = [run.results["summary"]["return_mean"] for run in runs]
    estimates = [_by_student(values) for values in (returns, [run.score for run in runs])]
    return [task, method, len(runs), len(seeds), episodes, *estimates, ", ".join(sorted({run.commit for run in runs}))]


def _by_student(values: Sequence[float]) -> Estimate:
    mean, half = confidence(values)
    assert mean is not None
    return Estimate(mean) if half is None else Estimate(mean, mean - half, mean + half)


def _run_row(run: Run) -> list[Cell]:
    facts = len(run.results["episodes"]), run.results["summary"]["return_mean"], run.score
    return [run.method, run.task, run.seed, *facts, run.commit, run.folder]


def _conclusions(scores: Mapping[str, statistics.Scores], wins: Mapping[tuple[str, str], Estimate]) -> Iterator[str]:
    """What can be concluded of each pair, and what cannot."""
    fewest = {method: min(map(len, own)) for method, own in scores.items()}
    if single := [method for method, count in fewest.items() if count == 1]:
        yield f"{', '.join(single)}: a task has a single run, so there is no interval over runs"
    if few := [method for method, count in fewest.items() if 1 < count < FEW_RUNS]:
        yield f"{', '.join(few)}: fewer than {FEW_RUNS} runs of a task; such intervals are rough, often too narrow"
    if len(next(iter(scores.values()))) == 1:
        yield "one task says nothing of others: interquartile mean, median and mean are over its runs alone"
    for (one, other), won in wins.items():
        chance = statistics.smallest_p(scores[one], scores[other])
        if chance > 0.05:
            verdict = f"too few runs to conclude: alike, they would come out wholly apart with probability {chance:.2g}"
        elif won.low is None or won.high is None:
            verdict = "no conclusion without an interval"
        elif won.low > 0.5 or won.high < 0.5:
            verdict = f"{one if won.low > 0.5 else other} improves on {other if won.low > 0.5 else one}"
        else:
            verdict = "the interval has 0.5 within: no difference is shown"
        yield f"{one} against {other}: probability of improvement {_text(won)}: {verdict}"
    if len(wins) > 1:
        yield f"one in twenty of the intervals of {len(wins)} pairs can be expected to miss"
    yield "intervals that overlap are not a difference, and the best of several runs is not a method's result"


def _parts(cell: Cell, three: bool) -> list[str | int | float | None]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return [cell, None, None] if three else [cell]


def _text(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        ends = "" if cell.low is None else f" [{_text(cell.low)}, {_text(cell.high)}]"
        return _text(cell.value) + ends
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.2f}" if abs(cell) < 1 else f"{cell:.1f}"
    return "" if cell is None else str(cell)


def as_text(report: Report) -> str:
    """For a screen: columns side by side, notes at the end."""
    blocks = []
    for table in (table for table in report.tables if table.printed):
        cells = table.texts()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        blocks.append("\n".join([table.title, *lines]))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report.notes)]) + "\n"


def as_markdown(report: Report) -> str:
    """For a page."""
    blocks = []
    for table in (table for table in report.tables if table.printed):
        header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table.texts())
        lines = [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]
        blocks.append("\n".join([f"**{table.title}**", "", *lines]))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report.notes)]) + "\n"


def as_latex(report: Report) -> str:
    """For a paper: a ``table`` each, with booktabs; notes are comments."""
    escapes = {ord(sign): f"\\{sign}" for sign in "&%$#_{}"}
    escapes |= {ord("\\"): r"\textbackslash{}", ord("~"): r"\textasciitilde{}", ord("^"): r"\textasciicircum{}"}
    blocks = ["% \\usepackage{booktabs}"]
    for table in (table for table in report.tables if table.printed):
        header, *rows = (" & ".join(cell.translate(escapes) for cell in row) + r" \\" for row in table.texts())
        lines = [r"\begin{table}", r"\centering", f"\\caption{{{table.title.translate(escapes)}}}"]
        lines += [f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", header, r"\midrule", *rows]
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join([*blocks, "\n".join(f"% {note}" for note in report.notes)]) + "\n"


def write(report: Report, folder: Path) -> None:
    """``compare.txt``, ``.md`` and ``.tex``, and a CSV of each table; UserError if they cannot be written."""
    for suffix, text in (("txt", as_text), ("md", as_markdown), ("tex", as_latex)):
        write_output("comparison", folder / f"compare.{suffix}", text(report))
    for table in report.tables:
        written, (columns, rows) = io.StringIO(), table.plain()
        csv.writer(written, lineterminator="\n").writerows([columns, *rows])
        write_output("comparison", folder / f"{table.name}.csv", written.getvalue())
