"""Training of a learner with Lightning, from typed options to checkpoints."""

import contextlib
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from ..available_memory import keep_freed_memory
from ..checkpoint_file import read_checkpoint
from ..configuration import TrainConfig, TrainerConfig, require
from ..errors import UserError
from ..files import remove_partial_files, slurm_step
from .callbacks import (
    BetweenUpdates,
    BuffersOfFirstProcess,
    KeepCheckpoints,
    Pretraining,
    RunProgress,
    Throughput,
)
from .checkpoint_io import VerifiedCheckpointIO, require_same_run
from .datamodule import OfflineDataModule
from .initial import InitialWeights
from .interruption import SignalWatch
from .learner import Learner
from .learner_module import LearnerModule, NonFiniteError
from .optimization import TrainingPlan
from .returns import EpisodePlayer
from .sharding import ShardedStrategy

# Messages of Lightning that do not help users.
UNWANTED_MESSAGES = (
    "💡 Tip",
    "GPU available",
    "TPU available",
    "HPU available",
    "`Trainer.fit` stopped",
    "Restoring states from the checkpoint path",
    "Restored all states from the checkpoint",
    "Seed set to",
    "Using bfloat16 Automatic",
    "You are using a CUDA device",
    "LOCAL_RANK: ",
)


@dataclass(frozen=True)
class FitReport:
    """The result of a training run."""

    best: Path  # checkpoint of the lowest validation loss; of the latest validation if losses do not rank weights
    last: Path  # checkpoint of the last update
    steps: int  # updates made, including those before a resume
    validation_loss: float  # of ``best``; in nats for models of tokens or dynamics
    tokens_per_second: float  # or transitions, over all devices, during training alone; NaN without updates
    best_return: Path | None = None  # checkpoint of the highest return; None without ``evaluation.every``
    choice: dict[str, Any] | None = None  # its record in results.json; see returns.py


def fit(
    learner: Learner,
    config: TrainConfig,
    run_directory: Path,
    datamodule: OfflineDataModule,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
    resume: bool,
    initial: InitialWeights | None = None,
) -> FitReport:
    """Train a learner, and save ``last.ckpt``, ``best.ckpt`` and, with returns, ``best_return.ckpt``.

    Args:
        learner: the learner to train.
        config: all options.
        run_directory: the run's folder; checkpoints are saved in its ``checkpoints``.
        datamodule: the learner's data module; it is set up if needed.
        loggers: the run's loggers.
        callbacks: the user's callbacks, in addition to ours.
        resume: continue from ``last.ckpt``; with ``trainer.requeue``, that happens whenever it exists.
        initial: weights to start a new run from; None: random ones.

    Raises:
        UserError: the directory cannot be written or holds another run, there is nothing to resume or it does not fit,
            the requested hardware is not available, the last checkpoint could not be saved, or, as a NonFiniteError, a
            loss or the weights became NaN or infinite.
        TrainingInterrupted: SIGTERM, SIGINT or SIGHUP was received; the state was saved first.
    """
    checkpoints = _prepare_directory(run_directory)
    last = checkpoints / "last.ckpt"
    resume = resume or (config.trainer.requeue and last.is_file())
    if last.is_file() and not resume:
        raise UserError(f"'{run_directory}' already holds a run: resume={run_directory} continues it")
    datamodule.setup()
    with torch_threads(config.trainer.threads), quiet_lightning(), SignalWatch(config.trainer.requeue) as watch:
        module = make_module(learner, config, datamodule)
        if resume:
            require_same_run(last, module, config.trainer.accumulate)
        elif initial is not None:
            initial.give_to(module)
        keep_freed_memory()
        throughput = Throughput(module.plan.tokens_per_step, config.trainer.log_every, module.unit)
        progress = [RunProgress(config.trainer.max_steps, throughput)] if config.trainer.progress_bar else []
        plays = config.evaluation.every is not None
        player = EpisodePlayer(learner, config, watch, [throughput, *progress]) if plays else None
        keeper = KeepCheckpoints(checkpoints, config.trainer, watch, player)
        first = Pretraining(keeper, given=config.init_from is not None)
        ours = [first, BetweenUpdates(keeper), BuffersOfFirstProcess(), throughput, *progress]
        all_callbacks = [*ours, *callbacks, keeper]
        trainer = make_trainer(config, run_directory, loggers, all_callbacks)
        if config.trainer.compile:
            _compile(module, trainer.strategy.root_device)
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=last if resume else None)
            keeper.play_last(trainer, module)
            choice = keeper.choice(trainer)
        except NonFiniteError as error:
            remedy = "lower optimizer.learning_rate or look for extreme values in the data"
            raise NonFiniteError(f"{error}; {_what_is_kept(last)}; {remedy}") from error
    best_return = None if player is None else keeper.best_return
    speed = throughput.tokens_per_second
    return FitReport(keeper.best, last, trainer.global_step, keeper.best_loss, speed, best_return, choice)


