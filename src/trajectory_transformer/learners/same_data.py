"""Networks that stand beside a transformer must have been trained on what it was trained on."""

from collections.abc import Mapping
from typing import Any, Protocol

from ..configuration import require
from ..environments.spec import EnvironmentSpec


class Recorded(Protocol):
    """A trained network with what its checkpoint records; :class:`~.critic.Critic` is one."""

    @property
    def environment(self) -> EnvironmentSpec: ...

    @property
    def dataset(self) -> Mapping[str, Any]:
        """With "ids" and "fingerprint"."""
        ...


def require_same_data(option: str, trained: Recorded, environment: EnvironmentSpec, fingerprint: str) -> None:
    """Refuse a network of other dimensions or other data than the transformer's.

    Args:
        option: that named the network, such as ``planner.critic``.
        trained: the network.
        environment, fingerprint: of the transformer's data.

    Raises:
        UserError: naming the difference.
    """
    theirs = trained.environment
    for what, other, own in (
        ("observation", theirs.observation_dim, environment.observation_dim),
        ("action", theirs.action_dim, environment.action_dim),
    ):
        require(
            other == own,
            f"{option} has {other} {what} dimensions, the checkpoint's model {own}; train both on one data set",
        )
    require(
        trained.dataset["fingerprint"] == fingerprint,
        f"{option} was trained on other data ({', '.join(trained.dataset['ids'])}) than the checkpoint's model; "
        "train both on one data set",
    )
    require(
        theirs.observation_indices == environment.observation_indices,
        f"{option} sees the observation's dimensions {theirs.observation_indices}, the checkpoint's model "
        f"{environment.observation_indices}; train both with the same data.observation_indices",
    )


def require_same_split(option: str, theirs: tuple[int, float], ours: tuple[int, float]) -> None:
    """Refuse a network that other episodes were held out from than from the transformer.

    Args:
        option: that named the network.
        theirs, ours: seed and validation fraction of each.

    Raises:
        UserError: naming the difference.
    """
    for name, other, own in zip(("seed", "data.validation_fraction"), theirs, ours, strict=True):
        require(
            other == own,
            f"{option} was trained with {name}={other}, the checkpoint's model with {own}: it may have seen episodes "
            "that were held out from the model; train both alike",
        )
