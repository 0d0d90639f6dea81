"""Recipes: an environment, the behaviours that act in it, and the reference scores of its data set."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from ..environments.make import make_environment

Environment = gym.Env[Any, Any]


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