def make_trainer(
    config: TrainConfig, run_directory: Path, loggers: Sequence[Logger], callbacks: Sequence[Callback]
) -> L.Trainer:
    """Make a Lightning trainer that counts in updates, without Lightning's own files, progress bars and signals.

    The whole run is a single endless epoch for Lightning, which cannot resume exactly in the middle of one of several.

    Raises:
        UserError: the requested accelerator, number of devices or precision is not available.
    """
    options, sharded = config.trainer, config.trainer.strategy == "fsdp"
    names = ("accelerator", "devices", "num_nodes", "precision")
    hardware: dict[str, Any] = {name: getattr(options, name) for name in names}
    try:
        trainer = L.Trainer(
            **hardware,
            **options.options,
            strategy=ShardedStrategy(options.devices * options.num_nodes) if sharded else options.strategy,
            max_epochs=-1,
            max_steps=options.max_steps,
            accumulate_grad_batches=options.accumulate,
            check_val_every_n_epoch=None,
            val_check_interval=options.validate_every * options.accumulate,  # Lightning counts parts of batches
            limit_val_batches=options.validation_batches or 1.0,
            num_sanity_val_steps=0,
            log_every_n_steps=options.log_every,
            logger=list(loggers) or False,
            callbacks=list(callbacks),
            plugins=[VerifiedCheckpointIO(), *_cluster(options)],
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=run_directory,
        )
    except UserError:
        raise
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:  # RuntimeError: SLURM's variables
        chosen = ", ".join(f"trainer.{name}={value}" for name, value in (hardware | options.options).items())
        reason = " ".join(str(error).split())
        raise UserError(f"{chosen} are not possible together here: {reason}") from error
    # Lightning's handler of SIGTERM ends a run without saving, with exit code 0, and communicates within the handler.
    vars(trainer._signal_connector)["register_signal_handlers"] = lambda: None
    return trainer


def _cluster(options: TrainerConfig) -> list[ClusterEnvironment]:
    """The cluster environment, where Lightning would choose wrongly: within SLURM, it would require srun."""
    if TorchElasticEnvironment.detect() or not SLURMEnvironment.detect():
        return []
    if (step := slurm_step()) is None:  # a batch script that calls Python without srun
        require(
            options.num_nodes == 1,
            f"trainer.num_nodes={options.num_nodes} needs a process on each node: use srun python train.py …",
        )
        return [LightningEnvironment()]
    if step != "0":  # Lightning derives the port from the job alone
        os.environ.setdefault("MASTER_PORT", str(15000 + (int(os.environ["SLURM_JOB_ID"]) + int(step)) % 10000))
    # Lightning's requeueing saves within the signal handler, in the middle of an update; ours waits for its end.
    return [SLURMEnvironment(auto_requeue=False)]


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Set torch's number of threads (None: unchanged), and restore it for the next job in this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def quiet_lightning() -> Iterator[None]:
    """Suppress :data:`UNWANTED_MESSAGES`, repetitions, and two warnings about internals of Lightning and FSDP."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(UNWANTED_MESSAGES)

    names = ("pytorch.utilities.rank_zero", "fabric.utilities.rank_zero", "pytorch.accelerators.cuda")
    with contextlib.ExitStack() as stack:
        for source in (logging.getLogger(f"lightning.{name}") for name in names):
            source.addFilter(wanted)
            stack.callback(source.removeFilter, wanted)
        package = logging.getLogger("lightning")
        for handler in [*package.handlers] if logging.getLogger().handlers else []:  # else messages appear twice
            package.removeHandler(handler)
            stack.callback(package.addHandler, handler)
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")  # not changed in place
        yield


def make_module(learner: Learner, config: TrainConfig, datamodule: OfflineDataModule) -> LearnerModule:
    """Make the learner's module with its initial weights, which the seed determines."""
    L.seed_everything(config.seed, verbose=False)  # for the initial weights; every update sets its own seed
    order = datamodule.train_order()
    trainer = config.trainer
    plan = TrainingPlan(config.seed, trainer.max_steps, order.steps_per_epoch, order.batch_size, trainer.log_every)
    return learner.make_module(config, datamodule, plan)


def _what_is_kept(last: Path) -> str:
    """Clause that says which state is saved, for the message of a failed run."""
    try:
        return f"'{last}' holds the state after update {read_checkpoint(last)['global_step']}"
    except UserError:
        return "no state was saved before that"


def _compile(module: LearnerModule, device: torch.device) -> None:
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
        warnings.warn("trainer.compile=true needs a C++ compiler on the CPU; training is not compiled", stacklevel=2)
    else:
        module.compile_network()


def _prepare_directory(run_directory: Path) -> Path:
    """Make the run's checkpoint folder, check that it is writable, and remove partial files of killed processes."""
    checkpoints = run_directory / "checkpoints"
    try:
        checkpoints.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=checkpoints):
            pass
        remove_partial_files(checkpoints)
    except OSError as error:
        raise UserError(
            f"the output directory '{run_directory}' cannot be written: {error.strerror}; choose "
            "another with hydra.run.dir=DIR"
        ) from error
    return checkpoints
