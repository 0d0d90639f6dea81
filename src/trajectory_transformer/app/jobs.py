"""One training or evaluation as a job: its folder, who may run there, and what became of it."""

import contextlib
import json
import logging
import math
import os
import shlex
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
from ..configuration import EvaluateConfig, TrainConfig
from ..cores import OtherProcesses, wait_passively
from ..ending import EXITS_BY_SIGNAL, ending_signals
from ..errors import UserError
from ..files import is_first_process, remove_partial_files, write_whole
from .page import PAGE, SWEEP, write_run_page

if TYPE_CHECKING:
    from .experiment import RunContext

log = logging.getLogger(__name__)

STATUS = "status.json"
MODULES = "environment.modules"
REFUSAL = "refused.json"  # of a run that was refused the folder of another; gone once the other goes on
OTHERS = OtherProcesses()  # since the command began
RANK_RUN = "TRAJECTORY_TRANSFORMER_RANK_RUN"  # tells the processes that Lightning starts which run is theirs


@dataclass(frozen=True)
class RunRecord:
    """State of one run."""

    status: str  # "running", "finished", "failed" or "interrupted"
    parameters: dict[str, str] = field(default_factory=dict)  # what the command line, or a search, set for it
    score: float | None = None  # what a sweep maximises
    reason: str = ""  # of a failure

    def write(self, directory: Path, file: str = STATUS) -> None:
        """Replace the record in ``directory`` at once, never leaving half a file."""
        score = self.score if self.score is not None and math.isfinite(self.score) else None
        write_whole(directory / file, json.dumps({**asdict(self), "score": score}, indent=1))

    @classmethod
    def read(cls, directory: Path, file: str = STATUS) -> "RunRecord | None":
        """The record in ``directory``, or None where there is none that can be read."""
        try:
            return cls(**json.loads((directory / file).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None


@dataclass
class Job:
    """A run in its directory."""

    directory: Path
    parameters: dict[str, str] = field(default_factory=dict)  # what the command line, or a search, set for it
    sweep: str | None = None  # name of the sweep that it belongs to, whose runs go on unasked
    claimed: bool = False  # the directory is this run's; until then one that holds a run may be another's


def parameters_of(overrides: Sequence[str]) -> dict[str, str]:
    """What a command line set, by name."""
    return dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)


def why_taken(directory: Path, evaluation: bool) -> str | None:
    """The reason why no new run may begin in ``directory``, or None: an ``evaluation`` may replace one that failed."""
    existing = directory / "config.yaml"
    if not existing.exists():
        return None
    if not evaluation:
        return f"{directory} already holds a run; resume={directory} goes on with it, or choose another folder"
    record = RunRecord.read(directory)
    stopped = record is not None and record.status in ("failed", "interrupted")
    if stopped and existing.read_text(encoding="utf-8").startswith("checkpoint:"):
        return None
    return f"{directory} already holds a run; choose another folder with hydra.run.dir=DIR"


def claim(directory: Path, config: str, go_on: bool, evaluation: bool = False) -> str:
    """Decide what to do in a run directory: "start", "continue" from its last checkpoint, or "skip" a finished run.

    A repeated sweep's job and a requeued SLURM job may ``go_on`` with a run of the same ``config``, as YAML.

    Raises:
        UserError: the directory belongs to another run; later ranks of a training run do not ask.
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
    """Call ``run`` and keep what became of it in the job's directory; returns the score.

    A failure within a sweep, whose other jobs go on, gives NaN; that of a single run raises SystemExit with 1, an
    interruption with its own code.
    """
    wait_passively(OTHERS.cores())
    with _process_restored():
        try:
            score = run()
            note(job, "finished", score=score)
            return score
        except (KeyboardInterrupt, SystemExit) as exit:
            if isinstance(exit, KeyboardInterrupt) or exit.code in EXITS_BY_SIGNAL:
                note(job, "interrupted", "interrupted")
                raise
            reason = f"exit code {exit.code}"
        except UserError as error:
            reason = str(error)
            print(f"error: {error.told}", file=sys.stderr)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        note(job, "failed", reason)
        if job.sweep is None:
            raise SystemExit(1)
        return math.nan


def train(options: TrainConfig, job: Job) -> float:
    """Train, unless the directory holds the finished run already; returns the score."""
    from ..data.sources import require_available

    import_modules(options.environment.modules, MODULES)
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
    """Evaluate a checkpoint, with its ``planner`` options replaced; returns the score, NaN where the task has none."""
    from .experiment import load_agent, run_evaluation

    import_modules(options.environment.modules, MODULES)
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
    """Take over a directory that has been claimed, with ``text`` as its ``config.yaml``, or raise UserError."""
    job.claimed = True
    if not is_first_process():
        return
    try:
        job.directory.mkdir(parents=True, exist_ok=True)
        remove_partial_files(job.directory)
        write_whole(job.directory / "config.yaml", text)
    except OSError as error:
        raise UserError(f"{job.directory / 'config.yaml'} cannot be written: {error.strerror}") from error
    note(job, "running")


def config_text(options: TrainConfig | EvaluateConfig, **replaced: Any) -> str:
    """``config.yaml`` of a run: all options, none left to be resolved."""
    return yaml.safe_dump({**asdict(options), **replaced}, sort_keys=False, allow_unicode=True)


def context(job: Job, callbacks: Mapping[str, object] | None = None, resume: bool = False) -> "RunContext":
    """The surroundings of a run, with the callbacks of Lightning's that its options describe; imports torch."""
    from lightning.pytorch.callbacks import Callback

    from .experiment import RunContext

    made = (build(s, Callback, f"trainer.callbacks.{name}", TYPED_BY_USER) for name, s in (callbacks or {}).items())
    command = shlex.join(["python", *sys.argv])
    return RunContext(job.directory, command, resume, job.sweep, what_differs(job), tuple(made))


def what_differs(job: Job) -> str | None:
    """The options that tell a job of a sweep or search apart from its others, or None outside of one."""
    if job.sweep is None:
        return None
    parents = (folder / "multirun.yaml" for folder in job.directory.absolute().parents)
    common: list[str] = []  # which Hydra lists as they were typed, those that vary with all their values
    with contextlib.suppress(StopIteration, OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
        file = next(path for path in parents if path.exists())
        common = list(yaml.safe_load(file.read_text(encoding="utf-8"))["hydra"]["overrides"]["task"])
    given = [f"{name}={value}" for name, value in job.parameters.items()]
    return " ".join(option for option in given if option not in common)


def note(job: Job, status: str, reason: str = "", score: float | None = None) -> None:
    """Keep the state of a run in its directory, or, where another run's lies there, that it was refused."""
    if not is_first_process():
        return
    own = job.claimed or not (job.directory / "config.yaml").exists()
    if own or (status == "failed" and job.sweep is not None):
        with contextlib.suppress(OSError):  # a full disk is reported by what fails on it
            RunRecord(status, job.parameters, score, reason).write(job.directory, STATUS if own else REFUSAL)
    if job.claimed and status != "running" and not (job.directory / SWEEP).exists():  # which has a page of its own
        try:
            write_run_page(job.directory, status, score, reason)
        except Exception as error:  # such as of results that another version wrote; a page is not worth a run
            log.warning("no %s: %s", PAGE, " ".join(f"{type(error).__name__}: {error}".split()))


@contextlib.contextmanager
def _process_restored() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the process as Ctrl-C does; undo what Lightning and W&B leave in the environment."""

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
