"""The layout of a transition's tokens, [observation | action | reward | value]; no other module defines it."""

from dataclasses import dataclass
from itertools import pairwise

TOKEN_KINDS = ("observation", "action", "reward", "value")


@dataclass(frozen=True)
class TransitionLayout:
    """Dimensions of one transition, in token order.

    ::

        position   0 … O-1        O … O+A-1    O+A       O+A+1
                   observation    action       reward    value (discounted return-to-go from the next step on)
    """

    observation_dim: int  # O ≥ 1
    action_dim: int  # A ≥ 1

    def __post_init__(self) -> None:
        if self.observation_dim < 1 or self.action_dim < 1:
            raise ValueError(
                f"observation_dim and action_dim must be at least 1, got {self.observation_dim} and {self.action_dim}"
            )

    @property
    def transition_dim(self) -> int:
        """Tokens of one transition: O + A + 2."""
        return self.observation_dim + self.action_dim + 2

    @property
    def observation(self) -> slice:
        return slice(0, self.observation_dim)

    @property
    def action(self) -> slice:
        return slice(self.observation_dim, self.observation_dim + self.action_dim)

    @property
    def reward(self) -> int:
        return self.observation_dim + self.action_dim

    @property
    def value(self) -> int:
        return self.observation_dim + self.action_dim + 1

    def kind_slices(self) -> dict[str, slice]:
        """The columns of each of :data:`TOKEN_KINDS`."""
        starts = (0, self.observation_dim, self.reward, self.value, self.transition_dim)
        return {kind: slice(*ends) for kind, ends in zip(TOKEN_KINDS, pairwise(starts), strict=True)}

    def block_size(self, sequence_length: int) -> int:
        """Return the number of input tokens for ``sequence_length`` transitions; the last token is only a target."""
        return sequence_length * self.transition_dim - 1
