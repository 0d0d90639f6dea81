"""Embedded data sets, which are simulated on this machine instead of downloaded.

To add one, add a :class:`Recipe` and, for MuJoCo, the ``.npz`` of its policies (``train_behavior``,
``select_snapshots``).
"""

from ..configuration import require_choice
from .locomotion import LOCOMOTION
from .mazes import MAZE_RECIPES
from .policies import PolicyBehavior
from .recipe import Recipe

HOPPER_MIXED = Recipe(
    name="hopper_mixed",
    dataset_id="embedded/hopper/mixed-v0",
    env_id="Hopper-v5",
    behaviors=(
        PolicyBehavior("hopper.npz", "step_0020000", weight=0.05, noise=0.3),
        PolicyBehavior("hopper.npz", "step_0030000", weight=0.10, noise=0.15),
        PolicyBehavior("hopper.npz", "step_0090000", weight=0.20, noise=0.15),
        PolicyBehavior("hopper.npz", "step_0150000", weight=0.20),
        PolicyBehavior("hopper.npz", "step_0180000", weight=0.20),
        PolicyBehavior("hopper.npz", "step_0180000", weight=0.15, noise=0.15),
        PolicyBehavior("hopper.npz", "step_0180000", weight=0.10, temperature=0.0),
    ),
    default_steps=100_000,
    reference_scores=(-20.272305, 3234.3),
    reference_note="D4RL's constants for Hopper, so that scores compare with published tables",
    description="Soft actor-critic policies from several stages of their training, with and without exploration noise.",
)

RECIPES = {recipe.name: recipe for recipe in (HOPPER_MIXED, *MAZE_RECIPES, *LOCOMOTION)}
REGISTRY = {recipe.dataset_id: recipe for recipe in RECIPES.values()}


def find_recipe(name: str) -> Recipe:
    """Return the recipe of this name or data set id; UserError, which offers the nearest, if there is none."""
    if name not in REGISTRY:
        require_choice("recipe", name, tuple(RECIPES))
    return REGISTRY.get(name) or RECIPES[name]


__all__ = ["RECIPES", "REGISTRY", "Recipe", "find_recipe"]
