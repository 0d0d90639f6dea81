"""Report of a comparison: tables and notes, and their output as text, Markdown, LaTeX and CSV."""

import csv
import io
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
THRESHOLDS = 101  # number of thresholds of a profile


@dataclass(frozen=True)
class Table:
    """A table; a column's cells are of one kind, or None."""

    name: str  # name of its file
    title: str
    columns: list[str]
    rows: list[list[Cell]]
    origin: str  # commits of the runs, and whether they are comparable
    printed: bool = True  # False: written to files only

    @property
    def heading(self) -> str:
        return f"{self.title} ({self.origin})"

    def texts(self) -> list[list[str]]:
        """Return the columns and rows as formatted texts."""
        return [self.columns, *([_text(cell) for cell in row] for row in self.rows)]

    def plain(self) -> tuple[list[str], list[list[str | int | float | None]]]:
        """Return machine-readable columns and rows; an estimate has three columns, and the origin comes last."""
        wide = [any(isinstance(cell, Estimate) for cell in column) for column in zip(*self.rows, strict=True)]
        names = [
            name + end
            for name, three in zip(self.columns, wide, strict=True)
            for end in (("", " low", " high") if three else ("",))
        ]
        rows = (
            [part for cell, three in zip(row, wide, strict=True) for part in _parts(cell, three)] for row in self.rows
        )
        return [*names, "origin"], [[*row, self.origin] for row in rows]


@dataclass(frozen=True)
class Report:
    """A comparison, with estimates by method in the order given."""

    tables: list[Table]
    notes: list[str]
    aggregates: dict[str, list[Estimate]]  # one for each of AGGREGATES
    thresholds: list[float]
    profiles: dict[str, list[Estimate]]  # one for each threshold
    budgets: dict[str, list[float]]  # expected best of 1, 2, … policies

    @property
    def printed(self) -> list[Table]:
        return [table for table in self.tables if table.printed]


