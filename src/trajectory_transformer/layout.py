"""The layout of a transition: the only owner of [observation | action | reward | value]."""

from dataclasses import dataclass

TOKEN_KINDS = ("observation", "action", "reward", "value")


@dataclass(frozen=True)
class TransitionLayout:
    """Dimensions of one transition, in token order.

    ::

        position   0 … O-1        O … O+A-1    O+A       O+A+1
                   observation    action       reward    value (discounted return-to-go, without the reward itself)

    Attributes:
        observation_dim: number of observation dimensions O, at least 1.
        action_dim: number of action dimensions A, at least 1.
    """

    observation_dim: int
    action_dim: int

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
        return {
            "observation": self.observation,
            "action": self.action,
            "reward": slice(self.reward, self.reward + 1),
            "value": slice(self.value, self.value + 1),
        }

    def block_size(self, sequence_length: int) -> int:
        """Tokens that a model trained on windows of ``sequence_length`` transitions sees: the last one is a target."""
        return sequence_length * self.transition_dim - 1
