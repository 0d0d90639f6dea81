"""One training or evaluation as a job: its folder, permission to run there, and its recorded outcome."""

import contextlib
import json
import logging
import math
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from ..building import TYPED_BY_USER, build, import_modules
from ..configuration import EvaluateConfig, TrainConfig, validate
from ..cores import OtherProcesses, wait_passively
from ..ending import EXITS_BY_SIGNAL, c_exit_fails, ending_signals
from ..environments.watcher import report_to
from ..errors import UserError, in_one_line
from ..files import is_first_process, remove_partial_files, write_whole
from ..training.learner import make_learner
from .commands import as_called, evaluate_command, resume_command, shown
from .page import PAGE, SWEEP, write_run_page

if TYPE_CHECKING:
    from .experiment import RunContext

log = logging.getLogger(__name__)
logging.getLogger("matplotlib.font_manager").setLevel(logging.WARNING)  # otherwise its cache is a user's first message

STATUS = "status.json"
MODULES = "environment.modules"
REFUSAL = "refused.json"  # record of a run that was refused another's folder; deleted once that other run is resumed
OTHERS = OtherProcesses()  # measures from the start of the command
RANK_RUN = "TRAJECTORY_TRANSFORMER_RANK_RUN"  # variable that passes the run to the processes that Lightning starts


@dataclass(frozen=True)
class RunRecord:
    """The state of one run."""

    status: str  # "running", "finished", "failed" or "interrupted"
    parameters: dict[str, str] = field(default_factory=dict)  # options set by the command line or a search
    score: float | None = None  # quantity that a sweep maximises
    reason: str = ""  # reason of a failure
    command: str = ""  # command line that began the run

    def write(self, directory: Path, file: str = STATUS) -> None:
        """Replace the record in ``directory`` atomically."""
        score = self.score if self.score is not None and math.isfinite(self.score) else None
        write_whole(directory / file, json.dumps({**asdict(self), "score": score}, indent=1))

    @classmethod
    def read(cls, directory: Path, file: str = STATUS) -> "RunRecord | None":
        """Return the record in ``directory``, or None if it is missing or unreadable."""
        try:
            record = cls(**json.loads((directory / file).read_text(encoding="utf-8")))
            validate("", record)
            return record
        except (OSError, ValueError, TypeError):
            return None


@dataclass
class Job:
    """A run in its directory."""

    directory: Path
    parameters: dict[str, str] = field(default_factory=dict)  # options set by the command line or a search
    sweep: str | None = None  # name of the sweep, if any, whose runs are resumed automatically
    claimed: bool = False  # True once the directory is known to be this run's
    options: TrainConfig | None = None  # of a training or search that has begun


def parameters_of(overrides: Sequence[str]) -> dict[str, str]:
    """Return the options set on a command line, by name."""
    return dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)


def why_taken(directory: Path, evaluation: bool) -> str | None:
    """Return why no new run may begin in ``directory``, or None; an ``evaluation`` may replace a failed one."""
    existing = directory / "config.yaml"
    if not existing.exists():
        return None
    if not evaluation:
        return f"{directory} already holds a run; continue it with resume={directory}, or choose another folder"
    record = RunRecord.read(directory)
    stopped = record is not None and record.status in ("failed", "interrupted")
    if stopped and existing.read_text(encoding="utf-8").startswith("checkpoint:"):
        return None
    return f"{directory} already holds a run; choose another folder with hydra.run.dir=DIR"


def claim(directory: Path, config: str, go_on: bool, evaluation: bool = False) -> str:
    """Decide what to do in a run directory: "start", "continue" from its last checkpoint, or "skip" a finished run.

    With ``go_on``, as in a repeated sweep or a requeued SLURM job, a run whose ``config.yaml`` equals ``config`` is
    continued.

    Raises:
        UserError: the directory belongs to another run; only the first rank of a training run checks this.
    """
    if evaluation or is_first_process():
        taken = why_taken(directory, evaluation)
        if taken is None:
            return "start"
        if not go_on:
            raise UserError(taken)
        if (directory / "config.yaml").read_text(encoding="utf-8") != config:
            raise UserError(f"{directory} holds a run with other options (see its config.yaml); choose another folder")
        (directory / REFUSAL).unlink(missing_ok=True)
    record = RunRecord.read(directory)
    if record is not None and record.status == "finished":
        return "skip"
    return "continue" if (directory / "checkpoints" / "last.ckpt").exists() else "start"


