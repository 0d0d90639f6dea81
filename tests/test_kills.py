"""Runs that are killed at random moments and resumed are equal, to the bit, to runs that were not.

``KILLS=300 pytest -m slow tests/test_kills.py`` kills so many times; ``KILLS_SEED`` chooses other moments.
"""

import contextlib
import csv
import json
import multiprocessing
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch

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
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.transformer import TransformerLearner

from .minari_sets import random_episode, write_dataset
from .specs import spec_of

KILLS, SEED = int(os.environ.get("KILLS", "12")), int(os.environ.get("KILLS_SEED", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
ENDED = {0, -signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM, 128 + signal.SIGINT}
LEARNERS = {
    "transformer": TransformerLearner(),
    "iql": ImplicitQLearning(hidden_layers=1, hidden_width=8),
    "ensemble": EnsembleLearner(num_members=2, hidden_layers=1, hidden_width=8),
    "bc": BehaviorCloning(hidden_layers=1, hidden_width=8),
}
STEPS = 300


def options(learner: str) -> TrainConfig:
    """Saves, rows, validations and, where the learner acts, episodes in updates with and without each other."""
    config = TrainConfig(
        data=DataConfig("kills/pendulum-v0", discretizer=DiscretizerConfig("uniform", 10), batch_size=8),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8),
        optimizer=OptimizerConfig(learning_rate=1e-2),
        trainer=TrainerConfig(
            max_steps=STEPS, validate_every=20, checkpoint_every=3, log_every=2, progress_bar=False, threads=1
        ),
        planner=PlannerConfig(horizon=1, beam_width=4, context=1),
        evaluation=EvaluationConfig(episodes=1, num_envs=1),
    )
    config.data.sequence_length = 3
    config.learner = spec_of(LEARNERS[learner])
    if LEARNERS[learner].acts:
        config.evaluation.every, config.evaluation.every_episodes = 50, 1
    else:
        config.evaluation.episodes = 0
    return config


def train(learner: str, directory: Path) -> None:
    """Train in a process of its own, from the last checkpoint if there is one; what goes wrong is in ``errors``."""
    torch.set_num_threads(1)
    directory.mkdir(exist_ok=True)
    (directory / "began").touch()
    try:
        last = directory / "checkpoints" / "last.ckpt"
        run_training(options(learner), RunContext(directory, "python train.py", last.is_file(), commit=None))
    except KeyboardInterrupt:  # before or after training, where the command itself ends with this code
        sys.exit(130)
    except Exception:
        (directory / "errors").write_text(traceback.format_exc())
        raise


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
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Path], BaseProcess]:
    """Starts :func:`train`; all such processes are forked from one that has imported everything, which saves time."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    with gym.make("Pendulum-v1", max_episode_steps=4) as environment:
        write_dataset(
            "kills/pendulum-v0", [random_episode(12, seed, action_dim=1) for seed in range(6)], env=environment
        )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])

    def started(learner: str, directory: Path) -> BaseProcess:
        process = context.Process(target=train, args=(learner, directory))
        process.start()
        return process

    return started


@pytest.mark.slow
def test_killed_and_resumed_runs_equal_unbroken_ones(start: Callable[[str, Path], BaseProcess], tmp_path: Path) -> None:
    unbroken: dict[str, tuple[dict[str, Any], float]] = {}
    for learner in LEARNERS:
        start(learner, tmp_path / f"first {learner}").join()  # takes longer, because kernels are compiled and so on
        began = time.monotonic()
        process = start(learner, tmp_path / learner)
        process.join()
        assert process.exitcode == 0, (tmp_path / learner / "errors").read_text()
        unbroken[learner] = outcome(tmp_path / learner), time.monotonic() - began
        assert len(unbroken[learner][0]["metrics"]) >= STEPS // 2
        assert differences(unbroken[learner][0], outcome(tmp_path / f"first {learner}")) == []
    draw, kills, runs, wrong = random.Random(SEED), dict.fromkeys(SIGNALS, 0), 0, []
    while sum(kills.values()) < KILLS:
        learner = draw.choice([*LEARNERS])
        directory, history, code = tmp_path / f"run {runs}", [], None
        expected, seconds = unbroken[learner]
        while code != 0 and code in {None, *ENDED}:
            is_last = len(history) == 4 or sum(kills.values()) == KILLS
            number = None if is_last else draw.choice(SIGNALS)
            (directory / "began").unlink(missing_ok=True)
            process = start(learner, directory)
            while not (directory / "began").exists() and process.is_alive():
                time.sleep(0.001)
            process.join(None if number is None else draw.uniform(0, seconds))
            if number is not None and process.is_alive():
                os.kill(process.pid or 0, number)
                kills[number] += 1
            process.join()
            code = process.exitcode
            history.append(f"{number}: {code}")
        runs += 1
        if code == 0:
            failed = differences(expected, outcome(directory))
        else:
            errors = directory / "errors"
            failed = [errors.read_text() if errors.exists() else "no traceback"]
        wrong += [f"{directory.name} {learner} {history}: {text}" for text in failed[:3]]
    counts = ", ".join(f"{count} {number.name}" for number, count in kills.items())
    print(f"{sum(kills.values())} kills ({counts}) of {runs} runs")
    assert wrong == []
