"""A run's folder: ``status.json``, its record, so that a sweep can skip what is finished; and who may run there."""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..errors import UserError
from ..files import write_whole
from ..processes import is_first_process

STATUS = "status.json"
REFUSAL = "refused.json"  # of a run that was refused the folder of another; gone once the other goes on


@dataclass(frozen=True)
class RunRecord:
    """State of one run.

    Attributes:
        status: "running", "finished", "failed" or "interrupted".
        parameters: what the command line, or a search, set for this run.
        score: what a sweep maximises, or None while there is none.
        reason: of a failure; else empty.
    """

    status: str
    parameters: dict[str, str] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""

    def write(self, directory: Path, file: str = STATUS) -> None:
        """Replace the record in ``directory`` at once, never leaving half a file."""
        score = self.score if self.score is not None and math.isfinite(self.score) else None
        write_whole(directory / file, json.dumps({**asdict(self), "score": score}, indent=1))

    @classmethod
    def read(cls, directory: Path, file: str = STATUS) -> "RunRecord | None":
        """The record in ``directory``, or None where there is none that can be read."""
        try:
            return cls(**json.loads((directory / file).read_text()))
        except (OSError, ValueError, TypeError):
            return None


def why_taken(directory: Path, evaluation: bool) -> str | None:
    """The reason why no new run may begin in ``directory``, or None: an ``evaluation`` may replace one that failed."""
    existing = directory / "config.yaml"
    if not existing.exists():
        return None
    if not evaluation:
        return f"{directory} already holds a run; resume={directory} goes on with it, or choose another folder"
    record = RunRecord.read(directory)
    stopped = record is not None and record.status in ("failed", "interrupted")
    if stopped and existing.read_text().startswith("checkpoint:"):
        return None
    return f"{directory} already holds a run; choose another folder with hydra.run.dir=DIR"


def claim(directory: Path, config: str, go_on: bool, evaluation: bool = False) -> str:
    """Decide what to do in a run directory: "start", "continue" from its last checkpoint, or "skip" a finished run.

    Args:
        directory: of the run; may not exist yet.
        config: the run's resolved options as YAML.
        go_on: the same run may be continued here: a job of a repeated sweep, or a requeued SLURM job.
        evaluation: the run is one of ``evaluate.py``.

    Raises:
        UserError: the directory belongs to another run. Later ranks of a training run do not ask.
    """
    if evaluation or is_first_process():
        taken = why_taken(directory, evaluation)
        if taken is None:
            return "start"
        if not go_on:
            raise UserError(taken)
        if (directory / "config.yaml").read_text() != config:
            raise UserError(f"{directory} holds a run with other options (see its config.yaml); choose another folder")
        (directory / REFUSAL).unlink(missing_ok=True)
    record = RunRecord.read(directory)
    if record is not None and record.status == "finished":
        return "skip"
    return "continue" if (directory / "checkpoints" / "last.ckpt").exists() else "start"
