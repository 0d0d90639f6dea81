"""Environments that hang or end the process, in processes of their own whose standard error is read."""

import collections
import contextlib
import ctypes
import faulthandler
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import pytest
from typing_extensions import override

from trajectory_transformer.environments import watcher
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.make import environment_spec

STEP = r"step\(\) of environment 'Stuck-v0' \(episode 2\)"


class Stuck(gym.Env):
    """Its third step is ``how``."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (1,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
    how: Any = None
    closes: Any = staticmethod(lambda: None)
    steps = 0

    @override
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(1, np.float32), {}

    @override
    def step(self, action: Any) -> Any:
        Stuck.steps += 1
        if Stuck.steps == 3:
            Stuck.how()
        return np.zeros(1, np.float32), 0.0, False, False, {}

    @override
    def close(self) -> None:
        Stuck.closes()


def exits() -> None:
    ctypes.CDLL(None)._exit(0)


def exits_in_python() -> NoReturn:
    os._exit(0)


def forks() -> None:
    if not (child := os.fork()):
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0


def sleeps() -> None:
    time.sleep(60)


def keeps_the_interpreter() -> None:
    collections.deque(itertools.repeat(None, 10**12), maxlen=0)


def swallows_exceptions() -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(BaseException):
            time.sleep(0.1)


def act(how: Callable[[], Any], directory: Path) -> None:
    """Steps an environment four times as a run does that obeys SIGTERM."""
    Stuck.how = staticmethod(how)
    prepare(directory)
    with make_environments(environment_spec("Stuck-v0"), 1) as batch:
        batch.place = lambda row, function: "episode 2"
        batch.reset(0, seed=0)
        for _ in range(4):
            batch.step(np.zeros((1, 1)), np.ones(1, dtype=bool))


def look(how: Callable[[], Any], directory: Path) -> None:
    """Takes the spaces of an environment whose ``close()`` is ``how``."""
    Stuck.closes = staticmethod(how)
    prepare(directory)
    environment_spec("Stuck-v0")


def prepare(directory: Path) -> None:
    """Standard error goes to a file, SIGTERM ends the process in good order, calls of 0.2 s are named."""

    def leave(*_: Any) -> NoReturn:
        raise SystemExit(143)

    descriptor = os.open(directory / "told", os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    faulthandler.disable()  # pytest's, which tells of crashes too
    signal.signal(signal.SIGTERM, leave)
    watcher.SECONDS, watcher.STUBBORN = 0.2, 0.2
    watcher.report_to(directory / "status.json")


Started = Callable[..., BaseProcess]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    made: Any = Stuck
    gym.register("Stuck-v0", made, max_episode_steps=10)
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", "parameters": {}, "score": None}))
    processes: list[BaseProcess] = []

    def start(how: Callable[[], Any], what: Callable[..., None] = act) -> BaseProcess:
        processes.append(multiprocessing.get_context("fork").Process(target=what, args=(how, tmp_path)))
        processes[0].start()
        return processes[0]

    yield start
    for process in processes:
        process.kill()
        process.join()
    gym.registry.pop("Stuck-v0")


def awaited(directory: Path, words: str) -> None:
    """Wait until these words are told."""
    end = time.monotonic() + 60
    while not re.search(words, told := (directory / "told").read_text() if (directory / "told").exists() else ""):
        assert time.monotonic() < end, told
        time.sleep(0.02)


def status(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "status.json").read_text())


@pytest.mark.parametrize("how", [exits, lambda: ctypes.string_at(0)], ids=["_exit", "crash"])
def test_an_environment_that_ends_the_process_is_named(
    tmp_path: Path, started: Started, how: Callable[[], Any]
) -> None:
    (tmp_path / "episodes.csv").touch()
    started(how).join(60)
    awaited(tmp_path, rf"^error: the process ended within {STEP}, .*episodes\.csv has the finished episodes\n$")
    while (found := status(tmp_path))["status"] == "running":
        time.sleep(0.02)
    assert found["status"] == "failed"
    assert re.match(f"the process ended within {STEP}", found["reason"])


@pytest.mark.parametrize(("what", "place"), [(act, "batch.step("), (look, "close() fails")])
def test_os_exit_in_an_environment_is_a_failure_that_is_named(
    tmp_path: Path, started: Started, what: Callable[..., None], place: str
) -> None:
    process = started(exits_in_python, what)
    process.join(60)
    assert process.exitcode == 1
    told = (tmp_path / "told").read_text()
    assert "it tried to end the process by os._exit(0)" in told
    assert place in told


def test_a_close_that_hangs_while_the_spaces_are_taken_is_named(tmp_path: Path, started: Started) -> None:
    started(sleeps, look)
    awaited(tmp_path, r"^close\(\) of environment 'Stuck-v0' has been running for \d s\n")


def test_one_that_hangs_is_named_and_obeys_a_signal(tmp_path: Path, started: Started) -> None:
    process = started(sleeps)
    awaited(tmp_path, rf"^{STEP} has been running for \d s\n")
    process.terminate()
    process.join(30)
    assert process.exitcode == 143
    assert "error" not in (tmp_path / "told").read_text()
    assert status(tmp_path)["status"] == "running"  # the command itself notes an interruption


@pytest.mark.parametrize("how", [keeps_the_interpreter, swallows_exceptions])
def test_a_second_signal_kills_one_that_does_not_end_at_the_first(
    tmp_path: Path, started: Started, how: Callable[[], Any]
) -> None:
    process = started(how)
    awaited(tmp_path, f"{STEP} has been running")
    process.terminate()
    awaited(tmp_path, "a second one .* kills this process")
    process.terminate()
    process.join(30)
    assert process.exitcode == -signal.SIGKILL
    awaited(tmp_path, rf"killed at the second SIGTERM: {STEP} did not end")
    while status(tmp_path)["status"] == "running":
        time.sleep(0.02)
    assert status(tmp_path)["status"] == "interrupted"


@pytest.mark.parametrize("how", [lambda: None, forks], ids=["returns", "forks"])
def test_nothing_is_told_of_a_run_that_ends(tmp_path: Path, started: Started, how: Callable[[], Any]) -> None:
    process = started(how)
    process.join(60)
    assert process.exitcode == 0
    time.sleep(0.3)
    assert (tmp_path / "told").read_text() == ""
    assert status(tmp_path)["status"] == "running"
