"""The logger that writes ``metrics.csv``, which every run has."""

import contextlib
import csv
import io
import itertools
import logging
import os
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from ..files import write_whole

log = logging.getLogger(__name__)


class MetricsFile(Logger):
    """Writes ``metrics.csv``: one row for each call, at once, so that a killed run loses at most one row.

    A resumed run drops the rows that it is about to repeat. A new metric adds a column. If rows cannot be written, for
    example because the disk is full, they are lost with one warning, and training continues.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._columns: list[str] = []  # empty until this process writes its first row
        self._warned = False

    @property
    @override
    def name(self) -> str:
        return "metrics"

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self._path.parent)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: ``config.yaml`` holds the options."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        row = {"step": str(step or 0), **{name: repr(float(value)) for name, value in metrics.items()}}
        try:
            if not self._columns:
                self._begin(step or 0, [name for name in metrics if name != "epoch"])
            if new := [name for name in row if name not in self._columns]:
                self._rewrite([*self._columns, *new], self.read())
            self._append(row)
        except OSError as error:
            if not self._warned:
                log.warning("%s cannot be written (%s): metrics are missing from it", self._path, error.strerror)
            self._warned = True

    def _begin(self, step: int, names: Sequence[str]) -> None:
        """Keep the rows of an earlier process before the first one of a later step, or of ``step`` with ``names``."""

        def is_kept(row: Mapping[str, str]) -> bool:
            if not row["step"].isdecimal() or int(row["step"]) > step:
                return False
            return int(row["step"]) < step or not any(row.get(name) for name in names)

        rows = list(itertools.takewhile(is_kept, self.read()))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._rewrite(list(rows[0]) if rows else ["step"], rows)

    def read(self) -> list[dict[str, str]]:
        """All complete rows, "step" and metrics as text; a row that a killed process left incomplete is dropped."""
        if not self._path.exists():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]

    def _rewrite(self, columns: list[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self._path, text.getvalue())
        self._columns = columns

    def _append(self, row: Mapping[str, str]) -> None:
        size = self._path.stat().st_size
        try:
            with self._path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns, restval="").writerow(row)
        except OSError:
            with contextlib.suppress(OSError):  # remove the incomplete row, so that the next one does not continue it
                os.truncate(self._path, size)
            raise
