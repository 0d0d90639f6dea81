"""Fill the tables of README.md, docs/ and results/ with results: ``python -m tools.tables [--check]``.

A table lies between two marker lines, the first of which names files and figures:

    <!-- table: results/goal/*.csv | success_rate, return_mean -->
    <!-- end of table -->

or, for tables of ``trajectory_transformer.compare``, a folder with one of ``results.json`` copies for each method:

    <!-- comparison: results/suite_local/runs | scores, aggregates -->
    <!-- end of table -->

The files are copies of runs' ``figures.csv``. Each method of a file has a row; files whose names differ only in
``_seed<N>`` share rows. Figures of the data themselves have one row per data set, named after it. Below the table a
folded list has the data, seed, commit and command of each file. Run it in the folder of README.md; ``--check`` changes
nothing and exits with 1 if a page is stale.
"""

import argparse
import csv
import glob
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from trajectory_transformer.compare.__main__ import report_on
from trajectory_transformer.compare.report import markdown_table
from trajectory_transformer.configuration import require
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import COLUMNS, Measurement, RunFacts
from trajectory_transformer.files import write_whole

SEED = re.compile(r"_seed(\d+)$")
BEHAVIOR = "behaviour"  # method of figures of the data, which do not depend on the run's seed
INTERVALS = "In brackets: 95 % intervals."
SEVERAL_SEEDS = (
    "A row of several seeds has the mean of their values, and in square brackets the least and the greatest."
)
SUMMARY = "Data, seed, commit and command of each run"
OPENING = re.compile(r"<!-- table: (results/\S+\.csv) \| (\w+(?:, \w+)*) -->")
CLOSING = "<!-- end of table -->"
EXAMPLE = "<!-- table: results/goal/*.csv | success_rate, return_mean -->"
COMPARING = re.compile(r"<!-- comparison: (results/\S+) \| (\w+(?:, \w+)*) -->")


@dataclass(frozen=True)
class RunFile:
    """The ``figures.csv`` of one run; ``measurements`` by (method, name)."""

    path: str
    facts: RunFacts
    measurements: dict[tuple[str, str], Measurement]

    @property
    def label(self) -> str:
        """Name of the file without its seed."""
        return SEED.sub("", Path(self.path).stem)


def read_run(root: Path, path: str) -> RunFile:
    """Read one file under ``root``.

    Raises:
        UserError: it is not a ``figures.csv`` of one run, has a figure twice, or its name and its lines state
            different seeds.
    """
    try:
        with (root / path).open(newline="") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise UserError(f"{path}: line 1 must be {','.join(COLUMNS)}, as in a run's figures.csv")
            lines = [(reader.line_num, _parsed(path, reader.line_num, row)) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"{path} has no figures")
    facts = lines[0][1][0]
    named = SEED.search(Path(path).stem)
    if named and int(named[1]) != facts.seed:
        raise UserError(f"{path}: its name says seed {named[1]}, line 2 seed {facts.seed}")
    measurements: dict[tuple[str, str], Measurement] = {}
    for number, (run, measurement) in lines:
        if run != facts:
            raise UserError(f"{path}, line {number}: belongs to another run than line 2; a file must hold one run")
        if (measurement.method, measurement.name) in measurements:
            raise UserError(f"{path}, line {number}: {measurement.name} of {measurement.method} is repeated")
        measurements[measurement.method, measurement.name] = measurement
    return RunFile(path, facts, measurements)


def _parsed(path: str, number: int, row: dict[str, str]) -> tuple[RunFacts, Measurement]:
    try:
        low, high = (float(row[name]) if row[name] else None for name in ("low", "high"))
        measurement = Measurement(row["method"], row["name"], float(row["value"]), low, high, int(row["count"]))
        return RunFacts(
            row["dataset"], row["env_id"], int(row["seed"]), row["commit"] or None, row["command"]
        ), measurement
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}, line {number}: is not a figure ({error})") from error


@dataclass(frozen=True)
class Row:
    """A method in runs that differ only in their seed, with its figures in each of them."""

    method: str
    runs: list[RunFile]

    def measurements(self, name: str) -> list[Measurement]:
        """Return a measurement per run, a single one for equal figures of the data, or none if there is no such figure.

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

    def cells(self, names: Sequence[str]) -> tuple[str, ...]:
        """Return the cells of a line of the table."""
        columns = [self.measurements(name) for name in names]
        counts = dict.fromkeys(_count(measurements) for measurements in columns if measurements)
        name = _dataset(self.runs[0]) if self.method == BEHAVIOR else self.runs[0].label
        return (name, self.method, *(_value(measurements) for measurements in columns), " / ".join(counts))


def _dataset(run: RunFile) -> str:
    return run.facts.dataset.replace(",", ", ")


def _run_line(run: RunFile) -> str:
    facts = run.facts
    commit = (facts.commit or "none")[:7]
    return f"- {Path(run.path).stem} ({_dataset(run)}; seed {facts.seed}; commit {commit}): `{facts.command}`"


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
    """Format with three significant digits, or with all digits before the decimal point if there are more."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _count(measurements: Sequence[Measurement]) -> str:
    counts = [measurement.count for measurement in measurements]
    if len(counts) > 1 and len(set(counts)) == 1:
        return f"{len(counts)} × {counts[0]}"
    return " + ".join(map(str, counts))


