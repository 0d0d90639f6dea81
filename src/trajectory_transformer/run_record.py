"""``status.json``: what became of a run, so that a sweep can be summed up and a finished job be skipped."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import UserError

FILE = "status.json"


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
        record = asdict(self)
        if self.score is not None and not math.isfinite(self.score):
            record["score"] = None
        temporary = directory / f".{FILE}.{os.getpid()}"
        temporary.write_text(json.dumps(record, indent=1))
        temporary.replace(directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> "RunRecord | None":
        """The directory's record, or None where there is none that can be read."""
        try:
            return cls(**json.loads((directory / FILE).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def is_first_process() -> bool:
    """This process is the one that writes files: rank 0, also where SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return os.environ.get("SLURM_PROCID", "0") == "0" and os.environ.get("LOCAL_RANK", "0") == "0"


def claim(directory: Path, config: str, go_on: bool) -> str:
    """Decide what to do in a run directory: "start", "continue" from its last checkpoint, or "skip" a finished run.

    Args:
        directory: of the run; may not exist yet.
        config: the run's resolved options as YAML.
        go_on: the same run may be continued here: a job of a repeated sweep, or a requeued SLURM job.

    Raises:
        UserError: the directory belongs to another run.
    """
    existing = directory / "config.yaml"
    if not existing.exists():
        return "start"
    if not go_on:
        raise UserError(
            f"{directory} already holds a run; resume={directory} goes on with it, or choose another folder"
        )
    if existing.read_text() != config:
        raise UserError(f"{directory} holds a run with other options (see its config.yaml); choose another folder")
    record = RunRecord.read(directory)
    if record is not None and record.status == "finished":
        return "skip"
    return "continue" if (directory / "checkpoints" / "last.ckpt").exists() else "start"
