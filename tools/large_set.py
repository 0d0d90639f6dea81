"""Benchmark of training from tokens on disk: resident memory, and speed relative to tokens in memory.

``python -m tools.large_set 20000000 FOLDER``.
"""

import argparse
import copy
import math
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from lightning.pytorch.callbacks import LambdaCallback
from typing_extensions import override

from trajectory_transformer.benchmark.machine import SEQUENCE_LENGTH, TINY, make_model
from trajectory_transformer.configuration import DataConfig, TrainConfig, TrainerConfig
from trajectory_transformer.data.episode_source import EpisodeSource, StoredEpisode, StoredSet
from trajectory_transformer.data.windows import TokenWindows, WindowBatch
from trajectory_transformer.environments.make import space_spec
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule
from trajectory_transformer.training.batches import TrainingBatches
from trajectory_transformer.training.fit import fit

OBSERVATIONS, ACTIONS, EPISODE = 12, 3, 1000  # 17 tokens a transition
BATCH = 64


@dataclass
class RandomSet(EpisodeSource):
    """Normally distributed episodes of 1,000 steps, generated while they are read."""

    steps: int
    observations: int = OBSERVATIONS
    actions: int = ACTIONS

    @property
    @override
    def name(self) -> str:
        return "random"

    @override
    def read(self, progress: bool) -> StoredSet:
        observation, action = (
            space_spec(gym.spaces.Box(-math.inf, math.inf, (size,))) for size in (self.observations, self.actions)
        )
        count = self.steps // EPISODE
        return StoredSet(self._episodes(count), count, EnvironmentSpec("", None, observation, action))

    def _episodes(self, count: int) -> Iterator[StoredEpisode]:
        generator = np.random.default_rng(0)
        for index in range(count):
            observations, actions, rewards = (
                generator.standard_normal(shape, dtype=np.float32)
                for shape in ((EPISODE + 1, self.observations), (EPISODE, self.actions), EPISODE)
            )
            yield StoredEpisode(f"episode {index}", observations, actions, rewards, index % 2 == 0)


class Phases:
    """Prints the duration and peak resident memory of each phase: anonymous memory, and droppable pages of files."""

    def __init__(self) -> None:
        self._most = {"RssAnon": 0, "RssFile": 0}
        self._began = time.monotonic()
        threading.Thread(target=self._watch, daemon=True).start()

    def _look(self) -> None:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
        for name, most in self._most.items():
            self._most[name] = max(most, int(fields[name].split()[0]) // 1024)

    def _watch(self) -> None:
        while True:
            self._look()
            time.sleep(0.02)

    def end(self, phase: str) -> None:
        self._look()
        most, self._most = self._most, {"RssAnon": 0, "RssFile": 0}
        seconds = time.monotonic() - self._began
        print(
            f"{phase}: {seconds:.1f} s; at most {most['RssAnon']} MiB anonymous, {most['RssFile']} MiB of files",
            flush=True,
        )
        self._began = time.monotonic()


def compare(disk: TokenWindows, module: TrajectoryDataModule, rounds: int, cold: Path | None) -> None:
    """Compare updates with tokens from disk and memory; the page cache of the file ``cold`` is dropped each round."""
    memory = copy.copy(disk)
    memory._tokens, memory._mapped = disk._tokens.clone(), None
    model = make_model(module.layout, TINY)
    optimizer = torch.optim.AdamW(model.decay_parameter_groups(0.1), lr=1e-4, fused=True)

    def seconds(batches: Iterator[WindowBatch], updates: int = 10) -> float:
        if cold is not None:
            with cold.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        for _ in range(updates):
            batch = next(batches)
            optimizer.zero_grad()
            output = model(batch.trajectories, targets=batch.targets, attention_mask=batch.mask, use_cache=False)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return (time.perf_counter() - began) / updates

    sources = [iter(TrainingBatches(windows, module.train_order(), lambda: 0)) for windows in (memory, disk)]
    taken = [[seconds(source) for source in sources] for _ in range(rounds + 1)][1:]
    tokens = BATCH * (module.config.sequence_length * module.layout.transition_dim - 1)
    in_memory, on_disk = (tokens / float(np.median(column)) for column in zip(*taken, strict=True))
    ratio = float(np.median([first / second for first, second in taken]))
    name = "warm" if cold is None else "cold"
    print(f"tokens/s ({name}): {in_memory:,.0f} in memory, {on_disk:,.0f} on disk: {ratio:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("steps", type=int)
    parser.add_argument("folder", help="folder of the cache")
    parser.add_argument("--updates", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    source = {"_target_": "tools.large_set.RandomSet", "steps": arguments.steps}
    config = TrainConfig(
        data=DataConfig(source=source, sequence_length=SEQUENCE_LENGTH, batch_size=BATCH, cache=arguments.folder),
        model=replace(TINY, numerical_embedding=256),  # as configs/model/tiny.yaml
        trainer=TrainerConfig(max_steps=arguments.updates, progress_bar=False),
    )
    phases = Phases()
    module = TrajectoryDataModule(config.data, seed=0)
    phases.end("start")
    module.setup()
    phases.end("reading, returns, bins")
    disk = module.train_examples
    assert isinstance(disk, TokenWindows)
    phases.end("tokens")
    with tempfile.TemporaryDirectory() as directory:
        started = LambdaCallback(on_train_start=lambda *_: phases.end("model"))
        report = fit(TransformerLearner(), config, Path(directory), module, [], [started], resume=False)
    phases.end(f"training, {arguments.updates} updates at {report.tokens_per_second:,.0f} tokens/s")
    largest = max(Path(arguments.folder).glob("*.tokens"), key=lambda file: file.stat().st_size)
    for cold in (None, largest):
        compare(disk, module, arguments.rounds, cold)


if __name__ == "__main__":
    main()
