"""The two things a user can ask for: train and then plan, or plan with what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from .checkpoint import SECTION, read_checkpoint
from .configuration import EvaluateConfig, LoggerConfig, TrainConfig
from .errors import UserError
from .evaluation.evaluate import evaluate
from .evaluation.results import EvaluationRequest
from .planning.agent import Agent
from .run_record import is_first_process
from .training.datamodule import TrajectoryDataModule
from .training.fit import fit
from .training.loggers import RunLabels, finish_loggers, log_artifacts, log_evaluation, make_loggers


@dataclass(frozen=True)
class RunContext:
    """A run's surroundings, as opposed to its options.

    Attributes:
        directory: where everything it writes goes.
        command: the command line, to be recorded.
        resume: go on from ``checkpoints/last.ckpt``.
        sweep: name of the sweep that it belongs to, or None.
        callbacks: Lightning callbacks that the user added.
    """

    directory: Path
    command: str
    resume: bool = False
    sweep: str | None = None
    callbacks: tuple[Callback, ...] = ()


@dataclass(frozen=True)
class _Rollouts:
    """How to evaluate, from either command."""

    episodes: int
    num_envs: int
    seed: int
    video: int
    accelerator: str
    progress: bool


def run_training(config: TrainConfig, run: RunContext) -> float:
    """Fit, then plan in the real environment with the best checkpoint.

    Args:
        config: validated options.
        run: where, and how.

    Returns:
        The score that a sweep maximises: the mean return over ``evaluation.episodes``; without episodes, the negative
        of the best validation loss in nats. NaN in a process other than the first.

    Raises:
        UserError: a mistake that the options alone do not show.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, the state being saved.
    """
    datamodule = TrajectoryDataModule(config.data, config.seed)
    datamodule.setup()
    tags = (config.experiment_name,) if config.experiment_name else ()
    labels = RunLabels(run.sweep or config.experiment_name, "train", tags)
    loggers = make_loggers(config.logger, run.directory, asdict(config), labels)
    with _Finishing(loggers):
        report = fit(config, run.directory, datamodule, loggers, run.callbacks, run.resume)
        if not is_first_process():
            return float("nan")
        _keep_artifacts(config.logger, loggers, report.best)
        if config.evaluation.episodes == 0:
            return -report.validation_loss
        options = config.evaluation
        rollouts = _Rollouts(
            options.episodes,
            options.num_envs,
            1000 * config.seed,  # so that the seeds of a sweep do not share episodes
            options.video,
            config.trainer.accelerator,
            config.trainer.progress_bar,
        )
        return _evaluate(report.best, rollouts, run, loggers, {})


def run_evaluation(config: EvaluateConfig, run: RunContext, planner_overrides: Mapping[str, Any]) -> float:
    """Plan with a checkpoint.

    Args:
        config: validated options; of its planner only the overrides count.
        run: where, and how.
        planner_overrides: planner options that replace those recorded in the checkpoint.

    Returns:
        The mean return.

    Raises:
        UserError: the checkpoint is no good, or does not fit the planner or the environment.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    checkpoint = Path(config.checkpoint)
    read_checkpoint(checkpoint)  # before a logger starts a run that could only fail
    rollouts = _Rollouts(config.episodes, config.num_envs, config.seed, config.video, config.accelerator, True)
    resolved = {**asdict(config), "planner": dict(planner_overrides)}
    loggers = make_loggers(config.logger, run.directory, resolved, RunLabels(run.sweep, "evaluate"))
    with _Finishing(loggers):
        score = _evaluate(checkpoint, rollouts, run, loggers, planner_overrides)
        _keep_artifacts(config.logger, loggers, checkpoint)
        return score


def _evaluate(
    checkpoint: Path,
    rollouts: _Rollouts,
    run: RunContext,
    loggers: Sequence[Logger],
    planner_overrides: Mapping[str, Any],
) -> float:
    """Write the results of planning with ``checkpoint``; returns the mean return."""
    agent = Agent.from_checkpoint(checkpoint, _device(rollouts.accelerator), **planner_overrides)
    dataset = read_checkpoint(checkpoint)[SECTION]["dataset"]
    scores = dataset["reference_scores"]
    request = EvaluationRequest(
        episodes=rollouts.episodes,
        num_envs=min(rollouts.num_envs, rollouts.episodes),
        seed=rollouts.seed,
        video=rollouts.video,
        dataset_ids=tuple(dataset["ids"]),
        behavior_returns=np.asarray(dataset["returns"]),
        reference_scores=None if scores is None else (scores[0], scores[1]),
        reference_source=dataset["reference_source"],
        checkpoint=str(checkpoint),
        command=run.command,
        progress=rollouts.progress,
    )
    results = evaluate(agent, request, run.directory)
    log_evaluation(loggers, results)
    return float(results["summary"]["return_mean"])


def _keep_artifacts(config: LoggerConfig, loggers: Sequence[Logger], checkpoint: Path) -> None:
    if not config.log_artifacts or len(loggers) < 2:
        return
    dataset = read_checkpoint(checkpoint)[SECTION]["dataset"]
    log_artifacts(loggers, checkpoint, {**dataset, "returns": np.asarray(dataset["returns"]).tolist()})


def _device(accelerator: str) -> str:
    """The torch device that plans, for the accelerator that Lightning trains on.

    Raises:
        UserError: there is none.
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: this machine has no GPU that torch can use; choose accelerator=cpu")
    return "cuda" if accelerator == "gpu" else accelerator


class _Finishing:
    """Ends the loggers' runs when a job is over, telling them whether it failed, and the connection to other ranks."""

    def __init__(self, loggers: Sequence[Logger]) -> None:
        self._loggers = loggers

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        finish_loggers(self._loggers, exit_code=0 if kind is None else 1)
        if (
            torch.distributed.is_initialized()
        ):  # Lightning leaves it to the process's end; a sweep's next job would hang
            torch.distributed.destroy_process_group()
