"""``status.json``: what became of a run, so that a sweep can be summed up and a finished job be skipped."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..files import write_whole

FILE = "status.json"
REFUSAL = "refused.json"  # beside the record of a run whose folder another one was refused


@dataclass(frozen=True)
class RunRecord:
    """The state of one run.

    Attributes:
        status: "running", "finished", "failed" or "interrupted".
        parameters: what the command line, or a search, set for this run.
        score: what a sweep maximises, or None while there is none.
        reason: why it failed; else empty.
    """

    status: str
    parameters: dict[str, str] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""

    def write(self, directory: Path) -> None:
        """Replace the directory's record at once, never leaving half a file."""
        self._write(directory / FILE)

    def write_refusal(self, directory: Path) -> None:
        """Note that this run was refused the directory of another, whose record stays as it is."""
        self._write(directory / REFUSAL)

    def _write(self, file: Path) -> None:
        record = asdict(self)
        if self.score is not None and not math.isfinite(self.score):
            record["score"] = None
        write_whole(file, json.dumps(record, indent=1))

    @classmethod
    def read(cls, directory: Path) -> "RunRecord | None":
        """The directory's record, or None where there is none that can be read."""
        return cls._read(directory / FILE)

    @classmethod
    def read_refusal(cls, directory: Path) -> "RunRecord | None":
        """The run that was refused the directory last, or None once its own run went on there."""
        return cls._read(directory / REFUSAL)

    @classmethod
    def _read(cls, file: Path) -> "RunRecord | None":
        try:
            return cls(**json.loads(file.read_text()))
        except (OSError, ValueError, TypeError):
            return None