def table(runs: Sequence[RunFile], names: Sequence[str]) -> list[str]:
    """Return the lines between the markers: the table, notes on its brackets, and a folded list of the files.

    Args:
        runs: runs in the order of the rows.
        names: names of the figures, a column each. A method without any of them gets no row.

    Raises:
        UserError: a figure is in no run, or runs that share rows have different data.
    """
    for name in names:
        if not any(name == known for run in runs for _, known in run.measurements):
            known = ", ".join(dict.fromkeys(known for run in runs for _, known in run.measurements))
            raise UserError(f"no file has a figure {name}; there are {known}")
    groups: dict[str, list[RunFile]] = {}
    for run in runs:
        groups.setdefault(SEED.sub("", str(Path(run.path).with_suffix(""))), []).append(run)
    rows = [row for group in groups.values() for row in _rows(group, names)]
    header = ("run", "method", *(name.replace("_", " ") for name in names), "count")
    # Runs on the same data repeat its figures; one row is enough.
    cells = list(dict.fromkeys(row.cells(names) for row in rows))
    # What all rows have in common needs no column.
    common = [len(cells) > 1 and len(set(column)) == 1 for column in zip(*cells, strict=True)]
    kept = [0 < index < len(header) - 1 or not common[index] for index in range(len(header))]
    lines = [f"| {' | '.join(itertools.compress(line, kept))} |" for line in (header, ["---"] * len(header), *cells)]
    measurements = [row.measurements(name) for row in rows for name in names]
    notes = [] if kept[-1] else [f"Count of each row: {cells[0][-1]}."]
    notes += [INTERVALS] if any(len(one) == 1 and one[0].low is not None for one in measurements) else []
    notes += [SEVERAL_SEEDS] if any(len(one) > 1 for one in measurements) else []
    opening, closing = f'<details markdown="1"><summary>{SUMMARY}</summary>', "</details>"
    files = [opening, "", *map(_run_line, runs), "", closing]
    return ["", *lines, "", *([" ".join(notes), ""] if notes else []), *files, ""]


def _rows(group: list[RunFile], names: Sequence[str]) -> list[Row]:
    group = sorted(group, key=lambda run: run.facts.seed)
    for run in group[1:]:
        if (run.facts.dataset, run.facts.env_id) != (group[0].facts.dataset, group[0].facts.env_id):
            raise UserError(f"{run.path} and {group[0].path} have different data and cannot share a row")
    methods = dict.fromkeys(method for run in group for method, _ in run.measurements)
    rows = [Row(method, group) for method in methods]
    return [row for row in rows if any(row.measurements(name) for name in names)]


def pages(root: Path) -> list[Path]:
    """Return the repository's README.md, the pages in docs/, and README.md of each folder in results/.

    Raises:
        UserError: there is no README.md.
    """
    if not (root / "README.md").is_file():
        raise UserError(f"there is no README.md in '{root}'; run this in the repository's folder")
    return [root / "README.md", *sorted((root / "docs").glob("*.md")), *sorted((root / "results").glob("*/README.md"))]


def filled(root: Path, page: Path) -> str:
    """Return the text of ``page`` with its tables made from the files under ``root``.

    Raises:
        UserError: a marker is malformed or unpaired, or a table cannot be made; names the page and the line.
    """
    lines: list[str] = []
    opened = 0  # line of an opening marker without its closing one, or 0
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        try:
            if line == CLOSING:
                require(opened > 0, "no table begins before this end")
                opened = 0
            elif line.startswith(("<!-- table", "<!-- comparison")):
                require(not opened, f"the table of line {opened} has not ended")
                compares = COMPARING.fullmatch(line)
                lines += [line, *(_table_of(root, line) if compares is None else _comparison(root, *compares.groups()))]
                opened = number
        except UserError as error:
            raise UserError(f"{page.relative_to(root)}, line {number}: {error}") from error
        if not opened:
            lines.append(line)
    if opened:
        raise UserError(f"{page.relative_to(root)}, line {opened}: the table has no end; put `{CLOSING}` below it")
    return "\n".join(lines) + "\n"


def _table_of(root: Path, marker: str) -> list[str]:
    match = OPENING.fullmatch(marker)
    if match is None:
        raise UserError(f"`{marker}` is not a marker such as `{EXAMPLE}`")
    paths = sorted(glob.glob(match[1], root_dir=root))
    if not paths:
        raise UserError(f"no file matches {match[1]}")
    return table([read_run(root, path) for path in paths], match[2].split(", "))


def _comparison(root: Path, folder: str, names: str) -> list[str]:
    """Return the lines of the named tables of the comparison of a folder's subfolders, each a method."""
    methods = sorted(path for path in (root / folder).glob("*") if path.is_dir())
    require(len(methods) > 0, f"{folder} has no folder of a method")
    report = report_on([f"{path.name}={path}/*.json" for path in methods])
    tables = {table.name: table for table in report.tables}
    lines: list[str] = []
    for name in names.split(", "):
        require(name in tables, f"the comparison has no table {name}; there are {', '.join(tables)}")
        lines += ["", f"{tables[name].heading}:", "", *markdown_table(tables[name]).splitlines()]
    return [*lines, ""]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in the current folder; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    try:
        texts = {page: filled(root, page) for page in pages(root)}
        stale = [page for page, text in texts.items() if text != page.read_text()]
        for page in stale:
            if not options.check:
                write_whole(page, texts[page])
            print(f"{page.relative_to(root)}: {'stale' if options.check else 'written'}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
