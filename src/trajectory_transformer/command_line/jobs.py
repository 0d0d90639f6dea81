"""What a job does besides training and evaluation: its directory, its record, its environment variables."""

import contextlib
import json
import math
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..configuration import EvaluateConfig, TrainConfig
from ..errors import UserError
from ..run_record import RunRecord, claim, is_first_process
from . import mistakes
from .instantiation import check_targets, instantiate
from .schema import typed

if TYPE_CHECKING:
    from ..experiment import RunContext

RANK_RUN = "TRAJECTORY_TRANSFORMER_RANK_RUN"  # tells the processes that Lightning starts which run is theirs
INTERRUPTED = (130, 143)


@dataclass(frozen=True)
class Job:
    """A run in its place.

    Attributes:
        directory: of the run.
        parameters: what the command line, or a search, set for it.
        sweep: name of the sweep that it belongs to, or None.
    """

    directory: Path
    parameters: dict[str, str] = field(default_factory=dict)
    sweep: str | None = None

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
    with _environment_restored():
        try:
            return run()
        except KeyboardInterrupt:
            _note(job, "interrupted", "interrupted")
            raise
        except SystemExit as exit:
            if exit.code in INTERRUPTED:
                _note(job, "interrupted", "interrupted")
                raise
            reason = f"exit code {exit.code}"
        except UserError as error:
            reason = str(error)
            print(f"error: {reason}", file=sys.stderr)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        _note(job, "failed", reason)
        if job.sweep is None:
            raise SystemExit(1)
        return math.nan


def train(options: TrainConfig, job: Job) -> float:
    """Train, or search where ``options.tune`` is set; returns the score.

    Raises:
        UserError: a mistake that only shows at run time.
    """
    if options.tune is not None:
        return _search(options, job)
    text = config_text(asdict(options))
    action = claim(job.directory, text, job.continues or options.trainer.requeue)
    record = RunRecord.read(job.directory)
    if action == "skip" and record is not None:
        print(f"{job.directory} is finished already; nothing to do")
        return math.nan if record.score is None else record.score
    return _train(options, job, text, resume=action == "continue")


def _train(options: TrainConfig, job: Job, text: str, resume: bool) -> float:
    if is_first_process():
        job.directory.mkdir(parents=True, exist_ok=True)
        (job.directory / "config.yaml").write_text(text)
    _note(job, "running")
    os.environ[RANK_RUN] = json.dumps({"directory": str(job.directory.absolute()), "resume": resume})
    from ..experiment import run_training

    score = run_training(options, _context(options, job, resume))
    _note(job, "finished", score=score)
    return score


def evaluate(options: EvaluateConfig, job: Job, planner: dict[str, Any]) -> float:
    """Evaluate a checkpoint; returns the mean return.

    Args:
        planner: options that replace those recorded in the checkpoint.

    Raises:
        UserError: a mistake that only shows at run time.
    """
    text = config_text({**asdict(options), "planner": planner})
    action = claim(job.directory, text, job.continues)
    record = RunRecord.read(job.directory)
    if action == "skip" and record is not None and record.score is not None:
        print(f"{job.directory} is finished already; nothing to do")
        return record.score
    (job.directory / "config.yaml").write_text(text)
    _note(job, "running")
    from ..experiment import RunContext, run_evaluation

    score = run_evaluation(options, RunContext(job.directory, command_text(), sweep=job.sweep), planner)
    _note(job, "finished", score=score)
    return score


def resume(directory: Path) -> None:
    """Go on with the run in ``directory``, with the options in its ``config.yaml``.

    Raises:
        UserError: it holds no run of ``train.py``.
        SystemExit: as :func:`recorded`.
    """
    options = read_config(directory)
    record = RunRecord.read(directory)
    finished = record is not None and record.status == "finished"
    in_sweep = (directory.parent / "multirun.yaml").exists()
    job = Job(directory, record.parameters if record else {}, directory.absolute().parent.name if in_sweep else None)
    if finished and options.tune is None:
        if options.evaluation.episodes == 0 or (directory / "results.json").exists():
            print(f"{directory} is finished; nothing to do")
            return
        print(f"{directory} is finished but for its evaluation")
    elif not (directory / "checkpoints" / "last.ckpt").exists() and options.tune is None:
        print(f"{directory} holds no checkpoint yet; starting from the beginning")
    text = (directory / "config.yaml").read_text()
    has_checkpoint = (directory / "checkpoints" / "last.ckpt").exists()

    def run() -> float:
        return _train(options, job, text, has_checkpoint) if options.tune is None else train(options, job)

    if math.isnan(recorded(job, run)) and RunRecord.read(directory) != record:
        raise SystemExit(1)


