"""Recipes of the point mazes: one point with inertia, walked about by scripted controllers."""

from .pointmaze import MazeBehavior
from .recipe import Recipe

POINTMAZE_UMAZE = Recipe(
    name="pointmaze_umaze",
    dataset_id="embedded/pointmaze/umaze-v0",
    env_id="PointMaze_UMaze-v3",
    behaviors=(
        MazeBehavior("direct", weight=0.3, speed=(2.0, 4.0), noise=0.05),
        MazeBehavior("slow", weight=0.2, speed=(0.7, 1.5), noise=0.1),
        MazeBehavior("detour", weight=0.3, speed=(1.0, 4.0), noise=0.1, detours=(1, 3)),
        MazeBehavior("wander", weight=0.2, speed=(1.0, 4.0), noise=0.1, detours=(1000, 1000)),
    ),
    default_steps=500_000,
    reference_scores=(13.8, 211.5),
    reference_note="mean return of 600 episodes of random actions, and of the controller at 4 m/s without noise",
    description=(
        "A point walks to a random goal by breadth-first search over the maze's cells and a velocity controller, some "
        "of the time slowly, after detours, or never. The reward is 1 at each step within 0.45 m of the goal; the goal "
        "stays, and each episode lasts 300 steps."
    ),
)


def _pointmaze(size: str, steps: int, reference_scores: tuple[float, float]) -> Recipe:
    """A larger maze with sparse rewards, in which most episodes never or only late reach their goal."""
    return Recipe(
        name=f"pointmaze_{size.lower()}",
        dataset_id=f"embedded/pointmaze/{size.lower()}-v0",
        env_id=f"PointMaze_{size}-v3",
        behaviors=(
            MazeBehavior("wander", weight=0.5, speed=(1.0, 4.0), noise=0.1, detours=(1000, 1000)),
            MazeBehavior("detour", weight=0.3, speed=(1.0, 4.0), noise=0.1, detours=(1, 4)),
            MazeBehavior("slow", weight=0.1, speed=(0.7, 1.5), noise=0.1),
            MazeBehavior("direct", weight=0.1, speed=(2.0, 4.0), noise=0.05),
        ),
        default_steps=500_000,
        reference_scores=reference_scores,
        reference_note="mean return of 600 episodes of random actions, and of the controller at 4 m/s without noise",
        description=(
            "A point walks about the maze by breadth-first search over its cells and a velocity controller; half of "
            "the time it never heads for its goal, otherwise after detours, slowly, or seldom directly. The reward is "
            f"1 at each step within 0.45 m of the goal; the goal stays, and each episode lasts {steps} steps."
        ),
    )


def _goal_maze(maze: str, steps: int) -> Recipe:
    """Walks that end at their goal, from starts to goals of the training part; evaluated on the held-out pairs."""
    return Recipe(
        name=f"goal_{maze.lower()}",
        dataset_id=f"embedded/goal/{maze.lower()}-v0",
        env_id=f"trajectory_transformer/PairMaze_{maze}-v0",
        behaviors=(
            # Little noise and one speed: planned by likelihood, a model does what is most frequent, not what is meant.
            MazeBehavior("direct", weight=0.4, speed=(4.0, 4.0), noise=0.03),
            MazeBehavior("detour", weight=0.2, speed=(4.0, 4.0), noise=0.03, detours=(1, 1)),
            MazeBehavior("shaky", weight=0.4, speed=(4.0, 4.0), noise=0.5),
        ),
        default_steps=steps,
        reference_scores=(0.0, 1.0),
        reference_note="the return is 1 where the goal is reached, else 0",
        description=(
            "A point walks from a random start to a random goal by breadth-first search over the maze's cells and a "
            "velocity controller with noise, some of the time by way of another cell. An episode ends at its goal. "
            "About one in five pairs of start and goal cells never occurs; the evaluation environment draws from those."
        ),
        # Long enough for every walk: one cut short would end somewhere else, maybe where a held-out pair does.
        arguments={"pairs": "train", "max_episode_steps": 300},
        evaluation_arguments={"pairs": "held_out"},
    )


MAZE_RECIPES = (
    POINTMAZE_UMAZE,
    _pointmaze("Medium", 600, (6.8, 422.1)),
    _pointmaze("Large", 800, (11.1, 529.8)),
    _goal_maze("FourRooms", 120_000),
    _goal_maze("UMaze", 30_000),
    _goal_maze("Medium", 80_000),
    _goal_maze("Large", 120_000),
)
