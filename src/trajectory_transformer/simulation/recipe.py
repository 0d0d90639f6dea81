"""Recipes: an environment, the behaviours that act in it, and the reference scores of its data set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:  # so that names of embedded sets are known without loading Gymnasium
    import gymnasium as gym

Environment: TypeAlias = "gym.Env[Any, Any]"
Controller = Callable[[Any], np.ndarray]  # maps the latest observation to an action, once per step of an episode


class Behavior(Protocol):
    """A behaviour; ``weight`` is its share of the episodes, relative to the recipe's other behaviours."""

    @property
    def name(self) -> str: ...

    @property
    def weight(self) -> float: ...

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        """Return a controller for the episode to which ``environment`` has just been reset."""
        ...


@dataclass(frozen=True)
class UniformBehavior:
    """Uniformly random actions: the random policy of the reference scores."""

    name: str = "random"
    weight: float = 1.0

    def controller(self, environment: Environment, generator: np.random.Generator) -> Controller:
        from gymnasium.spaces import Box

        space = environment.action_space
        assert isinstance(space, Box)
        return lambda observation: generator.uniform(space.low, space.high)


@dataclass(frozen=True)
class Recipe:
    """Description of an embedded data set, sufficient to simulate it."""

    name: str  # NAME in recipe=NAME on the command line
    dataset_id: str  # Minari id of the data set that it writes
    env_id: str  # Gymnasium id of the environment
    behaviors: tuple[Behavior, ...]  # the mixture; each episode follows one of them
    default_steps: int  # environment steps simulated by default
    reference_scores: tuple[float, float]  # returns that count as 0 and 100 % when scores are normalised
    reference_note: str  # origin of the two scores
    description: str  # one or two sentences stored with the data set
    arguments: Mapping[str, object] = field(default_factory=dict)  # arguments of the behaviours' environment
    evaluation_arguments: Mapping[str, object] | None = None  # those for evaluation; None: the same

    def environment(self) -> Environment:
        """Make an environment for the behaviours."""
        from ..environments.make import make_environment

        return make_environment(self.env_id, **self.arguments)

    def evaluation_environment(self) -> "Environment | None":
        """Make an environment for evaluation; None if it is the behaviours' environment."""
        from ..environments.make import make_environment

        if self.evaluation_arguments is None:
            return None
        return make_environment(self.env_id, **self.evaluation_arguments)

    def behavior(self, index: int) -> Behavior:
        """Return the behaviour of episode ``index``, by golden-ratio steps through the cumulative weights.

        Even a short data set thus has the stated proportions, and neighbouring episodes differ.
        """
        shares = np.cumsum([behavior.weight for behavior in self.behaviors])
        position = (index + 0.5) * 0.6180339887498949 % 1.0
        return self.behaviors[int(np.searchsorted(shares, position * shares[-1], side="right"))]
