"""The two things a user can ask for: train and then plan, or evaluate what was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ..analysis.attention import evaluate_attention
from ..analysis.prediction import PredictionRequest, predict
from ..building import TYPED_BY_USER
from ..checkpoint import SECTION, read_checkpoint
from ..configuration import EvaluateConfig, LoggerConfig, PlannerConfig, TrainConfig
from ..data.transitions import join_episodes
from ..dataset_folders import dataset_folder
from ..environments.batch import environment_title, make_environments
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..evaluation.evaluate import evaluate
from ..evaluation.measurements import Measurement, RunFacts
from ..evaluation.plots import plot_training
from ..evaluation.results import EvaluationRequest, current_commit
from ..evaluation.rollout import require_possible
from ..learners.critic import Critic
from ..learners.ensemble import TrainedEnsemble
from ..learners.make import make_datamodule
from ..learners.same_data import require_same_data, require_same_split
from ..planning.trained_model import TrainedModel
from ..processes import is_first_process
from ..training.fit import fit, torch_threads
from ..training.loggers import (
    RunLabels,
    finish_loggers,
    log_artifacts,
    log_evaluation,
    log_measurements,
    make_loggers,
    require_loggers,
)
from .trained import Trained, held_out_episodes, load_trained, torch_device


@dataclass(frozen=True)
class RunContext:
    """A run's surroundings, as opposed to its options.

    Attributes:
        directory: where everything it writes goes.
        command: the command line, to be recorded.
        resume: go on from ``checkpoints/last.ckpt``.
        sweep: name of the sweep that it belongs to, or None.
        callbacks: Lightning callbacks that the user added.
        commit: of the code that runs, taken before it does, or None.
    """

    directory: Path
    command: str
    resume: bool = False
    sweep: str | None = None
    callbacks: tuple[Callback, ...] = ()
    commit: str | None = field(default_factory=current_commit)


@dataclass(frozen=True)
class _Rollouts:
    """How to evaluate, from either command."""

    episodes: int
    num_envs: int
    seed: int
    first_episode_seed: int
    video: int
    threads: int | None
    progress: bool


def require_callbacks(built: Mapping[str, object]) -> tuple[Callback, ...]:
    """The values of ``trainer.callbacks``.

    Raises:
        UserError: one is no Lightning callback.
    """
    for name, callback in built.items():
        if not isinstance(callback, Callback):
            raise UserError(
                f"trainer.callbacks.{name} is a {type(callback).__name__}, no Lightning callback; give it a "
                "_target_ such as lightning.pytorch.callbacks.DeviceStatsMonitor"
            )
    return tuple(callback for callback in built.values() if isinstance(callback, Callback))


def run_training(config: TrainConfig, run: RunContext) -> float:
    """Fit, then act in the real environment with the best checkpoint.

    Args:
        config: validated options.
        run: where, and how.

    Returns:
        The score that a sweep maximises: the mean return over ``evaluation.episodes``; without episodes, and for an
        ensemble, which does not act, the negative of the validation loss. NaN in a process other than the first.

    Raises:
        UserError: a mistake that the options alone do not show.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, the state being saved.
    """
    torch_device(config.trainer.accelerator, "trainer.accelerator")  # before data sets are made
    require_loggers(config.logger, TYPED_BY_USER)
    datamodule = make_datamodule(config)
    datamodule.setup()
    _require_evaluable(config, datamodule.data.environment)
    if config.planner.critic is not None:  # rather now than after training
        critic = Critic.load(config.planner.critic)
        require_same_data("planner.critic", critic, datamodule.data.environment, datamodule.data.fingerprint)
    tags = (config.experiment_name,) if config.experiment_name else ()
    group = run.sweep or config.experiment_name or config.data.dataset_ids[0]
    labels = RunLabels(group, "train", tags)
    loggers = make_loggers(config.logger, run.directory, asdict(config), labels)
    with _Finishing(loggers):
        report = fit(config, run.directory, datamodule, loggers, run.callbacks, run.resume)
        if not is_first_process():
            return float("nan")
        plot_training(run.directory / "metrics.csv", run.directory / "plots" / "training.png")
        options = config.evaluation
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, report.best, read_checkpoint(report.best)[SECTION]["dataset"])
        if options.episodes == 0 or config.learner == "ensemble":
            return -report.validation_loss
        trained = load_trained(report.best, config.trainer.accelerator, {})
        rollouts = _Rollouts(
            options.episodes,
            options.num_envs,
            config.seed,
            1000 * config.seed,  # so that the seeds of a sweep do not share episodes
            options.video,
            config.trainer.threads,
            config.trainer.progress_bar,
        )
        return _evaluate(trained, rollouts, run, loggers)


def run_evaluation(config: EvaluateConfig, run: RunContext, trained: Trained) -> float:
    """Do with a checkpoint what ``config.task`` says.

    Args:
        config: validated options; the checkpoint and planner in them have been made use of in ``trained``.
        run: where, and how.
        trained: what plans, is looked into, or predicts.

    Returns:
        The mean return, or of predictions the log-likelihood in nats per dimension; NaN where the task has no score.

    Raises:
        UserError: a mistake that the options alone do not show, such as an environment that cannot be made.
    """
    rollouts = _Rollouts(config.episodes, config.num_envs, config.seed, config.seed, config.video, config.threads, True)
    resolved = {**asdict(config), "planner": asdict(trained.agent.settings)}
    labels = RunLabels(run.sweep or trained.dataset["ids"][0], "evaluate")
    loggers = make_loggers(config.logger, run.directory, resolved, labels)
    with _Finishing(loggers):
        if config.task == "plan":
            score = _evaluate(trained, rollouts, run, loggers)
        else:
            with torch_threads(config.threads):
                measurements = (_attend if config.task == "attention" else _predict)(config, run, trained)
            log_measurements(loggers, measurements)
            score = (
                measurements[0].value if config.task == "predict" else float("nan")
            )  # attention has nothing to maximise
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, trained.checkpoint, trained.dataset)
        return score


def _require_evaluable(config: TrainConfig, environment: EnvironmentSpec) -> None:
    """Refuse an evaluation that cannot be, rather before training than after.

    Raises:
        UserError: the environment cannot be made, or the planner is not for it.
    """
    if config.evaluation.episodes == 0 or config.learner == "ensemble":
        return
    with make_environments(environment, 1) as batch:
        if config.learner == "transformer":
            require_possible(config.planner, batch)


def _evaluate(trained: Trained, rollouts: _Rollouts, run: RunContext, loggers: Sequence[Logger]) -> float:
    """Write the results of planning; returns the mean return."""
    dataset = trained.dataset
    scores = dataset["reference_scores"]
    request = EvaluationRequest(
        episodes=rollouts.episodes,
        num_envs=min(rollouts.num_envs, rollouts.episodes),
        seed=rollouts.seed,
        first_episode_seed=rollouts.first_episode_seed,
        video=rollouts.video,
        dataset_ids=tuple(dataset["ids"]),
        behavior_returns=np.asarray(dataset["returns"]),
        reference_scores=None if scores is None else (scores[0], scores[1]),
        reference_source=dataset["reference_source"],
        checkpoint=str(trained.checkpoint),
        command=run.command,
        commit=run.commit,
        progress=rollouts.progress,
    )
    with torch_threads(rollouts.threads):
        results = evaluate(trained.agent, request, run.directory)
    log_evaluation(loggers, results)
    return float(results["summary"]["return_mean"])


def _attend(config: EvaluateConfig, run: RunContext, trained: Trained) -> list[Measurement]:
    """Write what the model attends to in its held-out episodes."""
    model = TrainedModel.from_contents(trained.contents, torch_device(config.accelerator, "accelerator"))
    data = trained.contents[SECTION]["data"]
    table = join_episodes(held_out_episodes(trained), data["discount"], data["termination_penalty"])
    return evaluate_attention(model, table, config.attention, _facts(config, run, trained), run.directory)


def _predict(config: EvaluateConfig, run: RunContext, trained: Trained) -> list[Measurement]:
    """Write how well models predict its held-out episodes; the first figure is the score."""
    model = TrainedModel.from_contents(trained.contents, torch_device(config.accelerator, "accelerator"))
    network = None
    if config.predict.ensemble is not None:
        ensemble = TrainedEnsemble.load(config.predict.ensemble)
        require_same_data("predict.ensemble", ensemble, model.environment, trained.dataset["fingerprint"])
        section = trained.contents[SECTION]
        require_same_split(
            "predict.ensemble", ensemble.split, (section["seed"], section["data"]["validation_fraction"])
        )
        network = ensemble.network
    request = PredictionRequest(config.predict, config.episodes, config.video, _facts(config, run, trained))
    planner = trained.agent.settings
    assert isinstance(planner, PlannerConfig)  # a policy's checkpoint has no such model
    return predict(model, planner, held_out_episodes(trained), network, request, run.directory)


def _facts(config: EvaluateConfig, run: RunContext, trained: Trained) -> RunFacts:
    env_id = environment_title(trained.agent.environment)
    return RunFacts(",".join(trained.dataset["ids"]), env_id, config.seed, run.commit, run.command)


def _keeps_artifacts(config: LoggerConfig) -> bool:
    return config.log_artifacts and config.name == "wandb"


def _keep_artifacts(loggers: Sequence[Logger], checkpoint: Path, dataset: Mapping[str, Any]) -> None:
    folders = [dataset_folder(dataset_id) for dataset_id in dataset["ids"]]
    facts = {**dataset, "returns": np.asarray(dataset["returns"]).tolist()}
    log_artifacts(loggers, checkpoint, facts, folders)


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
