"""train.py's entry point called within the test's process, with training replaced by a recorder."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trajectory_transformer.app import entry_point, experiment
from trajectory_transformer.configuration import TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def process_restored() -> Iterator[None]:
    """The variables and the level of the root logger that a command sets in this process are restored."""
    environment, level = dict(os.environ), logging.root.level
    yield
    os.environ.clear()
    os.environ.update(environment)
    logging.root.setLevel(level)


class Runs:
    """Replaces training: records its calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[TrainConfig, experiment.RunContext]] = []
        self.error: BaseException | None = None
        self.signal: int | None = None

    def __call__(self, config: TrainConfig, run: experiment.RunContext) -> float:
        self.calls.append((config, run))
        if self.signal is not None:
            signal.raise_signal(self.signal)
        if self.error is not None:
            raise self.error
        return float(config.seed)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(experiment, "run_training", stand_in := Runs())
    return stand_in


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Calls train.py's entry point within this process, in an empty working directory; returns the exit code."""
    return command("train", monkeypatch, tmp_path)


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """As :func:`train`, for evaluate.py."""
    return command("evaluate", monkeypatch, tmp_path)


def command(name: str, monkeypatch: pytest.MonkeyPatch, directory: Path) -> Callable[..., int]:
    monkeypatch.chdir(directory)

    def call(*arguments: str, configs: Path = CONFIGS) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            entry_point(name, configs)
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call