def recorded(job: Job, run: Callable[[], float]) -> float:
    """Call ``run`` and record its outcome in the job's directory; returns the score.

    A failure within a sweep returns NaN, so that the other jobs run; a failure of a single run raises SystemExit with
    code 1, and an interruption with its own code.
    """
    wait_passively(OTHERS.cores())
    with _process_restored(), c_exit_fails():
        try:
            score = run()
            note(job, "finished", score=score)
        except (KeyboardInterrupt, SystemExit) as exit:
            if isinstance(exit, KeyboardInterrupt) or exit.code in EXITS_BY_SIGNAL:
                _ignore_further_signals()
                note(job, "interrupted", "interrupted")
                if job.options is not None and job.sweep is None and is_first_process():
                    saved = "saved" if any(job.directory.glob("**/last.ckpt")) else "nothing is saved yet"
                    print(f"{saved}; continue with: {resume_command(job.directory, job.options)}", file=sys.stderr)
                raise
            reason = f"exit code {exit.code}"
        except UserError as error:
            reason = str(error)
            print(f"error: {error.told}", file=sys.stderr)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        else:
            if job.claimed and job.sweep is None and is_first_process():
                _point_to_results(job)
            return score
        note(job, "failed", reason)
        if job.sweep is None:
            raise SystemExit(1)
        return math.nan


def _ignore_further_signals() -> None:
    """Ignore SIGTERM and SIGHUP until the handlers are restored, so that an interruption is recorded whole."""
    if threading.current_thread() is threading.main_thread():
        for number in ending_signals():
            signal.signal(number, signal.SIG_IGN)


def _point_to_results(job: Job) -> None:
    """Print where a finished run's page is and, after a training, how to evaluate its checkpoint."""
    if (page := job.directory / PAGE).exists():
        print(f"page: {shown(page)}")
    if job.options is not None and job.options.tune is None:
        name = "best.ckpt" if job.options.evaluation.choose == "loss" else "best_return.ckpt"
        checkpoint = job.directory / "checkpoints" / name
        if make_learner(job.options.learner, TYPED_BY_USER).acts and checkpoint.exists():
            print(f"plan again: {evaluate_command(checkpoint, job.options)}")


def train(options: TrainConfig, job: Job) -> float:
    """Train, unless the directory already holds the finished run; returns the score."""
    from ..data.sources import require_available

    import_modules(options.environment.modules, MODULES)
    require_available(options.data)  # before anything heavy is imported
    text = config_text(options)
    action = claim(job.directory, text, job.sweep is not None or options.trainer.requeue)
    return skip(job) if action == "skip" else fit_in(options, job, text, resume=action == "continue")


def fit_in(options: TrainConfig, job: Job, text: str, resume: bool) -> float:
    """Train in a claimed directory, with ``text`` as its ``config.yaml``; returns the score."""
    begin(job, text, options)
    os.environ[RANK_RUN] = json.dumps({"directory": str(job.directory.absolute()), "resume": resume})
    from .experiment import run_training

    return run_training(options, context(job, options.trainer.callbacks, resume))


