"""Pages with marked tables."""

import glob
import re
from pathlib import Path

from trajectory_transformer.configuration import require
from trajectory_transformer.errors import UserError

from .runs import read_run
from .table import table

OPENING = re.compile(r"<!-- table: (results/\S+\.csv) \| (\w+(?:, \w+)*) -->")
CLOSING = "<!-- end of table -->"
EXAMPLE = "<!-- table: results/goal/*.csv | success_rate, return_mean -->"


def pages(root: Path) -> list[Path]:
    """README.md and the pages of docs/ that a repository has.

    Raises:
        UserError: there is no README.md.
    """
    if not (root / "README.md").is_file():
        raise UserError(f"there is no README.md in '{root}'; run this in the repository's folder")
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def filled(root: Path, page: Path) -> str:
    """The text of ``page`` with its tables made anew from the files under ``root``.

    Raises:
        UserError: a marker is malformed or without its other, or a table cannot be made; with the page and the line.
    """
    lines: list[str] = []
    opened = 0  # the line of the opening marker that waits for its closing one
    for number, line in enumerate(page.read_text().splitlines(), 1):
        try:
            if line == CLOSING:
                require(opened > 0, "no table begins before this end")
                opened = 0
            elif line.startswith("<!-- table"):
                require(not opened, f"the table of line {opened} has not ended")
                lines += [line, *_table_of(root, line)]
                opened = number
        except UserError as error:
            raise UserError(f"{page.relative_to(root)}, line {number}: {error}") from error
        if not opened:
            lines.append(line)
    if opened:
        raise UserError(f"{page.relative_to(root)}, line {opened}: the table does not end; put `{CLOSING}` below it")
    return "\n".join(lines) + "\n"


def _table_of(root: Path, marker: str) -> list[str]:
    match = OPENING.fullmatch(marker)
    if match is None:
        raise UserError(f"`{marker}` is not a marker such as `{EXAMPLE}`")
    paths = sorted(glob.glob(match[1], root_dir=root))
    if not paths:
        raise UserError(f"no file is named {match[1]}")
    return table([read_run(root, path) for path in paths], match[2].split(", "))