def is_later_rank() -> bool:
    """This process was started by Lightning beside the one that reads the command line."""
    return RANK_RUN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def run_rank() -> None:
    """Train as one of several processes, in the first one's run directory and with its ``config.yaml``."""
    run = json.loads(os.environ[RANK_RUN])
    directory = Path(run["directory"])
    options = read_config(directory)
    from ..experiment import run_training

    run_training(options, _context(options, Job(directory), run["resume"]))


def read_config(directory: Path) -> TrainConfig:
    """The options of the run in ``directory``.

    Raises:
        UserError: there is none, or it is not valid.
    """
    file = directory / "config.yaml"
    try:
        options = yaml.safe_load(file.read_text())
    except OSError:
        raise UserError(
            f"resume={directory}: there is no {file}, so no run to go on with{_runs_beside(directory)}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict) or "checkpoint" in options:
        raise UserError(f"{file} is not the config of a run of train.py")
    try:
        config: TrainConfig = typed(TrainConfig, options)
    except mistakes.EXPECTED as error:
        raise UserError(f"{file}: {mistakes.explain(error, TrainConfig, directory)}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    check_targets(config.trainer.callbacks, f"{file}: trainer.callbacks")
    return config


def _runs_beside(directory: Path) -> str:
    runs = sorted(path.parent for path in directory.parent.glob("*/config.yaml"))
    return f"; the latest one there is {runs[-1]}" if runs else ""


def config_text(options: dict[str, Any]) -> str:
    """``config.yaml`` of a run: all options, none left to be resolved."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True)


def command_text() -> str:
    """The command line, to be pasted."""
    return shlex.join(["python", *sys.argv])


def _context(options: TrainConfig, job: Job, resume: bool) -> "RunContext":
    from ..experiment import RunContext

    callbacks = instantiate(options.trainer.callbacks, "trainer.callbacks")
    return RunContext(job.directory, command_text(), resume, job.sweep, tuple(callbacks.values()))


def _search(options: TrainConfig, job: Job) -> float:
    """Run the trials of ``options.tune`` in numbered folders of the job's directory; returns the best score."""
    from ..tune import search

    assert options.tune is not None
    if (job.directory / "config.yaml").exists() and not (job.directory / "study.journal").exists():
        raise UserError(f"{job.directory} holds a run that is no search; choose another folder")
    job.directory.mkdir(parents=True, exist_ok=True)
    (job.directory / "config.yaml").write_text(config_text(asdict(options)))
    _note(job, "running")

    def run_trial(values: dict[str, Any], directory: Path) -> float:
        shown = {name: str(value) for name, value in values.items()}
        trial = Job(directory, shown, sweep=job.directory.name)

        def run() -> float:
            base = asdict(replace(options, tune=None))
            for name, value in values.items():
                *parents, leaf = name.split(".")
                node = base
                for parent in parents:
                    node = node[parent]
                node[leaf] = value
            return train(typed(TrainConfig, base), trial)

        directory.mkdir(exist_ok=True)
        return recorded(trial, run)

    score = search(options.tune, job.directory, options.seed, run_trial)
    _note(job, "finished", score=score)
    return score


def _note(job: Job, status: str, reason: str = "", score: float | None = None) -> None:
    if is_first_process():
        with contextlib.suppress(OSError):  # a full disk is reported by what fails on it
            RunRecord(status, job.parameters, score, reason).write(job.directory)


@contextlib.contextmanager
def _environment_restored() -> Iterator[None]:
    """Undo what Lightning and W&B leave in the environment, which would misguide the next job of a sweep."""
    before = dict(os.environ)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
