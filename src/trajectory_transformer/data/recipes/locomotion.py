"""Stages of one training for each body, in the manner of D4RL's sets: expert, medium, and what led to the medium policy.

Differs from the paper: the experts are the best snapshots of short soft actor-critic trainings on a CPU, not policies
trained to convergence; HalfCheetah's and Hopper's reach about half of D4RL's expert return, XX.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..reference_scores import D4RL_REFERENCE_SCORES
from .policies import PolicyBehavior
from .recipe import Behavior, Recipe

STEPS = 100_000


@dataclass(frozen=True)
class Body:
    """One environment, and the training whose snapshots act in it.

    Attributes:
        name: of its data sets.
        environment: Gymnasium's name of it, without the version.
        medium, expert: training steps of the two snapshots.
        replay: for each snapshot up to the medium one, its training steps and its share of the episodes: the training
            steps that it stands for, divided by the length of its episodes, since a replay buffer has as much of each.
    """

    name: str
    environment: str
    medium: int
    expert: int
    replay: tuple[tuple[int, float], ...]

    def policy(self, step: int, weight: float = 1.0, temperature: float = 1.0) -> PolicyBehavior:
        return PolicyBehavior(f"{self.name}.npz", f"step_{step:07d}", weight, temperature)

    def recipe(self, stage: str, behaviors: Sequence[Behavior], description: str) -> Recipe:
        return Recipe(
            name=f"{self.name}_{stage}",
            dataset_id=f"embedded/{self.name}/{stage.replace('_', '-')}-v0",
            env_id=f"{self.environment}-v5",
            behaviors=tuple(behaviors),
            default_steps=STEPS,
            reference_scores=D4RL_REFERENCE_SCORES[self.environment],
            reference_note=f"D4RL's constants for {self.environment}, so that scores compare with published tables",
            description=description,
        )

    def recipes(self) -> list[Recipe]:
        """Medium, medium-replay and expert."""
        return [
            self.recipe(
                "medium",
                [self.policy(self.medium)],
                f"A soft actor-critic policy after {self.medium:,} steps of training, as stochastic as it was then.",
            ),
            self.recipe(
                "medium_replay",
                [self.policy(step, weight) for step, weight in self.replay],
                f"Stochastic soft actor-critic policies from the first {self.medium:,} steps of their training, in the "
                "proportions of a replay buffer.",
            ),
            self.recipe(
                "expert",
                [self.policy(self.expert, temperature=0.0)],
                f"The best snapshot of a soft actor-critic training on a CPU, after {self.expert:,} steps, acting "
                "without noise. It is not a converged policy.",
            ),
        ]


BODIES = (
    Body("hopper", "Hopper", 150_000, 180_000, ((20_000, 0.26), (30_000, 0.17), (90_000, 0.28), (150_000, 0.13))),
)
LOCOMOTION = [recipe for body in BODIES for recipe in body.recipes()]
