"""Who may run in a run directory: a new run, the run that is there, or nobody."""

from pathlib import Path

from ..errors import UserError
from .run_record import REFUSAL, RunRecord


def why_taken(directory: Path, evaluation: bool) -> str | None:
    """The reason why no new run may begin in ``directory``, or None where one may.

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
