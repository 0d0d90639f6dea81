"""Reading copies of runs' ``figures.csv``."""

import csv
import re
from dataclasses import dataclass
from pathlib import Path

from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import COLUMNS, Measurement, RunFacts

SEED = re.compile(r"_seed(\d+)$")


@dataclass(frozen=True)
class RunFile:
    """A ``figures.csv`` with figures of one run; ``figures`` by (method, name)."""

    path: str
    facts: RunFacts
    measurements: dict[tuple[str, str], Measurement]

    @property
    def label(self) -> str:
        """The file's name without its seed."""
        return SEED.sub("", Path(self.path).stem)


def read_run(root: Path, path: str) -> RunFile:
    """Read one file under ``root``.

    Raises:
        UserError: it is not a ``figures.csv`` of one run, a figure stands twice, or its name and its lines tell of
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
            raise UserError(f"{path}, line {number}: is of another run than line 2; a file holds one run")
        if (measurement.method, measurement.name) in measurements:
            raise UserError(f"{path}, line {number}: {measurement.name} of {measurement.method} stands there twice")
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