def compare(
    methods: Mapping[str, Sequence[Run]], scale: str, differences: Sequence[str] = (), remarks: Sequence[str] = ()
) -> Report:
    """Return the report on methods that have a task in common; ``scale`` explains the scores in words."""
    of_tasks = {method: grouped(runs, "task") for method, runs in methods.items()}
    all_tasks = list(dict.fromkeys(task for tasks in of_tasks.values() for task in tasks))
    tasks = [task for task in all_tasks if all(task in own for own in of_tasks.values())]
    scores = {
        method: [np.array([run.score for run in own[task]]) for task in tasks] for method, own in of_tasks.items()
    }
    values = np.concatenate([task for own in scores.values() for task in own])
    thresholds = np.linspace(min(0.0, values.min()), values.max(), THRESHOLDS).tolist()
    profile = partial(statistics.profile, thresholds=thresholds)
    enough = {method: sum(map(len, own)) >= FEW_RUNS for method, own in scores.items()}
    aggregates = {
        m: _reported(statistics.estimates(statistics.aggregates, own), enough[m]) for m, own in scores.items()
    }
    profiles = {m: _reported(statistics.estimates(profile, own), enough[m]) for m, own in scores.items()}
    wins: dict[tuple[str, str], Estimate] = {}
    for a, b in itertools.combinations(scores, 2):
        won = statistics.estimates(statistics.improvement, scores[a], scores[b])
        wins[a, b] = _reported(won, _conclusive(scores[a], scores[b]))[0]
    same = _of_same_models({method: {task: own[task] for task in tasks} for method, own in of_tasks.items()})
    budgets = {method: statistics.budget(own) for method, own in scores.items()}
    origin, tables, over = _origin(methods), [], f"{len(tasks)} task{'s' * (len(tasks) != 1)}"
    if differences:
        origin += "; NOT COMPARABLE, see the notes"

    def add(name: str, title: str, columns: list[str], rows: list[list[Cell]], printed: bool = True) -> None:
        if rows:
            tables.append(Table(name, title, columns, rows, origin, printed))

    by_task = [(task, own[task]) for task in all_tasks for own in of_tasks.values() if task in own]
    title = "By task: mean over runs and its 95 % interval by Student's t"
    columns = ["task", "method", "runs", "seeds", "episodes", "return_mean", "normalized_score", "commit"]
    add("tasks", title, columns, [_task_row(task, runs) for task, runs in by_task])
    title = f"Scores, with 95 % intervals: of each task by Student's t, over {over} by the bootstrap"
    if len(of_tasks) > 1 and len(all_tasks) > 1:
        add("scores", title, ["task", "data", *of_tasks], _score_rows(all_tasks, of_tasks, aggregates))
    known = any(one.low is not None for own in aggregates.values() for one in own)
    what = "scores and 95 % stratified bootstrap intervals" if known else "scores, of too few runs for intervals"
    title = f"Over {over}: {what}"
    add("aggregates", title, ["method", *AGGREGATES], [[method, *own] for method, own in aggregates.items()])
    title = f"Probability that a run of A is above one of B, over {over}: 95 % bootstrap intervals"
    add("improvement", title, ["A", "B", "probability of improvement"], [[*pair, won] for pair, won in wins.items()])
    title = "On the same trained models: mean difference A - B of their scores, with its 95 % interval by Student's t"
    paired = [[*pair, len(found), sum(map(len, found)), statistics.paired(found)] for pair, found in same.items()]
    add("paired", title, ["A", "B", "tasks", "models", "difference"], [[*row] for row in paired])
    rows = itertools.zip_longest(*budgets.values())
    title = f"Expected best score of n policies tried in each of {over}"
    add("budget", title, ["n", *budgets], [[n, *row] for n, row in enumerate(rows, 1)])
    rows = zip(thresholds, *profiles.values(), strict=True)
    title = f"Performance profiles: share of runs above a score, over {over}"
    add("profiles", title, ["normalized_score", *profiles], [list(row) for row in rows], False)
    columns = ["method", "task", "seed", "episodes", "return_mean", "normalized_score", "commit", "folder"]
    add("runs", "Runs", columns, [_run_row(run) for runs in methods.values() for run in runs], False)
    notes = [f"NOT COMPARABLE, compared because of --anyway: {one}" for one in differences]
    notes += [f"scores are normalized, returns on a scale of 0 to 100 %: {scale}", *remarks]
    if len(tasks) < len(all_tasks):
        notes.append(f"aggregates are over the {len(tasks)} of {len(all_tasks)} tasks that all methods have")
    notes += [*_conclusions(scores, wins, {pair: statistics.paired(found) for pair, found in same.items()})]
    return Report(tables, notes, aggregates, thresholds, profiles, budgets)


def _of_same_models(
    methods: Mapping[str, Mapping[str, Sequence[Run]]],
) -> dict[tuple[str, str], list[np.ndarray]]:
    """Return, for pairs of methods, the differences of their scores on the trained models that both evaluated, by task.

    Tasks without such a model, and pairs without such a task, are left out.
    """
    scores = {
        method: {
            task: {weights: np.mean([run.score for run in of]) for weights, of in grouped(runs, "weights").items()}
            for task, runs in tasks.items()
        }
        for method, tasks in methods.items()
    }
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for a, b in itertools.combinations(scores, 2):
        for task, own in scores[a].items():
            shared = [weights for weights in own if weights is not None and weights in scores[b][task]]
            if shared:
                differences = np.array([own[weights] - scores[b][task][weights] for weights in shared])
                found.setdefault((a, b), []).append(differences)
    return found


def _reported(found: list[Estimate], enough: bool) -> list[Estimate]:
    """Return estimates, with bootstrap intervals only if there are ``enough`` runs (that of two is their range)."""
    return found if enough else [Estimate(one.value) for one in found]


def _conclusive(scores: statistics.Scores, others: statistics.Scores) -> bool:
    """Return True if there are enough runs that equal methods would hardly ever be completely separated."""
    return statistics.smallest_p(scores, others) <= 0.05


