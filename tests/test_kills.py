"""Runs that are killed at random moments and resumed are equal, to the bit, to runs that were not.

``KILLS=300 pytest -m slow tests/test_kills.py`` kills so many times; ``KILLS_SEED`` chooses other moments, and
``KILLS_KINDS=ddp,compiled`` some kinds of run only.
"""

import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import pytest
import torch

from trajectory_transformer.app import experiment
from trajectory_transformer.app.experiment import RunContext, run_training
from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import (
    DataConfig,
    DiscretizerConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    PlannerConfig,
    TrainConfig,
    TrainerConfig,
)
from trajectory_transformer.evaluation import evaluate
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.transformer import TransformerLearner

from .minari_sets import random_episode, write_dataset
from .specs import spec_of

KILLS, SEED = int(os.environ.get("KILLS", "12")), int(os.environ.get("KILLS_SEED", "0"))
KINDS = ("transformer", "bf16", "ddp", "iql", "ensemble", "bc", "compiled")
CHOSEN = os.environ.get("KILLS_KINDS", ",".join(KINDS[:-1])).split(",")  # compiling takes half a minute each time
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDED = {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT}
LEARNERS = {
    "iql": ImplicitQLearning(hidden_layers=1, hidden_width=8),
    "ensemble": EnsembleLearner(num_members=2, hidden_layers=1, hidden_width=8),
    "bc": BehaviorCloning(hidden_layers=1, hidden_width=8),
}
STEPS = 60
GRACE = 10.0  # seconds that a process of two has to end by itself once the other was killed


def options(kind: str) -> TrainConfig:
    """Saves, rows, validations and, where the learner acts, episodes in updates with and without each other."""
    config = TrainConfig(
        data=DataConfig("kills/pendulum-v0", discretizer=DiscretizerConfig("uniform", 10), batch_size=8),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        trainer=TrainerConfig(
            max_steps=STEPS, validate_every=10, checkpoint_every=3, log_every=2, progress_bar=False, threads=1
        ),
        planner=PlannerConfig(horizon=1, beam_width=4, context=1),
        evaluation=EvaluationConfig(episodes=1, num_envs=1),
    )
    learner = LEARNERS.get(kind, TransformerLearner())
    config.data.sequence_length = 3
    config.learner = spec_of(learner)
    if learner.acts:
        config.evaluation.every, config.evaluation.every_episodes = 20, 2 if kind == "ddp" else 1
    else:
        config.evaluation.episodes = 0
    if kind == "ddp":
        config.trainer.devices, config.trainer.strategy = 2, "ddp"
    config.trainer.precision = "bf16-mixed" if kind == "bf16" else "32-true"
    config.trainer.compile = kind == "compiled"
    return config


def train(kind: str, directory: Path, rank: int, port: int) -> None:
    """Train in a process of its own, from the last checkpoint if there is one; what goes wrong is in ``errors``."""
    if kind == "ddp":  # as torchrun starts processes
        os.environ |= {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "kills",
        }  # fmt: skip
    torch.set_num_threads(1)
    directory.mkdir(exist_ok=True)
    try:
        resumes = (directory / "checkpoints" / "last.ckpt").is_file()
        (directory / f"began{rank}").touch()
        while kind == "ddp" and not (directory / f"began{1 - rank}").exists():  # both are to find the same files
            time.sleep(0.001)
        with without_pictures():
            run_training(options(kind), RunContext(directory, "python train.py", resumes, commit=None))
    except KeyboardInterrupt:  # before or after training, where the command itself ends with this code
        sys.exit(130)
    except Exception:
        (directory / "errors").write_text(traceback.format_exc())
        raise


@contextlib.contextmanager
def without_pictures() -> Iterator[None]:
    """Draw no plots, which take half of the time of such a run and are not compared."""
    with mock.patch.object(experiment, "plot_training"), mock.patch.object(evaluate, "_plot"):
        yield


class Run:
    """The one or two processes of a run."""

    def __init__(self, kind: str, directory: Path, context: ForkServerContext) -> None:
        self.directory, ranks = directory, 2 if kind == "ddp" else 1
        for began in directory.glob("began*"):
            began.unlink()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.processes = [context.Process(target=train, args=(kind, directory, rank, port)) for rank in range(ranks)]
        for process in self.processes:
            process.start()

    def await_beginning(self) -> None:
        while len([*self.directory.glob("began*")]) < len(self.processes) and self.processes[0].is_alive():
            time.sleep(0.001)

    def send(self, number: int, one: bool, draw: random.Random) -> int:
        """Send a signal to all processes or to one of them that lives; returns the number of processes it met."""
        alive = [process for process in self.processes if process.is_alive()]
        chosen = [draw.choice(alive)] if one and alive else alive
        for process in chosen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, number)
        return len(chosen)

    def end(self, killed: bool, parted: bool = False) -> set[int | None]:
        """Wait for the end; exit codes. Of two processes one may be killed, or ``parted``: only that one got a signal.

        Then they have :data:`GRACE` seconds. Where a fellow was killed, a process fails on its own, with some error of
        the broken connection; its code does not matter. If one ends before they are connected, the other waits for it.
        """
        for process in self.processes:
            process.join(GRACE if (killed or parted) and len(self.processes) > 1 else None)
            if process.is_alive():
                process.kill()
                process.join()
        codes = {process.exitcode for process in self.processes}
        return {-signal.SIGKILL} if killed and -signal.SIGKILL in codes else codes


