"""``index.html`` of a run's or sweep's folder: results, plots, videos and provenance on one self-contained page."""

import csv
import io
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..errors import UserError
from ..files import write_output
from .commands import as_called

PAGE = "index.html"
SWEEP = "sweep.csv"  # table of a sweep or search, in its folder
FILES = (
    "config.yaml",
    "results.json",
    "figures.csv",
    "metrics.csv",
    SWEEP,
    "comparison/compare.txt",
    "checkpoints/best.ckpt",
)
_MOST_ROWS = 500


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell, with an optional link."""

    text: str
    link: str | None = None  # relative, quoted


@dataclass(frozen=True)
class PageTable:
    """A table; without a header, each row is a name and a value."""

    title: str
    rows: Sequence[Sequence[Cell]]
    header: Sequence[str] = ()
    folded: bool = False


@dataclass(frozen=True)
class Page:
    """The contents of a page; the template escapes them."""

    title: str
    lead: str = ""
    status: str = ""
    reason: str = ""
    tables: list[PageTable] = field(default_factory=list)
    films: list[Cell] = field(default_factory=list)
    pictures: list[Cell] = field(default_factory=list)
    command: str = ""
    commit: str | None = None
    versions: str = ""
    config: str = ""
    files: list[Cell] = field(default_factory=list)
    wide: bool = False  # wide layout, for tables of many columns

    def write(self, directory: Path) -> None:
        """Write the page in ``directory``; raises UserError if it cannot be written."""
        import jinja2  # imported here so that an option is refused sooner

        environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.tests["number_like"] = _is_number
        template = environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
        write_output("page", directory / PAGE, template.render(page=self))


def write_run_page(directory: Path, status: str, score: float | None, reason: str) -> None:
    """Write the page of a run from its folder's files; UserError if one is invalid, or the page cannot be written."""
    config = _text(directory / "config.yaml")
    tables, lead, command, commit, versions = [], "", as_called(sys.argv), None, ""
    if (directory / "results.json").exists():
        from ..evaluation.evaluate import agent_title, summary_rows  # here, as a refused run does not need it
        from ..evaluation.results import read_results

        results = read_results(directory / "results.json")
        lead = f"{results['env_id']} · trained on {results['dataset']} · {agent_title(results)}"
        command, commit = results["command"], results["commit"]
        versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        tables = [PageTable("Results", _rows(summary_rows(results))), _episodes(results["episodes"])]
    else:
        from ..evaluation.results import current_commit

        commit = current_commit()
        figures = _read_csv(directory / "figures.csv")
        if figures:
            names = ("method", "name", "value", "low", "high", "count")
            rows = [[row.get(name) or "" for name in names] for row in figures[:_MOST_ROWS]]
            tables.append(PageTable("Measurements", _rows(rows), names))
        elif score is not None:
            tables.append(PageTable("Results", _rows([("score", f"{score:.6g}")])))
    if training := _training(directory / "metrics.csv"):
        tables.insert(1, PageTable("Training", _rows(training)))
    Page(
        title=directory.absolute().name,
        lead=lead,
        status=status,
        reason=reason,
        tables=tables,
        films=_below(directory, "videos/*.mp4"),
        pictures=_below(directory, "plots/*.png"),
        command=command,
        commit=commit,
        versions=versions,
        config=config,
        files=[Cell(name, quote(name)) for name in FILES if (directory / name).exists()],
    ).write(directory)


def write_sweep_page(directory: Path) -> None:
    """Write the page of a sweep: its ``sweep.csv`` with links to its jobs' pages, and the comparison of a suite.

    Raises:
        UserError: the table cannot be read, or the page cannot be written.
    """
    from ..evaluation.results import current_commit

    header, *rows = csv.reader(io.StringIO(_text(directory / SWEEP)))
    cells = [[Cell(row[0], _job_page(directory, row[0])), *map(Cell, row[1:])] for row in rows]
    finished = sum(row[1] == "finished" for row in rows)
    Page(
        title=directory.absolute().name,
        lead=f"{len(rows)} jobs, {finished} of them finished",
        tables=[PageTable("Jobs", cells, header)],
        pictures=[*_below(directory, "*.png"), *_below(directory, "comparison/*.png")],
        command=as_called(sys.argv),
        commit=current_commit(),
        files=[Cell(name, quote(name)) for name in FILES if (directory / name).exists()],
        wide=True,
    ).write(directory)


def _job_page(directory: Path, job: str) -> str | None:
    return quote(f"{job}/{PAGE}") if job != "." and (directory / job / PAGE).exists() else None


def _rows(rows: Sequence[Sequence[str]]) -> list[list[Cell]]:
    return [[Cell(text.strip()) for text in row] for row in rows]


def _episodes(episodes: Sequence[dict[str, Any]]) -> PageTable:
    columns = [name for name in episodes[0] if any(episode[name] is not None for episode in episodes)]
    shown = [[_word(episode[name]) for name in columns] for episode in episodes[:_MOST_ROWS]]
    return PageTable("Each episode", _rows(shown), [name.replace("_", " ") for name in columns], folded=True)


def _word(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _training(metrics: Path) -> list[tuple[str, str]]:
    """Return the number of updates and the lowest validation loss, as rows of a table."""
    rows = _read_csv(metrics)
    steps = [int(row["step"]) for row in rows if (row.get("step") or "").isdecimal()]
    losses = [float(row["val/loss"]) for row in rows if _is_number(row.get("val/loss") or "")]
    found = [("optimiser updates", str(max(steps)))] if steps else []
    return found + ([("lowest validation loss", f"{min(losses):.5g}")] if losses else [])


def _read_csv(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(_text(path))))


def _text(path: Path) -> str:
    """Return the text of a file; empty if the file is missing."""
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _below(directory: Path, pattern: str) -> list[Cell]:
    """Return the files that match ``pattern``, sorted by name with numbers in numerical order."""

    def order(path: Path) -> tuple[str, int]:
        number = path.stem.rpartition("_")[2]
        return (path.stem.removesuffix(number), int(number)) if number.isdecimal() else (path.stem, 0)

    found = sorted(directory.glob(pattern), key=order)
    return [Cell(path.stem.replace("_", " "), quote(path.relative_to(directory).as_posix())) for path in found]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