def _origin(methods: Mapping[str, Sequence[Run]]) -> str:
    commits = {method: _commits(runs) for method, runs in methods.items()}
    if len({run.commit for runs in methods.values() for run in runs}) == 1:
        return f"commit {next(iter(commits.values()))}"
    return "different commits: " + "; ".join(f"{method} {own}" for method, own in commits.items())


def _commits(runs: Sequence[Run]) -> str:
    return ", ".join(sorted({run.commit for run in runs}))


def _task_row(task: str, runs: Sequence[Run]) -> list[Cell]:
    seeds = {run.seed if run.seed is not None else run.folder for run in runs}
    episodes = sum(len(run.results["episodes"]) for run in runs)
    estimates = [_by_student([run.episode_return for run in runs]), _by_student([run.score for run in runs])]
    return [task, runs[0].method, len(runs), len(seeds), episodes, *estimates, _commits(runs)]


def _score_rows(
    tasks: Sequence[str], methods: Mapping[str, Mapping[str, Sequence[Run]]], aggregates: Mapping[str, list[Estimate]]
) -> list[list[Cell]]:
    """Return the rows of a table of tasks by methods, which ends with two of the aggregates."""
    rows: list[list[Cell]] = []
    for task in tasks:
        own = [tasks_of.get(task, ()) for tasks_of in methods.values()]
        cells = [_by_student([run.score for run in runs]) if runs else None for runs in own]
        rows.append([task, next(run.data_score for runs in own for run in runs), *cells])
    for name in ("interquartile mean", "mean"):
        place = AGGREGATES.index(name)
        rows.append([name, None, *(own[place] for own in aggregates.values())])
    return rows


def _by_student(values: Sequence[float]) -> Estimate:
    mean, half = confidence(values)
    assert mean is not None
    return Estimate(mean) if half is None else Estimate(mean, mean - half, mean + half)


def _run_row(run: Run) -> list[Cell]:
    numbers = len(run.results["episodes"]), run.episode_return, run.score
    return [run.method, run.task, run.seed, *numbers, run.commit, run.folder]


def _conclusions(
    scores: Mapping[str, statistics.Scores],
    wins: Mapping[tuple[str, str], Estimate],
    differences: Mapping[tuple[str, str], Estimate],
) -> Iterator[str]:
    """Yield notes on the conclusions that can, or cannot, be drawn about each pair."""
    fewest = {method: min(map(len, own)) for method, own in scores.items()}
    if single := [method for method, count in fewest.items() if count == 1]:
        yield f"{', '.join(single)}: some task has a single run, so there is no interval over runs"
    if small := [method for method, own in scores.items() if fewest[method] > 1 and sum(map(len, own)) < FEW_RUNS]:
        names = ", ".join(small)
        yield f"{names}: fewer than {FEW_RUNS} runs in all, so no bootstrap interval of the scores over all tasks"
    if few := [method for method, count in fewest.items() if 1 < count < FEW_RUNS]:
        yield f"{', '.join(few)}: fewer than {FEW_RUNS} runs of some task, so intervals are rough, and often too narrow"
    if len(next(iter(scores.values()))) == 1:
        yield "a single task shows nothing about others: interquartile mean, median and mean are over its runs only"
    for (one, other), won in wins.items():
        if not _conclusive(scores[one], scores[other]):
            chance = statistics.smallest_p(scores[one], scores[other])
            verdict = (
                "one run of each cannot show a difference: train more seeds"
                if chance == 1.0
                else "too few runs to conclude: if the methods were equal, all runs of one would be above all runs of "
                f"the other in every task, by chance, with probability {chance:.2g}"
            )
        elif won.low is None or won.high is None:
            verdict = "no conclusion without an interval"
        elif won.low > 0.5 or won.high < 0.5:
            verdict = f"{one if won.low > 0.5 else other} improves on {other if won.low > 0.5 else one}"
        else:
            verdict = "the interval contains 0.5: no difference is shown"
        yield f"{one} against {other}: probability of improvement {_text(won)}: {verdict}"
        if (difference := differences.get((one, other))) is not None:
            yield f"{one} against {other} on the same trained models: {_on_same_models(one, other, difference)}"
    if len(wins) > 1:
        yield f"one in twenty of the intervals of {len(wins)} pairs is expected to miss the true value"
    yield "overlapping intervals show no difference, and the best of several runs is not a method's result"


