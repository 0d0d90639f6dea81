"""Jobs: the directory, record and environment variables around one training or evaluation."""

import contextlib
import json
import math
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from ..configuration import EvaluateConfig, TrainConfig
from ..errors import UserError
from ..files import write_whole
from ..processes import is_first_process
from .run_folder import claim
from .run_record import RunRecord

if TYPE_CHECKING:
    from .experiment import RunContext

RANK_RUN = "TRAJECTORY_TRANSFORMER_RANK_RUN"  # tells the processes that Lightning starts which run is theirs
INTERRUPTED = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1))


@dataclass
class Job:
    """A run in its place.

    Attributes:
        directory: of the run.
        parameters: what the command line, or a search, set for it.
        sweep: name of the sweep that it belongs to, or None.
        claimed: the directory is this run's; until then one that holds a run may be another's.
    """

    directory: Path
    parameters: dict[str, str] = field(default_factory=dict)
    sweep: str | None = None
    claimed: bool = False

    @property
    def continues(self) -> bool:
        """A run that is found in the directory may be continued without being asked to."""
        return self.sweep is not None


def recorded(job: Job, run: Callable[[], float]) -> float:
    """Call ``run`` and keep what became of it in the job's directory.

    Returns:
        The score; NaN after a failure within a sweep, whose other jobs go on.

    Raises:
        SystemExit: 1 after a failure of a single run; the exit code of an interruption.
    """
    with _environment_restored(), _sigterm_exits():
        try:
            return run()
        except KeyboardInterrupt:
            note(job, "interrupted", "interrupted")
            raise
        except SystemExit as exit:
            if exit.code in INTERRUPTED:
                note(job, "interrupted", "interrupted")
                raise
            reason = f"exit code {exit.code}"
        except UserError as error:
            reason = str(error)
            print(f"error: {reason}", file=sys.stderr)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        note(job, "failed", reason)
        if job.sweep is None:
            raise SystemExit(1)
        return math.nan


def train(options: TrainConfig, job: Job) -> float:
    """Train, unless the directory holds the finished run already; returns the score.

    Raises:
        UserError: a mistake that only shows at run time.
    """
    from ..data.sources import require_available

    require_available(options.data)  # before anything heavy is imported
    text = config_text(asdict(options))
    action = _claim(job, text, job.continues or options.trainer.requeue)
    record = RunRecord.read(job.directory)
    if action == "skip" and record is not None:
        print(f"{job.directory} is finished already; nothing to do")
        return math.nan if record.score is None else record.score
    return fit_and_record(options, job, text, resume=action == "continue")


def _claim(job: Job, text: str, go_on: bool) -> str:
    """:func:`claim` for a training run; processes other than the first only look at what there is to go on with."""
    if is_first_process():
        return claim(job.directory, text, go_on)
    record = RunRecord.read(job.directory)
    if record is not None and record.status == "finished":
        return "skip"
    return "continue" if (job.directory / "checkpoints" / "last.ckpt").exists() else "start"


def begin(job: Job, text: str) -> None:
    """Take over a directory that has been claimed, with ``text`` as its ``config.yaml``.

    Raises:
        UserError: it cannot be written.
    """
    job.claimed = True
    if not is_first_process():
        return
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        write_whole(job.directory / "config.yaml", text)
    except OSError as error:
        raise UserError(f"{job.directory / 'config.yaml'} cannot be written: {error.strerror}") from error
    note(job, "running")


def fit_and_record(options: TrainConfig, job: Job, text: str, resume: bool) -> float:
    """Train in a directory that has been claimed, with ``text`` as its ``config.yaml``; returns the score."""
    begin(job, text)
    os.environ[RANK_RUN] = json.dumps({"directory": str(job.directory.absolute()), "resume": resume})
    from .experiment import run_training

    score = run_training(options, context(options, job, resume))
    note(job, "finished", score=score)
    return score


def evaluate(options: EvaluateConfig, job: Job, planner: dict[str, Any]) -> float:
    """Evaluate a checkpoint; returns the score, NaN where the task has none.

    Args:
        planner: options that replace those recorded in the checkpoint.

    Raises:
        UserError: a mistake that only shows at run time.
    """
    from .experiment import RunContext, run_evaluation
    from .loading import load_agent

    trained = load_agent(Path(options.checkpoint), options.accelerator, planner, options.allow)
    text = config_text({**asdict(options), "planner": asdict(trained.agent.settings)})
    action = claim(job.directory, text, job.continues, evaluation=True)
    record = RunRecord.read(job.directory)
    if action == "skip" and record is not None:
        print(f"{job.directory} is finished already; nothing to do")
        return math.nan if record.score is None else record.score
    begin(job, text)
    score = run_evaluation(options, RunContext(job.directory, command_text(), sweep=job.sweep), trained)
    note(job, "finished", score=score)
    return score


def config_text(options: dict[str, Any]) -> str:
    """``config.yaml`` of a run: all options, none left to be resolved."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def command_text() -> str:
    """The command line, to be pasted."""
    return shlex.join(["python", *sys.argv])


def context(options: TrainConfig, job: Job, resume: bool) -> "RunContext":
    """The surroundings of a training run, besides its options; imports torch."""
    from .experiment import RunContext, make_callbacks

    callbacks = make_callbacks(options.trainer.callbacks)
    return RunContext(job.directory, command_text(), resume, job.sweep, callbacks)


def note(job: Job, status: str, reason: str = "", score: float | None = None) -> None:
    """Keep the state of a run in its directory, or, where another run's lies there, that it was refused."""
    if not is_first_process():
        return
    record = RunRecord(status, job.parameters, score, reason)
    with contextlib.suppress(OSError):  # a full disk is reported by what fails on it
        if job.claimed or not (job.directory / "config.yaml").exists():
            record.write(job.directory)
        elif status == "failed" and job.sweep is not None:
            record.write_refusal(job.directory)


@contextlib.contextmanager
def _sigterm_exits() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, with its state recorded; training sets its own handler meanwhile."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo what Lightning and W&B leave in the environment, which would misguide the next job of a sweep."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
