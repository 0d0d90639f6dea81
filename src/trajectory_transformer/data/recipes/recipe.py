"""What a recipe is: an environment, the behaviours that act in it, and the reference scores of its data set."""

import contextlib
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import mujoco
import numpy as np

Environment = gym.Env[Any, Any]

# Packages that register environments when they are imported, and what to install for them.
REGISTERING_PACKAGES = {"gymnasium_robotics": "gymnasium-robotics"}
OWN_ENVIRONMENTS = "trajectory_transformer.data.recipes.maze_environment"


class Controller(Protocol):
    """Acts through one episode; called once per step with the newest observation."""

    def __call__(self, observation: Any) -> np.ndarray: ...


class Behavior(Protocol):
    """One way of acting. ``weight`` is its share of the episodes, relative to the recipe's other behaviours."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        """A controller for the episode that ``environment`` has just been reset to."""
        ...


@dataclass(frozen=True)
class UniformBehavior:
    """Uniformly random actions: the random policy of the reference scores."""

    name: str = "random"
    weight: float = 1.0

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        space = environment.action_space
        assert isinstance(space, gym.spaces.Box)
        return lambda observation: generator.uniform(space.low, space.high)


@dataclass(frozen=True)
class Recipe:
    """All that is needed to simulate one embedded data set.

    Attributes:
        name: what ``recipe=`` names on the command line.
        dataset_id: Minari id of the data set that it writes.
        env_id: Gymnasium id of the environment.
        behaviors: the mixture; each episode is acted by one of them.
        default_steps: environment steps simulated unless told otherwise.
        reference_scores: (minimum, maximum) return that count as 0 and 100 % when scores are normalised.
        reference_note: where the two come from.
        description: one or two sentences stored with the data set.
        arguments: of the environment that the behaviours act in.
        evaluation_arguments: of the environment to evaluate in, which is stored with the data set; None: the same.
    """

    name: str
    dataset_id: str
    env_id: str
    behaviors: tuple[Behavior, ...]
    default_steps: int
    reference_scores: tuple[float, float]
    reference_note: str
    description: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    evaluation_arguments: Mapping[str, object] | None = None

    def environment(self) -> Environment:
        """A new environment that the behaviours act in."""
        return make_environment(self.env_id, **self.arguments)

    def evaluation_environment(self) -> Environment | None:
        """A new environment to evaluate in, or None where it is the behaviours' own."""
        if self.evaluation_arguments is None:
            return None
        return make_environment(self.env_id, **self.evaluation_arguments)

    def behavior(self, index: int) -> Behavior:
        """The behaviour of episode ``index``.

        Golden-ratio steps through the cumulated weights, so that even a short data set has the stated proportions and
        neighbouring episodes differ.
        """
        shares = np.cumsum([behavior.weight for behavior in self.behaviors])
        position = (index + 0.5) * 0.6180339887498949 % 1.0
        return self.behaviors[int(np.searchsorted(shares, position * shares[-1], side="right"))]


def make_environment(env_id: str, **arguments: Any) -> Environment:
    """``gymnasium.make`` with the robotics environments and ours registered, and without what they leave behind.

    Importing gymnasium-robotics prints a notice on stderr, and each of its mazes leaves an XML file in the temporary
    folder, which nothing reads again once MuJoCo has loaded it. Gymnasium's model of HalfCheetah has an attribute that
    MuJoCo calls deprecated, on stderr and in a file ``MUJOCO_LOG.TXT``.

    Args:
        env_id: Gymnasium id.
        arguments: of ``gymnasium.make``.
    """
    if env_id not in gym.registry:
        with contextlib.redirect_stderr(io.StringIO()):
            for module in filter(importlib.util.find_spec, (*REGISTERING_PACKAGES, OWN_ENVIRONMENTS)):
                gym.register_envs(importlib.import_module(module))
    with _deprecations_dropped():
        environment = gym.make(env_id, **arguments)
    leftover = getattr(environment.unwrapped, "tmp_xml_file_path", None)
    if leftover is not None:
        with contextlib.suppress(FileNotFoundError):
            os.remove(leftover)
    return environment


@contextlib.contextmanager
def _deprecations_dropped() -> Iterator[None]:
    """Let MuJoCo say anything about a model but that it is of an older style, which its user cannot mend."""

    def tell(message: str) -> None:
        if "deprecated" not in message:
            print(f"WARNING: {message}", file=sys.stderr)

    library: Any = mujoco  # whose stubs leave these functions out
    previous = library.get_mju_user_warning()
    library.set_mju_user_warning(tell)
    try:
        yield
    finally:
        library.set_mju_user_warning(previous)
