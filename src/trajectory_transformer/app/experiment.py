"""Training followed by planning, and evaluation of checkpoints."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ..analysis.attention import evaluate_attention
from ..analysis.prediction import PredictionRequest, predict
from ..building import PACKAGE, TYPED_BY_USER, packages_in
from ..checkpoint import Checkpoint, DatasetRecord
from ..configuration import EvaluateConfig, LoggerConfig, PlannerConfig, TrainConfig
from ..configuration.data import ORIGINAL_PENALTY
from ..data.episode_source import EpisodeSource
from ..data.episodes import Episode
from ..data.sources import EMBEDDED_NAMESPACE, load_offline_data, sources_of
from ..data.transitions import join_episodes
from ..environments.batch import environment_title, make_environments
from ..errors import UserError
from ..evaluation.evaluate import evaluate
from ..evaluation.measurements import Measurement, RunFacts
from ..evaluation.plots import plot_training
from ..evaluation.records import ActingAgent
from ..evaluation.results import EvaluationRequest, current_commit
from ..evaluation.rollout import limit_episodes, require_possible
from ..files import is_first_process
from ..learners.ensemble_network import read_ensemble
from ..learners.trial import try_learner
from ..planning.objectives import make_objective
from ..planning.trained_transformer import TrainedTransformer
from ..training.datamodule import OfflineDataModule, split_episodes
from ..training.fit import FitReport, fit, torch_threads
from ..training.initial import InitialWeights
from ..training.learner import Learner, make_learner
from ..training.loggers import (
    RunLabels,
    finish_loggers,
    log_artifacts,
    log_evaluation,
    log_measurements,
    log_pictures,
    make_loggers,
    require_loggers,
)
from .commands import evaluate_command

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContext:
    """Facts about a run other than its options."""

    directory: Path  # output folder
    command: str  # command line, for the record
    resume: bool = False  # go on from checkpoints/last.ckpt
    sweep: str | None = None  # name of the sweep, if any
    differs: str | None = None  # options in which it differs from the sweep's other jobs
    callbacks: tuple[Callback, ...] = ()  # callbacks added by the user
    commit: str | None = field(default_factory=current_commit)  # commit of the code, read before the run


@dataclass(frozen=True)
class LoadedAgent:
    """A checkpoint, read and verified once, and the agent that plans with it or follows its policy."""

    path: Path
    checkpoint: Checkpoint
    agent: ActingAgent

    def require_used(self, planner: Mapping[str, Any]) -> None:
        """Raise UserError for an option in ``planner`` that has no effect on this agent."""
        if planner and isinstance(settings := self.agent.settings, PlannerConfig):
            settings.require_used(planner, make_objective(settings).by_token)


def run_training(config: TrainConfig, run: RunContext) -> float:
    """Fit, then act in the real environment with the best checkpoint.

    Returns:
        The score that a sweep maximises: the mean return over ``evaluation.episodes``; without episodes, and for an
        ensemble, which does not act, the negative of the validation loss. NaN in a process other than the first.

    Raises:
        UserError: a mistake that shows only at run time.
        SystemExit: 143, 130 or 129 after SIGTERM, SIGINT or SIGHUP; the state is saved first.
    """
    torch_device(config.trainer.accelerator, "trainer.accelerator")  # checked before data sets are generated
    require_loggers(config.logger)
    learner = make_learner(config.learner, TYPED_BY_USER)
    learner.check(config)
    initial = None if run.resume or config.init_from is None else initial_weights(config)
    datamodule = learner.make_datamodule(config)
    datamodule.setup()
    if learner.uses_rewards(config):
        _tell_penalty(learner, config, datamodule)
    _require_evaluable(learner, config, datamodule)
    try_learner(learner, config, datamodule)
    tags = (config.experiment_name,) if config.experiment_name else ()
    group = run.sweep or config.experiment_name or datamodule.data.dataset_ids[0]
    loggers = make_loggers(config.logger, run.directory, asdict(config), RunLabels(group, "train", tags, run.differs))
    with _finishing(loggers):
        report = fit(learner, config, run.directory, datamodule, loggers, run.callbacks, run.resume, initial)
        if not is_first_process():
            return math.nan
        plot_training(run.directory / "metrics.csv", run.directory / "plots" / "training.png")
        chosen = report.best if config.evaluation.choose == "loss" else report.best_return
        assert chosen is not None
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, chosen, DatasetRecord.of(datamodule.data), sources_of(config.data))
        if config.evaluation.episodes == 0 or not learner.acts:
            log_pictures(loggers, run.directory)
            return -report.validation_loss
        checkpoint = Checkpoint.read(chosen)
        device = torch_device(config.trainer.accelerator, "trainer.accelerator")
        with _telling_what_is_left(chosen, config):
            trained = LoadedAgent(chosen, checkpoint, learner.own_agent(config, checkpoint, device))
            return _plan(config, run, trained, loggers, report)


def _tell_penalty(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule[Any]) -> None:
    """Say whether rewards of a user's own data or learner are replaced, unless there are none to replace."""
    episodes, ids, penalty = datamodule.data.episodes, config.data.dataset_ids, datamodule.config.termination_penalty
    terminated = sum(episode.terminated for episode in episodes)
    simulated = len(ids) > 0 and all(name.startswith(EMBEDDED_NAMESPACE) for name in ids)
    known = simulated and type(learner).__module__.startswith(f"{PACKAGE}.")
    chosen = config.data.termination_penalty == "auto"
    if terminated and (chosen or penalty is not None) and not known and is_first_process():
        print(
            f"{terminated} of {len(episodes)} episodes terminate: "
            + (
                "the reward of their last step is kept, because the data's rewards tell what an end is worth "
                f"(data.termination_penalty={ORIGINAL_PENALTY:g} replaces it)"
                if penalty is None
                else f"{penalty:g} replaces the reward of their last step (data.termination_penalty; null keeps it)"
            )
        )


