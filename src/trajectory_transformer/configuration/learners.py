"""Options of the learners beside the transformer, checked without torch."""

from dataclasses import dataclass

from .validation import LARGEST, require_choice, validate, within

REWARDS = ("scaled", "minus_one", "raw")


@dataclass
class IqlConfig:
    """Implicit Q-learning (Kostrikov, Nair, Levine 2021), with its paper's settings for locomotion."""

    hidden_layers: int = within(2, 1, 1000)  # of each network
    hidden_width: int = within(256, 1, 65_536)
    expectile: float = within(0.7, above=0.0, below=1.0)  # of Q that V regresses to; AntMaze: 0.9
    inverse_temperature: float = within(3.0, high=LARGEST, above=0.0)  # of the advantage weights; AntMaze: 10
    max_weight: float = within(100.0, high=LARGEST, above=0.0)  # advantage weights are clipped there
    target_rate: float = within(
        0.005, high=1.0, above=0.0
    )  # share of the new Q networks in their targets, at each update
    rewards: str = "scaled"  # scaled: by 1000 / (best − worst return of the training data); minus_one; raw

    def __post_init__(self) -> None:
        validate("learner.", self)
        require_choice("learner.rewards", self.rewards, REWARDS)


@dataclass
class EnsembleConfig:
    """A probabilistic ensemble of dynamics models (PETS, Chua et al. 2018), in the size that MBPO made usual."""

    num_members: int = within(5, 1, 1000)
    hidden_layers: int = within(4, 1, 1000)
    hidden_width: int = within(200, 1, 65_536)
    bound_weight: float = within(
        0.005, 0.0, LARGEST
    )  # on the spread of the bounds; PETS: 0.01, beside twice the log-likelihood

    def __post_init__(self) -> None:
        validate("learner.", self)
