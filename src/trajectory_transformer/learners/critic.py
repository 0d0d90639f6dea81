"""What a checkpoint of implicit Q-learning holds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import SECTION, read_checkpoint, require_kind, weights_of
from ..configuration import IqlConfig
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .iql import ImplicitQ


@dataclass(frozen=True)
class Critic:
    """Trained networks with all that gives their values a meaning.

    Attributes:
        network: in evaluation mode, without gradients.
        reward_scale, reward_shift: the networks know a reward r as ``reward_scale * r + reward_shift``.
        discount: of their values.
        environment: the spaces of the data, and the environment to act in.
        dataset: what the checkpoint records of the data: "ids", "fingerprint", "returns" and more.
    """

    network: ImplicitQ
    reward_scale: float
    reward_shift: float
    discount: float
    environment: EnvironmentSpec
    dataset: Mapping[str, Any]

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> "Critic":
        """Read a checkpoint.

        Raises:
            UserError: the file is no good, or holds something other than a critic.
        """
        contents = read_checkpoint(path)
        require_kind(contents, "iql", f"'{path}'")
        return cls.from_contents(contents, device)

    @classmethod
    def from_contents(cls, contents: Mapping[str, Any], device: str = "cpu") -> "Critic":
        """From what :func:`~..checkpoint.read_checkpoint` returned.

        Raises:
            UserError: the contents do not fit together, or are no critic's.
        """
        require_kind(contents, "iql")
        record = contents[SECTION]
        try:
            options = dict(record["model"])
            transform = float(options.pop("reward_scale")), float(options.pop("reward_shift"))
            environment = EnvironmentSpec.from_dict(record["environment"])
            network = ImplicitQ.of_environment(environment, IqlConfig(**options))
            network.load_state_dict(weights_of(contents, "network"))
            discount, dataset = float(record["data"]["discount"]), record["dataset"]
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise UserError(f"the checkpoint's contents do not fit together: {error}") from error
        network.to(device).eval().requires_grad_(False)
        return cls(network, *transform, discount, environment, dataset)
