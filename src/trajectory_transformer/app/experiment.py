"""The two things a user can ask for: train and then plan, or evaluate what was trained."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ..analysis.attention import evaluate_attention
from ..analysis.prediction import PredictionRequest, predict
from ..building import TYPED_BY_USER, packages_in
from ..checkpoint import Checkpoint, DatasetRecord
from ..configuration import EvaluateConfig, LoggerConfig, PlannerConfig, TrainConfig
from ..data.episode_source import EpisodeSource
from ..data.sources import sources_of
from ..data.transitions import join_episodes
from ..environments.batch import environment_title, make_environments
from ..errors import UserError
from ..evaluation.evaluate import evaluate
from ..evaluation.measurements import Measurement, RunFacts
from ..evaluation.plots import plot_training
from ..evaluation.results import EvaluationRequest, current_commit
from ..evaluation.rollout import require_possible
from ..learners.ensemble_network import read_ensemble
from ..planning.objectives import make_objective
from ..planning.trained_transformer import TrainedTransformer
from ..processes import is_first_process
from ..training.datamodule import OfflineDataModule
from ..training.fit import fit, torch_threads
from ..training.learner import Learner, make_learner
from ..training.loggers import (
    RunLabels,
    finish_loggers,
    log_artifacts,
    log_evaluation,
    log_measurements,
    make_loggers,
    require_loggers,
)
from .loading import LoadedAgent, held_out_episodes, load_agent, torch_device


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


def run_training(config: TrainConfig, run: RunContext) -> float:
    """Fit, then act in the real environment with the best checkpoint.

    Returns:
        The score that a sweep maximises: the mean return over ``evaluation.episodes``; without episodes, and for an
        ensemble, which does not act, the negative of the validation loss. NaN in a process other than the first.

    Raises:
        UserError: a mistake that the options alone do not show.
        SystemExit: 143 or 130 after SIGTERM or SIGINT, the state being saved.
    """
    torch_device(config.trainer.accelerator, "trainer.accelerator")  # before data sets are made
    require_loggers(config.logger, TYPED_BY_USER)
    learner = make_learner(config.learner, TYPED_BY_USER)
    learner.check(config)
    datamodule = learner.make_datamodule(config)
    datamodule.setup()
    _require_evaluable(learner, config, datamodule)
    tags = (config.experiment_name,) if config.experiment_name else ()
    group = run.sweep or config.experiment_name or datamodule.data.dataset_ids[0]
    loggers = make_loggers(config.logger, run.directory, asdict(config), RunLabels(group, "train", tags))
    with _finishing(loggers):
        report = fit(learner, config, run.directory, datamodule, loggers, run.callbacks, run.resume)
        if not is_first_process():
            return math.nan
        plot_training(run.directory / "metrics.csv", run.directory / "plots" / "training.png")
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, report.best, DatasetRecord.of(datamodule.data), sources_of(config.data))
        if config.evaluation.episodes == 0 or not learner.acts:
            return -report.validation_loss
        planner = vars(config.planner) if learner.plans else {}  # as typed, not as a file says
        allow = packages_in(asdict(config))
        trained = load_agent(report.best, config.trainer.accelerator, planner, allow, learner)
        return _plan(config, run, trained, loggers)


def run_evaluation(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> float:
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
    resolved = {**asdict(config), "planner": asdict(trained.agent.settings)}
    training = trained.checkpoint.training
    sources = sources_of(training.data, config.allow) if _keeps_artifacts(config.logger) else []
    labels = RunLabels(run.sweep or training.dataset.ids[0], "evaluate")
    loggers = make_loggers(config.logger, run.directory, resolved, labels)
    with _finishing(loggers):
        if config.task == "plan":
            score = _plan(config, run, trained, loggers)
        else:
            with torch_threads(config.threads):
                measurements = (_attend if config.task == "attention" else _predict)(config, run, trained)
            log_measurements(loggers, measurements)
            # Attention has nothing to maximise.
            score = measurements[0].value if config.task == "predict" else math.nan
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, trained.path, training.dataset, sources)
        return score


def _require_evaluable(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule) -> None:
    """Refuse, before training, an evaluation whose environment cannot be made, or that the planner is not for."""
    learner.check_data(config, datamodule)
    if config.evaluation.episodes == 0 or not learner.acts:
        return
    environment = datamodule.data.environment
    if not environment.env_id:
        raise UserError(
            f"evaluation.episodes={config.evaluation.episodes}: the data names no environment to act in; give "
            "evaluation.episodes=0, or a source that names one"
        )
    with make_environments(environment, 1) as batch:
        if learner.plans:
            require_possible(config.planner, make_objective(config.planner).needs_goal, batch)


def _plan(
    config: TrainConfig | EvaluateConfig, run: RunContext, trained: LoadedAgent, loggers: Sequence[Logger]
) -> float:
    """Write the results of acting in the environment; returns the mean return."""
    if isinstance(config, TrainConfig):
        options, threads, progress = config.evaluation, config.trainer.threads, config.trainer.progress_bar
        first_seed = 1000 * config.seed  # so that the seeds of a sweep do not share episodes
    else:
        options, threads, progress, first_seed = config, config.threads, True, config.seed
    dataset = trained.checkpoint.training.dataset
    request = EvaluationRequest(
        episodes=options.episodes,
        num_envs=min(options.num_envs, options.episodes),
        seed=config.seed,
        first_episode_seed=first_seed,
        video=options.video,
        dataset_ids=dataset.ids,
        behavior_returns=dataset.returns.numpy(),
        reference_scores=dataset.reference_scores,
        reference_source=dataset.reference_source,
        checkpoint=str(trained.path),
        command=run.command,
        commit=run.commit,
        progress=progress,
    )
    with torch_threads(threads):
        results = evaluate(trained.agent, request, run.directory)
    log_evaluation(loggers, results)
    return float(results["summary"]["return_mean"])


def _attend(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> list[Measurement]:
    """Write what the model attends to in its held-out episodes."""
    model = TrainedTransformer.of(trained.checkpoint, torch_device(config.accelerator, "accelerator"), config.allow)
    data = trained.checkpoint.training.data
    table = join_episodes(held_out_episodes(trained.checkpoint, config.allow), data.discount, data.termination_penalty)
    return evaluate_attention(model, table, config.attention, _facts(config, run, trained), run.directory)


def _predict(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> list[Measurement]:
    """Write how well models predict its held-out episodes; the first figure is the score."""
    checkpoint, network = trained.checkpoint, None
    model = TrainedTransformer.of(checkpoint, torch_device(config.accelerator, "accelerator"), config.allow)
    if config.predict.ensemble is not None:
        ensemble, training = Checkpoint.read(config.predict.ensemble), checkpoint.training
        ensemble.require_same_data("predict.ensemble", training.environment, training.dataset.fingerprint)
        ensemble.require_same_split("predict.ensemble", training.data, training.seed)
        network = read_ensemble(ensemble)
    request = PredictionRequest(config.predict, config.episodes, config.video, _facts(config, run, trained))
    planner = trained.agent.settings
    assert isinstance(planner, PlannerConfig)  # a policy's checkpoint has no such model
    return predict(model, planner, held_out_episodes(checkpoint, config.allow), network, request, run.directory)


def _facts(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> RunFacts:
    env_id = environment_title(trained.agent.environment)
    return RunFacts(",".join(trained.checkpoint.training.dataset.ids), env_id, config.seed, run.commit, run.command)


def _keeps_artifacts(config: LoggerConfig) -> bool:
    return config.log_artifacts and config.name == "wandb"


def _keep_artifacts(
    loggers: Sequence[Logger], checkpoint: Path, dataset: DatasetRecord, sources: Sequence[EpisodeSource]
) -> None:
    folders = [folder for source in sources for folder in source.folders()]
    log_artifacts(loggers, checkpoint, {**dataset.to_dict(), "returns": dataset.returns.tolist()}, folders)


@contextmanager
def _finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """End the loggers' runs with the job, telling them whether it failed, and the connection to other ranks."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)
        if torch.distributed.is_initialized():  # Lightning leaves it; a sweep's next job would hang
            torch.distributed.destroy_process_group()
