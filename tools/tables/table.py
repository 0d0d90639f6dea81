"""Runs as a table in Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import Measurement

from .runs import SEED, RunFile

BEHAVIOR = "behaviour"  # the method of figures of the data, which are the same whatever the run's seed
INTERVALS = "In brackets: 95 % intervals."
SEVERAL_SEEDS = (
    "Where a row has several seeds: the mean of their values, in square brackets the least and the greatest."
)


@dataclass(frozen=True)
class Row:
    """A method in the runs that differ in their seed alone, and its figures in each of those runs."""

    method: str
    runs: list[RunFile]

    def measurements(self, name: str) -> list[Measurement]:
        """One for each run; one in all if it is of the data, and equal; none if the method has no such figure.

        Raises:
            UserError: some of the runs have it and others do not.
        """
        found = [run.measurements.get((self.method, name)) for run in self.runs]
        measurements = [measurement for measurement in found if measurement is not None]
        if measurements and None in found:
            without = self.runs[found.index(None)].path
            raise UserError(f"{without} has no {name} of {self.method}, which the same run with another seed has")
        same = self.method == BEHAVIOR and len(set(measurements)) == 1
        return measurements[:1] if same else measurements

    def cells(self, names: Sequence[str]) -> list[str]:
        """One line of the table."""
        facts = self.runs[0].facts
        columns = [self.measurements(name) for name in names]
        counts = dict.fromkeys(_count(measurements) for measurements in columns if measurements)
        seeds = ", ".join(str(run.facts.seed) for run in self.runs)
        commits = dict.fromkeys((run.facts.commit or "none")[:7] for run in self.runs)
        values = [_value(measurements) for measurements in columns]
        label = f"{self.runs[0].label}, {self.method}"
        return [label, *values, " / ".join(counts), facts.dataset.replace(",", ", "), seeds, ", ".join(commits)]


def _value(measurements: Sequence[Measurement]) -> str:
    if not measurements:
        return "–"
    values = [measurement.value for measurement in measurements]
    if len(values) > 1:
        return f"{_number(fmean(values))} [{_number(min(values))}, {_number(max(values))}]"
    low, high = measurements[0].low, measurements[0].high
    interval = "" if low is None or high is None else f" ({_number(low)} to {_number(high)})"
    return _number(values[0]) + interval


def _number(value: float) -> str:
    """Three significant digits, or all digits before the point where there are more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _count(measurements: Sequence[Measurement]) -> str:
    counts = [measurement.count for measurement in measurements]
    if len(counts) > 1 and len(set(counts)) == 1:
        return f"{len(counts)} × {counts[0]}"
    return " + ".join(map(str, counts))


def table(runs: Sequence[RunFile], names: Sequence[str]) -> list[str]:
    """The lines between the markers: the table, what its brackets are, and the command of each file.

    Args:
        runs: in the order of the rows.
        names: of the figures, a column each. A method that has none of them gets no row.

    Raises:
        UserError: no run has one of the figures, or runs that share rows are of different data.
    """
    for name in names:
        if not any(name == known for run in runs for _, known in run.measurements):
            known = ", ".join(dict.fromkeys(known for run in runs for _, known in run.measurements))
            raise UserError(f"no file has a figure {name}; there are {known}")
    groups: dict[str, list[RunFile]] = {}
    for run in runs:
        groups.setdefault(SEED.sub("", str(Path(run.path).with_suffix(""))), []).append(run)
    rows = [row for group in groups.values() for row in _rows(group, names)]
    header = ["run", *(name.replace("_", " ") for name in names), "count", "data", "seed", "commit"]
    lines = [
        f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *(row.cells(names) for row in rows))
    ]
    measurements = [row.measurements(name) for row in rows for name in names]
    notes = [INTERVALS] if any(len(one) == 1 and one[0].low is not None for one in measurements) else []
    notes += [SEVERAL_SEEDS] if any(len(one) > 1 for one in measurements) else []
    commands = [f"- {Path(run.path).stem}: `{run.facts.command}`" for run in runs]
    return ["", *lines, "", *([" ".join(notes), ""] if notes else []), *commands, ""]


def _rows(group: list[RunFile], names: Sequence[str]) -> list[Row]:
    group = sorted(group, key=lambda run: run.facts.seed)
    for run in group[1:]:
        if (run.facts.dataset, run.facts.env_id) != (group[0].facts.dataset, group[0].facts.env_id):
            raise UserError(f"{run.path} and {group[0].path} are of different data and cannot share a row")
    methods = dict.fromkeys(method for run in group for method, _ in run.measurements)
    rows = [Row(method, group) for method in methods]
    return [row for row in rows if any(row.measurements(name) for name in names)]