def initial_weights(config: TrainConfig) -> InitialWeights:
    """Return the weights of ``init_from``, or raise UserError if they cannot be read."""
    path = str(config.init_from)
    if not Path(path).is_dir():
        return InitialWeights.of_checkpoint(path)
    from ..interop.pretrained import TrajectoryTransformerModel  # here, as most runs do not need the hub's client

    model = TrajectoryTransformerModel.from_pretrained(path, allow=packages_in(asdict(config)))
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    return InitialWeights(path, "transformer", model.config.to_dict(), weights)


def run_evaluation(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> float:
    """Carry out ``config.task`` with ``trained``, the agent made of its checkpoint and planner options.

    Returns:
        The mean return or, for task=predict, the log-likelihood in nats per dimension; NaN for task=attention.

    Raises:
        UserError: a mistake that shows only at run time, such as an environment that cannot be made.
    """
    resolved = {**asdict(config), "planner": asdict(trained.agent.settings)}
    training = trained.checkpoint.training
    sources = sources_of(training.data, config.allow) if _keeps_artifacts(config.logger) else []
    labels = RunLabels(run.sweep or training.dataset.ids[0], "evaluate", differs=run.differs)
    loggers = make_loggers(config.logger, run.directory, resolved, labels)
    with _finishing(loggers):
        if config.task == "plan":
            score = _plan(config, run, trained, loggers)
        else:
            with torch_threads(config.threads):
                measurements = _measure(config, run, trained)
            log_measurements(loggers, measurements)
            log_pictures(loggers, run.directory)
            # Attention has no score.
            score = measurements[0].value if config.task == "predict" else math.nan
        if _keeps_artifacts(config.logger):
            _keep_artifacts(loggers, trained.path, training.dataset, sources)
        return score


def load_agent(
    path: Path, accelerator: str, planner_overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> LoadedAgent:
    """Read a checkpoint and make its agent, for one of Lightning's accelerators.

    ``planner_overrides`` replace options recorded in the checkpoint. The checkpoint, including its learner, may name
    classes of the packages in ``allow``.

    Raises:
        UserError: the file is invalid or does not fit the planner, its learner does not act, or the accelerator is
            missing.
    """
    device = torch_device(accelerator, "accelerator")
    checkpoint = Checkpoint.read(path)
    learner = make_learner(checkpoint.training.learner, allow)
    return LoadedAgent(path, checkpoint, learner.make_agent(checkpoint, device, planner_overrides, allow))


def held_out_episodes(checkpoint: Checkpoint, allow: Sequence[str] = ()) -> list[Episode]:
    """Return the validation episodes of a checkpoint's data, in stored order; ``allow`` as in :func:`load_agent`.

    Raises:
        UserError: the data is not available, or differs from that of the training.
    """
    training = checkpoint.training
    # A checkpoint must not choose a folder to write to.
    data = load_offline_data(replace(training.data, cache=None), allow=allow)
    if data.fingerprint != training.dataset.fingerprint:
        raise UserError(
            f"data set {', '.join(data.dataset_ids)} on this machine differs from the one that "
            f"'{checkpoint.name}' was trained on"
        )
    return split_episodes(data, training.data.validation_fraction, training.seed)[1]


def torch_device(accelerator: str, option: str) -> str:
    """Return the torch device of a Lightning accelerator; raises UserError if this machine has none."""
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"gpu": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if accelerator in there and not there[accelerator]():
        raise UserError(f"{option}={accelerator}: torch finds none on this machine; choose {option}=cpu")
    return "cuda" if accelerator == "gpu" else accelerator


def _require_evaluable(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule) -> None:
    """Raise UserError before training if the evaluation's environment cannot be made or does not suit the planner."""
    learner.check_data(config, datamodule)
    options = config.evaluation
    if (options.episodes == 0 and options.every is None) or not learner.acts:
        return
    environment = datamodule.data.environment
    if not environment.env_id:
        every = "" if options.every is None else " and evaluation.every=null"
        raise UserError(
            f"evaluation.episodes={options.episodes}: the data names no environment to act in; give "
            f"evaluation.episodes=0{every}, or name one: data.source.env_id=ID with data=npz, and for a Minari set "
            "'data.source={_target_: trajectory_transformer.data.minari_set.MinariSet, dataset_id: SET, env_id: ID}'"
        )
    with make_environments(environment, 1, max_episode_steps=config.evaluation.max_episode_steps) as batch:
        limit_episodes(batch, datamodule.data.longest_episode)
        batch.try_out(datamodule.data.episodes[0].actions.mean(axis=0))
        if learner.plans:
            require_possible(config.planner, make_objective(config.planner).needs_goal, batch)


def _plan(
    config: TrainConfig | EvaluateConfig,
    run: RunContext,
    trained: LoadedAgent,
    loggers: Sequence[Logger],
    report: FitReport | None = None,
) -> float:
    """Act in the environment and write the results; returns the mean return."""
    if isinstance(settings := trained.agent.settings, PlannerConfig) and settings.looks_ahead_in_vain:
        log.warning(
            "planner.horizon=%d changes no action: planner.act=%s averages candidates for the present transition and "
            "ignores what follows; planner.act=best or elite looks ahead",
            settings.horizon,
            settings.act,
        )
    if isinstance(config, TrainConfig):
        options, threads, progress = config.evaluation, config.trainer.threads, config.trainer.progress_bar
        first_seed = 1000 * config.seed  # runs of a sweep with other seeds get other episodes
    else:
        options, threads, progress, first_seed = config, config.threads, True, config.seed
    request = EvaluationRequest(
        trained.checkpoint.training,
        str(trained.path),
        trained.checkpoint.fingerprint(),
        trained.checkpoint.model,
        run.command,
        run.commit,
        episodes=options.episodes,
        num_envs=min(options.num_envs, options.episodes),
        seed=config.seed,
        first_episode_seed=first_seed,
        video=options.video,
        max_episode_steps=options.max_episode_steps,
        progress=progress,
        choice=None if report is None else report.choice,
    )
    with torch_threads(threads):
        results = evaluate(trained.agent, request, run.directory)
    log_evaluation(loggers, results, None if report is None else report.steps)
    log_pictures(loggers, run.directory)
    return float(results["summary"]["return_mean"])


def _measure(config: EvaluateConfig, run: RunContext, trained: LoadedAgent) -> list[Measurement]:
    """Measure attention or prediction on held-out episodes and write the results; returns the measurements."""
    checkpoint, training, network = trained.checkpoint, trained.checkpoint.training, None
    model = TrainedTransformer.of(checkpoint, torch_device(config.accelerator, "accelerator"), config.allow)
    env_id = environment_title(trained.agent.environment)
    facts = RunFacts(",".join(training.dataset.ids), env_id, config.seed, run.commit, run.command)
    if config.task == "attention":
        episodes = held_out_episodes(checkpoint, config.allow)
        table = join_episodes(episodes, training.data)
        return evaluate_attention(model, table, config.attention, facts, run.directory)
    if config.predict.ensemble is not None:
        ensemble = Checkpoint.read(config.predict.ensemble)
        ensemble.require_same_data("predict.ensemble", training.environment, training.dataset.fingerprint)
        ensemble.require_same_split("predict.ensemble", training.data, training.seed)
        network = read_ensemble(ensemble)
    request = PredictionRequest(config.predict, config.episodes, config.video, facts)
    planner = trained.agent.settings
    assert isinstance(planner, PlannerConfig)  # a policy's checkpoint has no transformer
    return predict(model, planner, held_out_episodes(checkpoint, config.allow), network, request, run.directory)


def _keeps_artifacts(config: LoggerConfig) -> bool:
    return config.log_artifacts and config.name == "wandb"


def _keep_artifacts(
    loggers: Sequence[Logger], checkpoint: Path, dataset: DatasetRecord, sources: Sequence[EpisodeSource]
) -> None:
    folders = [folder for source in sources for folder in source.folders()]
    log_artifacts(loggers, checkpoint, {**dataset.to_dict(), "returns": dataset.returns.tolist()}, folders)


@contextmanager
def _telling_what_is_left(checkpoint: Path, config: TrainConfig) -> Iterator[None]:
    """Add to an error of the evaluation that the training is not lost, and the command that evaluates it."""
    try:
        yield
    except Exception as error:
        error.add_note(f"the model is trained and saved; evaluate it with: {evaluate_command(checkpoint, config)}")
        raise


@contextmanager
def _finishing(loggers: Sequence[Logger]) -> Iterator[None]:
    """Close the loggers with the job's exit code, and the connection to other ranks, at the end of the block."""
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        finish_loggers(loggers, exit_code)
        if torch.distributed.is_initialized():  # Lightning leaves it; a sweep's next job would hang
            torch.distributed.destroy_process_group()
