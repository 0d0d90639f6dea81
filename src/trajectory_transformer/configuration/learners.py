"""Options of the learners beside the transformer, checked without torch."""

from dataclasses import dataclass

from .validation import require, require_choice, require_finite

REWARDS = ("scaled", "minus_one", "raw")


@dataclass
class IqlConfig:
    """Implicit Q-learning (Kostrikov, Nair, Levine 2021), with its paper's settings for locomotion."""

    hidden_layers: int = 2  # of each network
    hidden_width: int = 256
    expectile: float = 0.7  # of Q that V regresses to; AntMaze: 0.9
    inverse_temperature: float = 3.0  # of the advantage weights; AntMaze: 10
    max_weight: float = 100.0  # advantage weights are clipped there
    target_rate: float = 0.005  # share of the new Q networks in their targets, at each update
    rewards: str = "scaled"  # scaled: by 1000 / (best − worst return of the training data); minus_one; raw

    def __post_init__(self) -> None:
        require_finite("learner", self)
        for name in ("hidden_layers", "hidden_width"):
            require(getattr(self, name) >= 1, f"learner.{name}={getattr(self, name)} must be at least 1")
        require(0.0 < self.expectile < 1.0, f"learner.expectile={self.expectile} must lie in (0, 1)")
        require(0.0 < self.target_rate <= 1.0, f"learner.target_rate={self.target_rate} must lie in (0, 1]")
        for name in ("inverse_temperature", "max_weight"):
            require(getattr(self, name) > 0, f"learner.{name}={getattr(self, name)} must be positive")
        require_choice("learner.rewards", self.rewards, REWARDS)


@dataclass
class EnsembleConfig:
    """A probabilistic ensemble of dynamics models (PETS, Chua et al. 2018), in the size that MBPO made usual."""

    num_members: int = 5
    hidden_layers: int = 4
    hidden_width: int = 200
    bound_weight: float = 0.005  # on the spread of the bounds; PETS: 0.01, beside twice the log-likelihood

    def __post_init__(self) -> None:
        require_finite("learner", self)
        for name in ("num_members", "hidden_layers", "hidden_width"):
            require(getattr(self, name) >= 1, f"learner.{name}={getattr(self, name)} must be at least 1")
        require(self.bound_weight >= 0, f"learner.bound_weight={self.bound_weight} must not be negative")
