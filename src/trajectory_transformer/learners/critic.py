"""A trained critic: networks of implicit Q-learning, with their units of reward."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint import Checkpoint, fitting_parts
from ..environments.spec import EnvironmentSpec
from .iql import ImplicitQLearning
from .iql_network import ImplicitQ


@dataclass(frozen=True)
class Critic:
    """Trained networks of implicit Q-learning, with what is needed to interpret their values."""

    network: ImplicitQ  # in evaluation mode, without gradients
    reward_scale: float  # the networks were trained on ``reward_scale * r + reward_shift`` for rewards r
    reward_shift: float
    discount: float  # of the values
    environment: EnvironmentSpec  # the spaces of the data, and the environment to act in

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Critic":
        """Load the critic of a checkpoint file; UserError as in :meth:`of`, or if the file is invalid."""
        return cls.of(Checkpoint.read(path), device)

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "cpu") -> "Critic":
        """Load the critic of a checkpoint; UserError if it is of another kind, or its parts do not fit together."""
        checkpoint.require_kind("iql")
        environment = checkpoint.training.environment
        with fitting_parts(checkpoint.name):
            options = dict(checkpoint.model)
            transform = float(options.pop("reward_scale")), float(options.pop("reward_shift"))
            learner = ImplicitQLearning(**options)
        network = checkpoint.build("network", partial(ImplicitQ, environment, learner))
        network.to(device).eval().requires_grad_(False)
        return cls(network, *transform, checkpoint.training.data.discount, environment)
