"""Benchmark of updates of training: processor time of bare ones and of those in ``train.py``, also of another checkout.

``python -m tools.updates [OTHER_CHECKOUT]`` runs them in turns, in a process of its own for each, on one thread.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch.callbacks import LambdaCallback

from trajectory_transformer import available_memory
from trajectory_transformer.benchmark.machine import BASE, HALFCHEETAH, HOPPER, TINY
from trajectory_transformer.configuration import DataConfig, OptimizerConfig, TrainConfig, TrainerConfig
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.training.fit import fit, make_module
from trajectory_transformer.training.optimization import make_optimizer

UPDATES = 10  # in a turn, as many as between two rows of metrics
MODELS = {  # layout, options, transitions of a window, windows, learning rate
    "tiny": (HOPPER, replace(TINY, numerical_embedding=256), 4, 64, 3e-3),  # python train.py
    "tiny10": (HOPPER, TINY, 10, 64, 3e-3),
    "base": (HALFCHEETAH, BASE, 10, 32, 6e-4),
}
KINDS = ("bare", "train.py")


class Turns:
    """Waits for a line on standard input, and prints the processor time of the updates until the next one, in ms."""

    def __init__(self) -> None:
        self._made, self._since = 0, 0.0

    def made_update(self) -> None:
        self._made += 1
        if self._made % UPDATES == 0:
            print("ms", 1e3 * (time.process_time() - self._since) / UPDATES, flush=True)
            if not sys.stdin.readline():
                os._exit(0)
            self._since = time.process_time()


def work(name: str, kind: str) -> None:
    """Make updates until standard input ends."""
    layout, model, length, batch, rate = MODELS[name]
    sizes = {"observations": layout.observation_dim, "actions": layout.action_dim}
    source = {"_target_": "tools.large_set.RandomSet", "steps": 100_000, **sizes}
    config = TrainConfig(
        data=DataConfig(source=source, sequence_length=length, batch_size=batch),
        model=model,
        optimizer=OptimizerConfig(learning_rate=rate),
        trainer=TrainerConfig(
            max_steps=10**6, validate_every=10**6, validation_batches=1, threads=1, progress_bar=False
        ),
    )
    data, learner, turns = TrajectoryDataModule(config.data, seed=0), TransformerLearner(), Turns()
    if kind == "train.py":
        callback = LambdaCallback(on_train_batch_end=lambda *_: turns.made_update())
        with tempfile.TemporaryDirectory() as directory:
            fit(learner, config, Path(directory), data, [], [callback], resume=False)
    torch.set_num_threads(1)
    getattr(available_memory, "keep_freed_memory", lambda: None)()  # older commits have no such function
    data.setup()
    module = make_module(learner, config, data).train()
    optimizer = make_optimizer(module.parameter_groups(), config.optimizer, fused=True)
    windows = data.train_examples.gather(data.train_order().indices(0))
    while True:
        optimizer.zero_grad()
        tokens, targets, mask = windows
        model = cast(TrajectoryModule, module).model
        model(tokens, targets=targets, attention_mask=mask, use_cache=False, return_dict=True).loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        turns.made_update()


class Worker:
    """A process that makes updates with the package of a checkout."""

    def __init__(self, checkout: Path, model: str, kind: str) -> None:
        command = [sys.executable, "-m", "tools.updates", "--model", model, "--work", kind]
        environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.name = f"{checkout.resolve().name}, {kind}"

    def milliseconds(self, begin: bool = True) -> float:
        """Processor time of an update, the mean of a turn; only the first turn begins by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if begin:
            print(file=self._process.stdin, flush=True)
        return float(next(line.split()[1] for line in self._process.stdout if line.startswith("ms ")))

    def end(self) -> None:
        self._process.communicate("")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", type=Path, help="another checkout of this repository")
    parser.add_argument("--model", choices=MODELS, default="tiny")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--work", choices=KINDS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work is not None:
        return work(arguments.model, arguments.work)
    here = Path(__file__).parents[1]
    checkouts = [here] if arguments.other is None else [here, arguments.other]
    workers = [Worker(checkout, arguments.model, kind) for checkout in checkouts for kind in arguments.kinds]
    for worker in workers:
        worker.milliseconds(begin=False)
    turns = [[worker.milliseconds() for worker in workers] for _ in range(arguments.rounds)]
    for index, worker in enumerate(workers):
        ratios = [turn[index] / turn[0] for turn in turns]
        low, middle, high = statistics.quantiles(ratios, n=4)
        taken = statistics.median(turn[index] for turn in turns)
        print(f"{worker.name}: {taken:.2f} ms, {middle:.3f} × the first (quartiles {low:.3f} to {high:.3f})")
        worker.end()
    return None


if __name__ == "__main__":
    main()