def _on_same_models(one: str, other: str, difference: Estimate) -> str:
    told = f"a difference of {_text(difference)} in score"
    if difference.low is None or difference.high is None:
        return f"{told}, and no conclusion without an interval, which takes two models of each task"
    if difference.low <= 0.0 <= difference.high:
        return f"{told}: the interval contains 0: no difference is shown"
    return f"{told}: {one if difference.low > 0.0 else other} improves on {other if difference.low > 0.0 else one}"


def _parts(cell: Cell, three: bool) -> list[str | int | float | None]:
    if isinstance(cell, Estimate):
        return [cell.value, cell.low, cell.high]
    return [cell, None, None] if three else [cell]


def _text(cell: Cell) -> str:
    if isinstance(cell, Estimate):
        ends = "" if cell.low is None else f" [{_text(cell.low)}, {_text(cell.high)}]"
        return _text(cell.value) + ends
    if isinstance(cell, float):
        return f"{cell:.0f}" if abs(cell) >= 1000 else f"{cell:.2f}" if abs(cell) <= 1 else f"{cell:.1f}"
    return "" if cell is None else str(cell)


def as_text(report: Report) -> str:
    """Format the report for a terminal: aligned columns, notes at the end."""
    blocks = []
    for table in report.printed:
        cells = table.texts()
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
        ]
        blocks.append("\n".join([table.heading, *lines]))
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report.notes)]) + "\n"


def as_markdown(report: Report) -> str:
    """Format the report as Markdown."""
    blocks = [f"**{table.heading}**\n\n{markdown_table(table)}" for table in report.printed]
    return "\n\n".join([*blocks, "\n".join(f"- {note}" for note in report.notes)]) + "\n"


def markdown_table(table: Table) -> str:
    """Format a table as Markdown, without its heading."""
    header, *rows = ([cell.replace("|", "\\|") for cell in row] for row in table.texts())
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def as_latex(report: Report) -> str:
    """Format the report as LaTeX: a booktabs ``table`` each, notes as comments."""
    escapes = {ord(sign): f"\\{sign}" for sign in "&%$#_{}"}
    escapes |= {ord("\\"): r"\textbackslash{}", ord("~"): r"\textasciitilde{}", ord("^"): r"\textasciicircum{}"}
    blocks = ["% \\usepackage{booktabs}"]
    for table in report.printed:
        header, *rows = (" & ".join(cell.translate(escapes) for cell in row) + r" \\" for row in table.texts())
        lines = [r"\begin{table}", r"\centering", f"\\caption{{{table.heading.translate(escapes)}}}"]
        lines += [f"\\begin{{tabular}}{{{'l' * len(table.columns)}}}", r"\toprule", header, r"\midrule", *rows]
        blocks.append("\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]))
    return "\n\n".join([*blocks, "\n".join(f"% {note}" for note in report.notes)]) + "\n"


def write(report: Report, folder: Path) -> None:
    """Write ``compare.txt``, ``.md`` and ``.tex``, and a CSV of each table; raises UserError if that fails."""
    for suffix, text in (("txt", as_text), ("md", as_markdown), ("tex", as_latex)):
        write_output("comparison", folder / f"compare.{suffix}", text(report))
    for table in report.tables:
        written, (columns, rows) = io.StringIO(), table.plain()
        csv.writer(written, lineterminator="\n").writerows([columns, *rows])
        write_output("comparison", folder / f"{table.name}.csv", written.getvalue())
