"""Benchmark of two processes: tokens per second of one, of two that share each update (DDP), and of two separate ones.

``python -m tools.two_processes``, on a machine with two otherwise idle cores; each process has one thread.
"""

import argparse
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from trajectory_transformer.benchmark.machine import BASE, SEQUENCE_LENGTH, TINY
from trajectory_transformer.configuration import DataConfig, TrainConfig, TrainerConfig
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule
from trajectory_transformer.training.fit import fit

MODELS = {"tiny": (replace(TINY, numerical_embedding=256), 64, 40), "base": (BASE, 16, 20)}  # windows, updates


def train(name: str, processes: int) -> None:
    """Print the total speed of all processes, each with the same number of windows per update."""
    model, batch, updates = MODELS[name]
    source = {"_target_": "tools.large_set.RandomSet", "steps": 100_000}
    config = TrainConfig(
        data=DataConfig(source=source, sequence_length=SEQUENCE_LENGTH, batch_size=batch * processes),
        model=model,
        trainer=TrainerConfig(
            max_steps=updates, log_every=updates // 2, validation_batches=1, threads=1, devices=processes,
            strategy="ddp" if processes > 1 else "auto", progress_bar=False,
        ),
    )  # fmt: skip
    module = TrajectoryDataModule(config.data, seed=0)
    with tempfile.TemporaryDirectory() as directory:
        report = fit(TransformerLearner(), config, Path(directory), module, [], [], resume=False)
    print(f"tokens/s {report.tokens_per_second:.0f}", flush=True)


def start(name: str, processes: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tools.two_processes", name, str(processes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def speed(process: subprocess.Popen[str]) -> float:
    """Wait for a started process, and return the speed that it printed."""
    return float(next(line.split()[1] for line in process.communicate()[0].splitlines() if line.startswith("tokens/s")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", choices=MODELS)
    parser.add_argument("processes", nargs="?", type=int)
    arguments = parser.parse_args()
    if arguments.processes is not None:
        return train(arguments.model, arguments.processes)
    for name in [arguments.model] if arguments.model else MODELS:
        one, together = speed(start(name, 1)), speed(start(name, 2))
        apart = sum(map(speed, [start(name, 1), start(name, 1)]))
        print(
            f"{name}: one {one:,.0f} tokens/s; two together {together:,.0f}, {together / (2 * one):.0%} of twice that; "
            f"two apart {apart:,.0f}, {apart / (2 * one):.0%}",
            flush=True,
        )
    return None


if __name__ == "__main__":
    main()