def outcome(directory: Path) -> dict[str, Any]:
    """All that a run leaves and that does not depend on a clock."""
    found: dict[str, Any] = {}
    for path in sorted((directory / "checkpoints").iterdir()):
        contents = read_checkpoint(path)
        found[path.name] = {name: contents[name] for name in ("global_step", "state_dict", "optimizer_states")}
    with (directory / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if value} for row in csv.DictReader(file)]
    found["metrics"] = [{name: row[name] for name in row if "per_second" not in name} for row in rows]
    with contextlib.suppress(FileNotFoundError):
        results = json.loads((directory / "results.json").read_text())
        episodes = [{name: e[name] for name in ("seed", "return", "length")} for e in results["episodes"]]
        found["results"] = [episodes, results["summary"]["return_mean"], results["choice"], results["learner"]]
    return found


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Places in which two nested structures differ, NaN being equal to NaN."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return [text for key in one for text in differences(one[key], other[key], f"{place}/{key}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [text for index, pair in pairs for text in differences(*pair, f"{place}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return [] if torch.equal(one, other) else [place]
    return [] if one == other or (one != one and other != other) else [f"{place}: {one!r} and {other!r}"[:400]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], Run]:
    """Starts runs; all processes are forked from one that has imported everything, which saves time."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    with gym.make("Pendulum-v1", max_episode_steps=4) as environment:
        write_dataset(
            "kills/pendulum-v0", [random_episode(12, seed, action_dim=1) for seed in range(6)], env=environment
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return lambda kind, directory: Run(kind, directory, context)


@pytest.mark.slow
def test_killed_and_resumed_runs_equal_unbroken_ones(start: Callable[[str, Path], Run], tmp_path: Path) -> None:
    unbroken: dict[str, tuple[dict[str, Any], float]] = {}
    for kind in CHOSEN:
        start(kind, tmp_path / f"first {kind}").end(False)  # takes longer, because kernels are compiled and so on
        run = start(kind, tmp_path / kind)
        run.await_beginning()
        began = time.monotonic()
        assert run.end(False) == {0}, (tmp_path / kind / "errors").read_text()
        unbroken[kind] = outcome(tmp_path / kind), time.monotonic() - began
        assert len(unbroken[kind][0]["metrics"]) >= STEPS // 2
        assert differences(unbroken[kind][0], outcome(tmp_path / f"first {kind}")) == []
    draw, runs, wrong = random.Random(SEED), 0, []
    kills = {kind: dict.fromkeys(SIGNALS, 0) for kind in CHOSEN}
    while (made := sum(sum(counts.values()) for counts in kills.values())) < KILLS:
        kind = min(kills, key=lambda kind: sum(kills[kind].values()))
        directory, history, codes = tmp_path / f"run {runs}", [], set[int | None]()
        expected, seconds = unbroken[kind]
        while codes <= ENDED and codes != {0}:
            number = None if len(history) == 4 or made == KILLS else draw.choice(SIGNALS)
            one, wait = draw.random() < 0.5, draw.uniform(0, seconds)
            run = start(kind, directory)
            run.await_beginning()
            met = 0
            if number is not None:
                run.processes[0].join(wait)
                met = run.send(number, one, draw)
                kills[kind][number] += met > 0
                made += met > 0
            codes = run.end(killed=met > 0 and number == signal.SIGKILL)
            history.append(f"{number} to {met}: {codes}")
        runs += 1
        if codes == {0} and not (directory / "metrics.csv").exists():
            failed = ["it ended with code 0, but nothing is there"]
        elif codes == {0}:
            failed = differences(expected, outcome(directory))
        else:
            errors = directory / "errors"
            failed = [errors.read_text() if errors.exists() else "no traceback"]
        wrong += [f"{directory.name} {kind} {history}: {text}" for text in failed[:3]]
        counts = {kind: {number.name: count for number, count in counted.items()} for kind, counted in kills.items()}
        print(f"KILLS {made} of {runs} runs, {len(wrong)} differences; {counts}", flush=True)
    assert wrong == []
