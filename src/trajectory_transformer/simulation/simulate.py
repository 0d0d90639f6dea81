"""Simulation of a recipe's episodes, by one or several processes with the same result."""

import contextlib
import fcntl
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import count
from typing import IO, Any

import gymnasium as gym
import numpy as np

from .recipe import Behavior, Environment, Recipe

Observations = np.ndarray | dict[str, Any]

PIPE_BYTES = 1 << 20  # buffer that lets each worker simulate some episodes ahead


@dataclass(frozen=True)
class SimulatedEpisode:
    """One episode of T steps."""

    seed: int  # seed of the environment's reset
    behavior: str  # name of the behaviour that acted
    observations: Observations  # (T + 1, …) in each leaf, of the space's type
    actions: np.ndarray  # (T, action_dim), as executed
    rewards: np.ndarray  # (T,) float64
    terminated: bool  # ended by the environment; otherwise by the time limit

    def __len__(self) -> int:
        return len(self.rewards)


def simulate_episode(environment: Environment, behavior: Behavior, seed: int, index: int) -> SimulatedEpisode:
    """Simulate episode ``index`` of the stream of ``seed``; the result depends on nothing else."""
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


def simulate_share(recipe: Recipe, seed: int, first: int = 0, stride: int = 1) -> Iterator[SimulatedEpisode]:
    """Yield episodes ``first``, ``first + stride``, … endlessly, simulated in this process."""
    with recipe.environment() as environment:
        for index in count(first, stride):
            yield simulate_episode(environment, recipe.behavior(index), seed, index)


def simulate(recipe: Recipe, seed: int, processes: int) -> Generator[SimulatedEpisode, None, None]:
    """Yield episodes 0, 1, 2, … endlessly, simulated in this process or by ``processes`` > 1 workers.

    Workers are plain subprocesses: unlike those of ``multiprocessing``, they neither run the caller's script again
    (spawn, forkserver) nor inherit its threads (fork), and a worker without a reader ends at its next write.

    Raises:
        RuntimeError: a worker died; its own message is on stderr.
    """
    if processes == 1:
        yield from simulate_share(recipe, seed)
        return
    shares = [pickle.dumps((recipe, seed, first, processes)) for first in range(processes)]
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(_worker(share)) for share in shares]
        for index in count():
            try:
                yield pickle.load(streams[index % processes])
            except (EOFError, pickle.UnpicklingError) as error:
                raise RuntimeError(f"a worker that simulates {recipe.env_id} has died") from error


@contextlib.contextmanager
def _worker(share: bytes) -> Iterator[IO[bytes]]:
    """Start a process that runs :func:`work`, and return its output; the process is killed on exit."""
    command = [sys.executable, "-c", f"from {__name__} import work; work()"]
    single_threaded = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=single_threaded) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(OSError, AttributeError):  # a smaller pipe is only slower
            fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            process.stdin.write(share)
            process.stdin.close()
            yield process.stdout
        finally:
            process.kill()


def work() -> None:
    """Run a worker: read its share from stdin, and write pickled episodes to stdout until the reader is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    share = pickle.load(sys.stdin.buffer)
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries' output goes to stderr
    try:
        for episode in simulate_share(*share):
            pickle.dump(episode, output, protocol=pickle.HIGHEST_PROTOCOL)
            output.flush()
    except BrokenPipeError:
        os._exit(0)  # closing the output would raise again


def _stack(observations: list[Any]) -> Observations:
    """Stack a list of observations to arrays (length, …), nested like the observations."""
    if isinstance(observations[0], dict):
        return {key: _stack([observation[key] for observation in observations]) for key in observations[0]}
    return np.stack(observations)
