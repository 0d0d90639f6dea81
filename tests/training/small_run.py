"""A training run small enough to be repeated many times; also a script, for tests that need real processes."""

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch.distributed.tensor import DTensor
from typing_extensions import override

from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import (
    DataConfig,
    DiscretizerConfig,
    ModelConfig,
    OptimizerConfig,
    PlannerConfig,
    TrainConfig,
    TrainerConfig,
)
from trajectory_transformer.data.episodes import Episode, OfflineData
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.training import datamodule as datamodule_file
from trajectory_transformer.training.batches import TrainingBatches
from trajectory_transformer.training.fit import FitReport, fit
from trajectory_transformer.training.learner import make_learner
from trajectory_transformer.training.learner_module import NonFiniteError

NUMBERS: dict[str, Any] = {
    "numerical_embedding": 4, "numerical_regression": 2.0, "numerical_pretraining": 0.25, "action_improvement": 0.5
}  # fmt: skip


def small_data(episodes: int = 12, steps: int = 8, dataset_id: str = "small/walk-v0") -> OfflineData:
    """Random walks in one observation and one action dimension."""
    generator = np.random.default_rng(0)
    leaf = SpaceLeaf((), "box", (1,), (-10.0,), (10.0,))
    made = []
    for index in range(episodes):
        actions = generator.normal(size=(steps, 1)).astype(np.float32)
        observations = np.concatenate([np.zeros((1, 1)), actions.cumsum(0)]).astype(np.float32)
        made.append(Episode(observations, actions, -np.abs(observations[1:, 0]), terminated=index % 2 == 0))
    return OfflineData(
        dataset_ids=[dataset_id],
        episodes=made,
        environment=EnvironmentSpec("Walk-v0", None, SpaceSpec((leaf,)), SpaceSpec((leaf,))),
        reference_scores=None,
        reference_source="none",
        fingerprint="0" * 64,
    )


def small_config(**trainer: Any) -> TrainConfig:
    """Updates of 9 windows of 11 tokens; 9 or 10 updates to an epoch; dropout on, so that random states matter."""
    options: dict[str, Any] = {
        "max_steps": 24, "validate_every": 6, "checkpoint_every": 5, "log_every": 3, "progress_bar": False,
    }  # fmt: skip
    return TrainConfig(
        data=DataConfig(
            dataset_id="small/walk-v0",
            discretizer=DiscretizerConfig("uniform", 10),
            sequence_length=3,
            termination_penalty=-100.0,
            batch_size=9,
        ),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8, **NUMBERS),
        optimizer=OptimizerConfig(learning_rate=1e-2, muon=3.0),
        trainer=TrainerConfig(**(options | trainer)),
        planner=PlannerConfig(horizon=2, context=2),
    )


def small_datamodule(config: TrainConfig, data: OfflineData | None = None) -> Any:
    """The learner's data module, set up on made-up episodes."""
    module = make_learner(config.learner, TYPED_BY_USER).make_datamodule(config)
    original = datamodule_file.load_offline_data
    datamodule_file.load_offline_data = lambda _: small_data() if data is None else data
    try:
        module.setup()
    finally:
        datamodule_file.load_offline_data = original
    return module


def small_fit(directory: Path, config: TrainConfig, callbacks: Any = (), resume: bool = False) -> FitReport:
    """Train on made-up episodes, with everything built anew."""
    return fit(TransformerLearner(), config, directory, small_datamodule(config), [], callbacks, resume)


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a checkpoint."""
    return read_checkpoint(path)["state_dict"]


class Rows(Logger):
    """Records logged values, by step and name."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[tuple[int | None, str], float] = {}

    @property
    @override
    def name(self) -> str:
        return "rows"

    @property
    @override
    def version(self) -> str:
        return "0"

    @override
    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    @override
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows |= {(step, name): value for name, value in metrics.items()}

    def repeatable(self) -> dict[tuple[int | None, str], float]:
        """All values that do not depend on a clock."""
        return {key: value for key, value in self.rows.items() if "per_second" not in key[1]}


class Record(Callback):
    """Records this process's final weights, and the windows that it used."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        order = cast(TrainingBatches, trainer.train_dataloader).order
        seen = [order.indices(step).tolist() for step in range(trainer.global_step)]
        contents = {"weights": pl_module.state_dict(), "batches": seen}
        torch.save(contents, self.directory / f"rank{trainer.global_rank}.pt")


class Shards(Callback):
    """Copies the checkpoint of update 5; at the end counts this process's weights, and makes one NaN or infinite."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == 5 and trainer.is_global_zero:
            shutil.copy(self.directory / "checkpoints" / "last.ckpt", self.directory / "fifth.ckpt")

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        parameters = [cast(DTensor, parameter.detach()) for parameter in pl_module.parameters()]
        count = sum(parameter.to_local().numel() for parameter in parameters)
        if not trainer.is_global_zero:
            next(part for part in map(DTensor.to_local, parameters) if part.numel())[-1] = torch.nan
        try:
            pl_module.on_save_checkpoint({})
        except NonFiniteError as error:
            (self.directory / f"rank{trainer.global_rank}.txt").write_text(f"{count} {error}")


class Stuck(Callback):
    """Makes the first update take a minute, after writing a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        (self.directory / "stuck").touch()
        time.sleep(60)


def start(directory: Path, action: str) -> subprocess.Popen[str]:
    """This file as a process of its own; see :func:`main`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.training.small_run", str(directory), action],
        cwd=Path(__file__).parents[2],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    """Exit status, once the process has ended."""
    process.communicate(timeout=120)
    return process.returncode


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Wait until ``path`` exists; fail if the process ends before."""
    while not path.is_file():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


def main(directory: Path, action: str) -> None:
    """Run in the process of :func:`start`: "run", "resume", "endless", "stuck", "ddp" or "fsdp"."""
    torch.set_num_threads(1)
    options: dict[str, Any] = {"max_steps": 60}
    callbacks: list[Callback] = []
    if action == "endless":
        options = {"max_steps": 1_000_000, "log_every": 1_000}
    if action == "stuck":
        callbacks = [Stuck(directory)]
    if action in ("ddp", "fsdp"):
        options = {"max_steps": 6, "devices": 2, "strategy": action}
        callbacks = [Record(directory) if action == "ddp" else Shards(directory)]
    config = small_config(**options)
    if action == "endless":
        config.model.numerical_pretraining = config.model.action_improvement = 0.0  # half as many updates
    if action in ("ddp", "fsdp"):
        config.data.batch_size = 8
        numbers = {**NUMBERS, "members": 2} if action == "ddp" else {}
        config.optimizer.muon = 3.0 if action == "ddp" else 0.0
        config.planner.act = "mean"  # which both members are trained for
        dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
        config.model = ModelConfig(n_layer=1, n_head=1, n_embd=8, **dropout, **numbers)
    resume = action == "resume" or (action == "fsdp" and (directory / "checkpoints" / "last.ckpt").is_file())
    small_fit(directory, config, callbacks, resume)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