def evaluate(options: EvaluateConfig, job: Job, planner: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """Evaluate a checkpoint with ``planner`` options replaced; returns the score, or NaN for a task without one.

    The ``given`` ones must have an effect.
    """
    from .experiment import load_agent, run_evaluation

    import_modules(options.environment.modules, MODULES)
    trained = load_agent(Path(options.checkpoint), options.accelerator, planner, options.allow)
    trained.require_used(given)
    text = config_text(options, planner=asdict(trained.agent.settings))
    if claim(job.directory, text, job.sweep is not None, evaluation=True) == "skip":
        return skip(job)
    begin(job, text)
    return run_evaluation(options, context(job), trained)


def skip(job: Job) -> float:
    """Print that the run is finished; returns its recorded score."""
    print(f"{job.directory} is already finished; nothing to do")
    record = RunRecord.read(job.directory)
    return math.nan if record is None or record.score is None else record.score


def begin(job: Job, text: str, options: TrainConfig | None = None) -> None:
    """Begin a run in a claimed directory by writing ``text`` as its ``config.yaml``, or raise UserError.

    ``options`` are those of a training or search, which can be resumed.
    """
    job.claimed, job.options = True, options
    if not is_first_process():
        return
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        remove_partial_files(job.directory)
        write_whole(job.directory / "config.yaml", text)
    except OSError as error:
        raise UserError(f"{job.directory / 'config.yaml'} cannot be written: {error.strerror}") from error
    note(job, "running")
    if options is not None and job.sweep is None:
        print(f"run: {shown(job.directory)}", flush=True)


def config_text(options: TrainConfig | EvaluateConfig, **replaced: Any) -> str:
    """Return the ``config.yaml`` of a run: all options, fully resolved."""
    return yaml.safe_dump({**asdict(options), **replaced}, sort_keys=False, allow_unicode=True)


def context(job: Job, callbacks: Mapping[str, object] | None = None, resume: bool = False) -> "RunContext":
    """Return the context of a run, with the Lightning callbacks of its options; imports torch."""
    from lightning.pytorch.callbacks import Callback

    from .experiment import RunContext

    made = (build(s, Callback, f"trainer.callbacks.{name}", TYPED_BY_USER) for name, s in (callbacks or {}).items())
    return RunContext(job.directory, _command_of(job), resume, job.sweep, what_differs(job), tuple(made))


def _command_of(job: Job) -> str:
    """Return the command line that began a run: the present one, unless it resumes a training; and what extended it."""
    before = None if job.options is None else RunRecord.read(job.directory)
    if before is None or not before.command:
        return as_called(sys.argv)
    extends = any(word.lstrip("+").lower() == "extend=true" for word in sys.argv)
    present = as_called(sys.argv)
    told = not extends or before.command.endswith(present)
    return before.command if told else f"{before.command} && {present}"


def what_differs(job: Job) -> str | None:
    """Return the options in which a job of a sweep or search differs from the others, or None outside of one."""
    if job.sweep is None:
        return None
    parents = (folder / "multirun.yaml" for folder in job.directory.absolute().parents)
    common: list[str] = []  # options of the sweep's command line; those that vary hold all their values
    with contextlib.suppress(StopIteration, OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        file = next(path for path in parents if path.exists())
        words = yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"]
        common = [word.lstrip("+") for word in words]
    given = [f"{name}={value}" for name, value in job.parameters.items()]
    return " ".join(option for option in given if option not in common)


def note(job: Job, status: str, reason: str = "", score: float | None = None) -> None:
    """Record the state of a run in its directory or, if that holds another run, that it was refused."""
    if not is_first_process():
        return
    report_to(job.directory / STATUS if job.claimed and status == "running" else None)
    own = job.claimed or not (job.directory / "config.yaml").exists()
    if own or (status == "failed" and job.sweep is not None):
        with contextlib.suppress(OSError):  # a full disk is reported elsewhere
            record = RunRecord(status, job.parameters, score, reason, _command_of(job))
            record.write(job.directory, STATUS if own else REFUSAL)
    # A sweep's folder has another page.
    if job.claimed and status != "running" and not (job.directory / SWEEP).exists():
        try:
            write_run_page(job.directory, status, score, reason)
        except Exception as error:  # such as results of another version; a page must not fail a run
            log.warning("no %s: %s", PAGE, in_one_line(error))


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the process as Ctrl-C does; restore handlers and environment variables at the end."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    environment = dict(os.environ)
    may_handle = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.signal(number, leave) for number in (ending_signals() if may_handle else ())}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.environ.clear()
        os.environ.update(environment)
