"""Making environments by Gymnasium id, including those of gymnasium-robotics and this package."""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np

from ..ending import EXITS_BY_SIGNAL
from ..errors import UserError, in_one_line
from .spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from .watcher import Call

# Modules that register environments when they are imported.
REGISTERING_MODULES = ("gymnasium_robotics", "trajectory_transformer.simulation.maze_environment")


def make_environment(env_id: str, **arguments: Any) -> gym.Env[Any, Any]:
    """Call ``gymnasium.make`` with robotics' and our environments registered, without their notices and leftover files.

    Importing gymnasium-robotics prints a notice, and each of its mazes leaves an XML file in the temporary folder.
    MuJoCo reports a deprecated attribute of Gymnasium's HalfCheetah on stderr and in a file ``MUJOCO_LOG.TXT``.

    Raises:
        UserError: the id names a module that is not imported yet.
        Exception: whatever the environment's own code raises; also if it tries to end the process, or has no spaces.
    """
    module, colon, _ = env_id.partition(":")
    if colon and module not in sys.modules:
        raise UserError(
            f"environment '{env_id}' names a module, and a checkpoint or data set must not choose what is imported; "
            f"if it is yours, add environment.modules=[{module}], or import {module} first"
        )
    if env_id not in gym.registry:
        with contextlib.redirect_stderr(io.StringIO()):
            for module in filter(importlib.util.find_spec, REGISTERING_MODULES):
                gym.register_envs(importlib.import_module(module))
    try:
        with Call(env_id, "the constructor"), _deprecations_dropped():
            environment = gym.make(env_id, **arguments)
    except SystemExit as exit:
        if exit.code in EXITS_BY_SIGNAL:
            raise
        raise RuntimeError(f"it tried to end the process with exit code {exit.code}") from exit
    for name in ("observation_space", "action_space"):
        if not isinstance(space := getattr(environment, name, None), gym.Space):
            raise TypeError(f"its {name} is {space!r}, which is not a Gymnasium space")
    leftover = getattr(environment.unwrapped, "tmp_xml_file_path", None)
    if leftover is not None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(leftover)
    return environment


def environment_spec(env_id: str) -> EnvironmentSpec:
    """Return the spec of the environment of this Gymnasium id, made without arguments.

    Raises:
        UserError: it cannot be made, or its spaces cannot become tokens.
    """
    try:
        environment = make_environment(env_id)
    except Exception as error:  # third-party constructors raise any exception
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, (UserError, gym.error.Error, ImportError)):
            raise UserError.of_own_code(f"environment '{env_id}' cannot be made ({reason})", error) from error
        raise UserError(
            f"environment '{env_id}' cannot be made ({reason}); give a registered Gymnasium id, install the package "
            "that registers it, or add environment.modules=[my_package] if a module of yours does"
        ) from error
    with _closing(env_id, environment):
        try:
            observation, action = space_spec(environment.observation_space), space_spec(environment.action_space)
        except UserError as error:
            raise UserError(f"environment '{env_id}': {error}") from error
        stored = None
        if environment.spec is not None:
            with contextlib.suppress(ValueError, TypeError):  # registered with what has no text; the id is enough
                stored = environment.spec.to_json()
        return EnvironmentSpec(env_id, stored, observation, action)


@contextlib.contextmanager
def _closing(env_id: str, environment: gym.Env[Any, Any]) -> Iterator[None]:
    """Close an environment at the end, watched; UserError if that fails."""
    try:
        yield
    finally:
        try:
            with Call(env_id, "close()"):
                environment.close()
        except SystemExit as exit:
            if exit.code in EXITS_BY_SIGNAL:
                raise
            raise UserError(f"environment '{env_id}': close() tried to end the process") from exit
        except Exception as error:  # third-party code raises any exception
            message = f"environment '{env_id}': close() fails ({in_one_line(error)})"
            raise UserError.of_own_code(message, error) from error


def space_spec(space: gym.Space) -> SpaceSpec:
    """Describe a Box, a Discrete, or a (nested) Dict of them; other spaces in a Dict get no dimensions.

    Raises:
        UserError: another kind of space, or a space without any dimension.
    """
    spec = SpaceSpec(tuple(_leaves(space, ())))
    if spec.size == 0:
        other = next((leaf for leaf in spec.leaves if not leaf.usable), None)
        if other is None:
            raise UserError(f"the space {space} has no dimension")
        where = f"key '{other.key}'" if other.path else "the space"
        raise UserError(f"{where} is a {other.kind} space; only Box, Discrete and Dict spaces become tokens")
    return spec


def _leaves(space: gym.Space, path: tuple[str, ...]) -> list[SpaceLeaf]:
    if isinstance(space, gym.spaces.Dict):
        if other := [key for key in space.spaces if not isinstance(key, str)]:
            raise UserError(f"key {other[0]!r} of the space is not a text; Dict spaces need texts as keys")
        return [leaf for key in sorted(space.spaces) for leaf in _leaves(space.spaces[key], (*path, key))]
    if isinstance(space, gym.spaces.Box):
        low, high = (tuple(bound.astype(np.float64).ravel().tolist()) for bound in (space.low, space.high))
        return [SpaceLeaf(path, "box", tuple(space.shape), low, high, space.dtype.name)]
    if isinstance(space, gym.spaces.Discrete):
        first = float(space.start)
        return [SpaceLeaf(path, "discrete", (), (first,), (first + float(space.n) - 1.0,), space.dtype.name)]
    return [SpaceLeaf(path, type(space).__name__, (), (), ())]


@contextlib.contextmanager
def _deprecations_dropped() -> Iterator[None]:
    """Silence MuJoCo's warnings about deprecated attributes, about which the user can do nothing."""

    def warn(message: str) -> None:
        if "deprecated" not in message:
            print(f"WARNING: {message}", file=sys.stderr)

    library: Any = mujoco  # its stubs lack these functions
    previous = library.get_mju_user_warning()
    library.set_mju_user_warning(warn)
    try:
        yield
    finally:
        library.set_mju_user_warning(previous)
