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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from ..building import TYPED_BY_USER, build
from ..configuration import EvaluateConfig, TrainConfig
from ..errors import UserError
from ..files import write_whole
from ..processes import is_first_process
from .run_record import REFUSAL, STATUS, RunRecord, claim

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
        sweep: name of the sweep that it belongs to, whose runs go on unasked; or None.
        claimed: the directory is this run's; until then one that holds a run may be another's.
    """

    directory: Path
    parameters: dict[str, str] = field(default_factory=dict)
    sweep: str | None = None
    claimed: bool = False


def recorded(job: Job, run: Callable[[], float]) -> float:
    """Call ``run`` and keep what became of it in the job's directory.

    Returns:
        The score; NaN after a failure within a sweep, whose other jobs go on.

    Raises:
        SystemExit: 1 after a failure of a single run; the exit code of an interruption.
    """
    with _process_restored():
        try:
            score = run()
            note(job, "finished", score=score)
            return score
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
    text = config_text(options)
    action = claim(job.directory, text, job.sweep is not None or options.trainer.requeue)
    return skip(job) if action == "skip" else fit_in(options, job, text, resume=action == "continue")


def fit_in(options: TrainConfig, job: Job, text: str, resume: bool) -> float:
    """Train in a directory that has been claimed, with ``text`` as its ``config.yaml``; returns the score."""
    begin(job, text)
    os.environ[RANK_RUN] = json.dumps({"directory": str(job.directory.absolute()), "resume": resume})
    from .experiment import run_training

    return run_training(options, context(job, options.trainer.callbacks, resume))


def evaluate(options: EvaluateConfig, job: Job, planner: dict[str, Any]) -> float:
    """Evaluate a checkpoint; returns the score, NaN where the task has none.

    Args:
        planner: options that replace those recorded in the checkpoint.

    Raises:
        UserError: a mistake that only shows at run time.
    """
    from .experiment import run_evaluation
    from .loading import load_agent

    trained = load_agent(Path(options.checkpoint), options.accelerator, planner, options.allow)
    text = config_text(options, planner=asdict(trained.agent.settings))
    if claim(job.directory, text, job.sweep is not None, evaluation=True) == "skip":
        return skip(job)
    begin(job, text)
    return run_evaluation(options, context(job), trained)


def skip(job: Job) -> float:
    """Say that the run is finished; returns the score that it recorded."""
    print(f"{job.directory} is finished already; nothing to do")
    record = RunRecord.read(job.directory)
    return math.nan if record is None or record.score is None else record.score


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


def config_text(options: TrainConfig | EvaluateConfig, **replaced: Any) -> str:
    """``config.yaml`` of a run: all options, none left to be resolved."""
    return yaml.safe_dump({**asdict(options), **replaced}, sort_keys=False, allow_unicode=True)


def context(job: Job, callbacks: Mapping[str, object] | None = None, resume: bool = False) -> "RunContext":
    """The surroundings of a run, with the ``trainer.callbacks`` that its options describe; imports torch.

    Raises:
        UserError: one is no Lightning callback, or cannot be made.
    """
    from lightning.pytorch.callbacks import Callback

    from .experiment import RunContext

    made = (build(s, Callback, f"trainer.callbacks.{name}", TYPED_BY_USER) for name, s in (callbacks or {}).items())
    return RunContext(job.directory, shlex.join(["python", *sys.argv]), resume, job.sweep, tuple(made))


def note(job: Job, status: str, reason: str = "", score: float | None = None) -> None:
    """Keep the state of a run in its directory, or, where another run's lies there, that it was refused."""
    if not is_first_process():
        return
    own = job.claimed or not (job.directory / "config.yaml").exists()
    if own or (status == "failed" and job.sweep is not None):
        with contextlib.suppress(OSError):  # a full disk is reported by what fails on it
            RunRecord(status, job.parameters, score, reason).write(job.directory, STATUS if own else REFUSAL)


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Let SIGTERM end the process as Ctrl-C does, with its state recorded; training sets its own handler meanwhile.

    Afterwards the environment is as before: what Lightning and W&B leave there would misguide a sweep's next job.
    """

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    environment = dict(os.environ)
    may_handle = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, leave) if may_handle else None
    try:
        yield
    finally:
        if may_handle:
            signal.signal(signal.SIGTERM, handler)
        os.environ.clear()
        os.environ.update(environment)
