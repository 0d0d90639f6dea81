"""Recipes of locomotion data, after D4RL's sets: expert, medium policy, and the medium policy's replay."""

from dataclasses import dataclass
from itertools import pairwise

from ..environments.reference_scores import D4RL_REFERENCE_SCORES
from .policies import PolicyBehavior
from .recipe import Behavior, Recipe, UniformBehavior

NUM_STEPS = 100_000
NUM_RANDOM_STEPS = 5_000  # random steps at the start of train_behavior


@dataclass(frozen=True)
class Body:
    """An environment, and the training runs whose snapshots act in it."""

    name: str  # name of its data sets and of the file of its snapshots
    environment: str  # Gymnasium's name, without the version
    expert: int  # training steps of the best snapshot, which may come from another training run than the stages
    stages: tuple[tuple[int, float], ...]  # snapshots up to the medium one: training steps, mean episode length
    random_length: float  # mean length of episodes of random actions

    def recipes(self) -> list[Recipe]:
        """Return the recipes medium, medium-replay and expert."""
        medium = self.stages[-1][0]
        stages: dict[str, tuple[list[Behavior], str]] = {
            "medium": (
                [self._policy(medium)],
                f"A soft actor-critic policy after {medium:,} steps of training, as stochastic as it was then.",
            ),
            "medium_replay": (
                self._replay(),
                f"Random actions, then soft actor-critic policies from the first {medium:,} steps of their training, "
                "as stochastic as they were then, in the proportions of a replay buffer.",
            ),
            "expert": (
                # Stochastic: a model of data without noise has not seen the consequences of its own small errors.
                [self._policy(self.expert)],
                f"The best snapshot of a short training that had not converged, after {self.expert:,} steps, as "
                "stochastic as it was then.",
            ),
        }
        return [
            Recipe(
                name=f"{self.name}_{stage}",
                dataset_id=f"embedded/{self.name}/{stage.replace('_', '-')}-v0",
                env_id=f"{self.environment}-v5",
                behaviors=tuple(behaviors),
                default_steps=NUM_STEPS,
                reference_scores=D4RL_REFERENCE_SCORES[self.environment],
                reference_note=f"D4RL's constants for {self.environment}, so that scores compare with published tables",
                description=description,
            )
            for stage, (behaviors, description) in stages.items()
        ]

    def _replay(self) -> list[Behavior]:
        """Return behaviours weighted by the training steps since the previous snapshot, per mean episode length."""
        policies = [
            self._policy(step, weight=(step - before) / length)
            for (before, _), (step, length) in pairwise([(NUM_RANDOM_STEPS, self.random_length), *self.stages])
        ]
        return [UniformBehavior(weight=NUM_RANDOM_STEPS / self.random_length), *policies]

    def _policy(self, step: int, weight: float = 1.0) -> PolicyBehavior:
        return PolicyBehavior(f"{self.name}.npz", f"step_{step:07d}", weight)


# Differs from the paper: D4RL's experts were trained to convergence; these are the best snapshots of short training
# runs on a CPU (logs in results/behavior). Walker2d's expert was trained by proximal policy optimisation.
BODIES = (
    Body("hopper", "Hopper", 180_000, ((20_000, 95), (30_000, 211), (90_000, 218), (150_000, 223)), 22),
    Body("halfcheetah", "HalfCheetah", 140_000, ((20_000, 1000), (40_000, 1000)), 1000),
    Body("walker2d", "Walker2d", 450_560, ((20_000, 295), (40_000, 234), (60_000, 235), (100_000, 294)), 21),
)
LOCOMOTION = [recipe for body in BODIES for recipe in body.recipes()]
