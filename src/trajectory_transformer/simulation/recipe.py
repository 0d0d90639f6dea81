"""Recipes: an environment, the behaviours that act in it, and the reference scores of its data set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

if TYPE_CHECKING:  # the names of embedded sets are known before Gymnasium is loaded
    import gymnasium as gym

Environment: TypeAlias = "gym.Env[Any, Any]"
Controller = Callable[[Any], np.ndarray]  # newest observation to action, once per step of one episode


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
        from gymnasium.spaces import Box

        space = environment.action_space
        assert isinstance(space, Box)
        return lambda observation: generator.uniform(space.low, space.high)


@dataclass(frozen=True)
class Recipe:
    """All that is needed to simulate one embedded data set."""

    name: str  # as in recipe=NAME on the command line
    dataset_id: str  # Minari id of the data set that it writes
    env_id: str  # Gymnasium id of the environment
    behaviors: tuple[Behavior, ...]  # the mixture; each episode is acted by one of them
    default_steps: int  # environment steps simulated unless told otherwise
    reference_scores: tuple[float, float]  # returns that count as 0 and 100 % when scores are normalised
    reference_note: str  # where the two come from
    description: str  # one or two sentences stored with the data set
    arguments: Mapping[str, object] = field(default_factory=dict)  # of the environment that the behaviours act in
    evaluation_arguments: Mapping[str, object] | None = None  # of the stored one to evaluate in; None: the same

    def environment(self) -> Environment:
        """A new environment that the behaviours act in."""
        from ..environments.make import make_environment

        return make_environment(self.env_id, **self.arguments)

    def evaluation_environment(self) -> "Environment | None":
        """A new environment to evaluate in, or None where it is the behaviours' own."""
        from ..environments.make import make_environment

        if self.evaluation_arguments is None:
            return None
        return make_environment(self.env_id, **self.evaluation_arguments)

    def behavior(self, index: int) -> Behavior:
        """The behaviour of episode ``index``: golden-ratio steps through the cumulated weights.

        Thus even a short data set has the stated proportions, and neighbouring episodes differ.
        """
        shares = np.cumsum([behavior.weight for behavior in self.behaviors])
        position = (index + 0.5) * 0.6180339887498949 % 1.0
        return self.behaviors[int(np.searchsorted(shares, position * shares[-1], side="right"))]
