"""``status.json``: what became of a run, so that a sweep can be summed up and a finished job be skipped."""

import contextlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .errors import UserError

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


def write_whole(file: Path, text: str) -> None:
    """Replace ``file`` at once: another process reads all of it, or what was there before.

    Raises:
        OSError: it cannot be written; nothing partial is left behind.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def is_first_process() -> bool:
    """This process is the one that writes files: rank 0, also where SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def why_taken(directory: Path, evaluation: bool) -> str | None:
    """Why no new run may begin in ``directory``, or None where one may.

    Args:
        directory: may not exist yet.
        evaluation: the new run is one of ``evaluate.py``, which may replace an evaluation that failed: that one has
            nothing to go on with.
    """
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
        UserError: the directory belongs to another run.
    """
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


def require_file(checkpoint: str) -> None:
    """Refuse a checkpoint that is not there, before torch is imported to read it.

    Raises:
        UserError: naming those nearby.
    """
    path = Path(checkpoint)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint '{path}' {what}{checkpoints_near(path)}")


def checkpoints_near(path: Path) -> str:
    """Other checkpoints near a missing one, as the end of a sentence."""
    folder = path if path.is_dir() else path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    nearby = {*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt"), *folder.glob("*/checkpoints/*.ckpt")}
    newest = sorted((file for file in nearby if file.is_file()), key=lambda file: file.stat().st_mtime, reverse=True)
    if not newest:
        return f"; there is no *.ckpt near '{folder}' either"
    return "; nearby there is " + ", ".join(f"'{file}'" for file in newest[:5])
