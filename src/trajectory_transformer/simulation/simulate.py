"""Simulated episodes of a recipe, one after the other, by one process or by several with the same result."""

import contextlib
import fcntl
import os
import pickle
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import gymnasium as gym
import numpy as np

from .recipe import Behavior, Environment, Recipe

Observations = np.ndarray | dict[str, Any]

PIPE_BYTES = 1 << 20  # lets each worker simulate some episodes ahead


@dataclass(frozen=True)
class SimulatedEpisode:
    """One episode of T steps.

    Attributes:
        seed: the environment's reset seed.
        behavior: name of the behaviour that acted.
        observations: (T + 1, …) in each leaf, of the space's own type.
        actions: (T, action_dim), as executed.
        rewards: (T,) float64.
        terminated: the environment ended it; otherwise the time limit did.
    """

    seed: int
    behavior: str
    observations: Observations
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool

    def __len__(self) -> int:
        return len(self.rewards)


def simulate_episode(environment: Environment, behavior: Behavior, seed: int, index: int) -> SimulatedEpisode:
    """Episode ``index`` of the stream that ``seed`` starts; it depends on nothing else."""
    sequence = np.random.SeedSequence((seed, index))
    reset_seed = int(sequence.generate_state(1)[0] >> 1)
    generator = np.random.default_rng(sequence.spawn(1)[0])
    space = environment.action_space
    assert isinstance(space, gym.spaces.Box)
    observation, _ = environment.reset(seed=reset_seed)
    controller = behavior.controller(environment, generator)
    observations, actions, rewards = [observation], [], []
    terminated = truncated = False
    while not (terminated or truncated):
        action = np.clip(controller(observation), space.low, space.high).astype(space.dtype)
        observation, reward, terminated, truncated, _ = environment.step(action)
        observations.append(observation)
        actions.append(action)
        rewards.append(float(reward))
    return SimulatedEpisode(
        reset_seed, behavior.name, _stack(observations), np.stack(actions), np.array(rewards), bool(terminated)
    )


def simulate_share(
    recipe: Recipe, seed: int, first: int = 0, stride: int = 1
) -> Generator[SimulatedEpisode, None, None]:
    """Episodes ``first``, ``first + stride``, … in this process, without end."""
    environment = recipe.environment()
    try:
        for index in count(first, stride):
            yield simulate_episode(environment, recipe.behavior(index), seed, index)
    finally:
        environment.close()


def simulate(recipe: Recipe, seed: int, processes: int) -> Generator[SimulatedEpisode, None, None]:
    """Episodes 0, 1, 2, … without end; ``processes`` > 1 shares them out among that many other processes.

    The workers are plain subprocesses rather than ``multiprocessing``: they neither run the caller's script again, as
    spawn and forkserver do, which needs a guard in it, nor inherit its threads, as fork does; and a worker whose reader
    is gone ends at its next write.

    Raises:
        RuntimeError: a worker died; its own message is on stderr.
    """
    if processes == 1:
        yield from simulate_share(recipe, seed)
        return
    with ExitStack() as stack:
        streams = [
            stack.enter_context(_worker(pickle.dumps((recipe, seed, first, processes)))) for first in range(processes)
        ]
        for index in count():
            try:
                yield pickle.load(streams[index % processes])
            except (EOFError, pickle.UnpicklingError) as error:
                raise RuntimeError(f"a worker that simulates {recipe.env_id} has died") from error


@contextlib.contextmanager
def _worker(job: bytes) -> Iterator[IO[bytes]]:
    """The output of a worker process that simulates one share; it is killed on leaving."""
    command = [sys.executable, "-m", f"{__package__}.worker"]
    single_threaded = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=single_threaded)
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError, AttributeError):  # a smaller pipe only makes it slower
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    try:
        process.stdin.write(job)
        process.stdin.close()
        yield process.stdout
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def _stack(observations: list[Any]) -> Observations:
    """A list of observations as arrays (length, …), nested as the observations are."""
    if isinstance(observations[0], dict):
        return {key: _stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
