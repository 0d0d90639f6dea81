"""A trained critic: the networks of implicit Q-learning, and the units of their values."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..checkpoint import Checkpoint, fitting_parts
from ..configuration import IqlConfig
from ..environments.spec import EnvironmentSpec
from .iql_network import ImplicitQ


@dataclass(frozen=True)
class Critic:
    """Trained networks with all that gives their values a meaning."""

    network: ImplicitQ  # in evaluation mode, without gradients
    reward_scale: float  # the networks know a reward r as ``reward_scale * r + reward_shift``
    reward_shift: float
    discount: float  # of their values
    environment: EnvironmentSpec  # the spaces of the data, and the environment to act in

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Critic":
        """The critic in a file; raises as :meth:`of`, and where the file is no good."""
        return cls.of(Checkpoint.read(path), device)

    @classmethod
    def of(cls, checkpoint: Checkpoint, device: str = "cpu") -> "Critic":
        """The critic in a checkpoint; UserError if it holds something else, or its parts do not fit together."""
        checkpoint.require_kind("iql")
        environment = checkpoint.training.environment
        with fitting_parts(checkpoint.name):
            options = dict(checkpoint.model)
            transform = float(options.pop("reward_scale")), float(options.pop("reward_shift"))
            sizes = IqlConfig(**options)
        network = checkpoint.build("network", partial(ImplicitQ.of_environment, environment, sizes))
        network.to(device).eval().requires_grad_(False)
        return cls(network, *transform, checkpoint.training.data.discount, environment)
