"""Options of the learners other than the transformer, checked without torch."""

from dataclasses import dataclass

from .validation import LARGEST, one_of, validate, within

REWARDS = ("scaled", "minus_one", "raw")


@dataclass
class IqlConfig:
    """Implicit Q-learning (Kostrikov, Nair, Levine 2021), with its paper's settings for locomotion."""

    hidden_layers: int = within(2, 1, 1000)
    """Hidden layers of each network."""
    hidden_width: int = within(256, 1, 65_536)
    """Units per hidden layer."""
    expectile: float = within(0.7, above=0.0, below=1.0)
    """Expectile of Q to which V is regressed; the paper has 0.7 for locomotion and 0.9 for AntMaze."""
    inverse_temperature: float = within(3.0, high=LARGEST, above=0.0)
    """Inverse temperature of the advantage weights; the paper has 3 for locomotion and 10 for AntMaze."""
    max_weight: float = within(100.0, high=LARGEST, above=0.0)
    """Upper limit of an advantage weight."""
    target_rate: float = within(0.005, high=1.0, above=0.0)
    """Weight of the current Q networks in the moving average of the target networks, at each update."""
    rewards: str = one_of("scaled", REWARDS)
    """Rewards to learn from: scaled multiplies by 1000 / (best − worst return of the training data), minus_one
    subtracts 1, raw leaves them as recorded."""

    def __post_init__(self) -> None:
        validate("learner.", self)


@dataclass
class EnsembleConfig:
    """A probabilistic ensemble of dynamics models (PETS, Chua et al. 2018), with the sizes of MBPO."""

    num_members: int = within(5, 1, 1000)
    """Networks in the ensemble."""
    hidden_layers: int = within(4, 1, 1000)
    """Hidden layers of each network."""
    hidden_width: int = within(200, 1, 65_536)
    """Units per hidden layer."""
    bound_weight: float = within(0.005, 0.0, LARGEST)
    """Loss weight of the distance between the bounds of the log-variance; PETS has 0.01, with the log-likelihood
    doubled."""

    def __post_init__(self) -> None:
        validate("learner.", self)
