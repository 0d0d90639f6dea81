"""Recipes of the point mazes, in which scripted controllers move a point with inertia."""

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


def _sparse_maze(maze: str, reference_score: float) -> Recipe:
    """Return a recipe of truncated random walks, like AntMaze's "play" sets: paths to far goals need stitching."""
    return Recipe(
        name=f"pointmaze_{maze.lower()}",
        dataset_id=f"embedded/pointmaze/{maze.lower()}-v1",
        env_id=f"trajectory_transformer/PairMaze_{maze}-v0",
        behaviors=(
            MazeBehavior("wander", weight=0.9, speed=(1.0, 4.0), noise=0.3, detours=(1000, 1000)),
            MazeBehavior("direct", weight=0.1, speed=(2.0, 4.0), noise=0.3),
        ),
        default_steps=300_000,
        reference_scores=(reference_score, 1.0),
        reference_note="share of goals that 600 episodes of random actions reach, and all of them",
        description=(
            "A point walks about the maze for at most 2 seconds, by breadth-first search over its cells and a velocity "
            "controller with noise; one walk in ten heads for its goal. The reward is 1 on reaching the goal, which "
            "ends the episode, and 0 before."
        ),
        arguments={"max_episode_steps": 20},
        evaluation_arguments={},
    )


def _goal_maze(maze: str, steps: int) -> Recipe:
    """Return a recipe of walks that end at their goal, for the training pairs; evaluated on the held-out pairs."""
    return Recipe(
        name=f"goal_{maze.lower()}",
        dataset_id=f"embedded/goal/{maze.lower()}-v0",
        env_id=f"trajectory_transformer/PairMaze_{maze}-v0",
        behaviors=(
            # Little noise and a single speed, because a plan for likelihood imitates the most frequent behaviour.
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
        # Long enough for every walk: a truncated one would end elsewhere, possibly at a held-out pair's goal.
        arguments={"pairs": "train", "max_episode_steps": 300},
        evaluation_arguments={"pairs": "held_out"},
    )


MAZE_RECIPES = (
    POINTMAZE_UMAZE,
    _sparse_maze("Medium", 0.157),
    _sparse_maze("Large", 0.1),
    _goal_maze("FourRooms", 120_000),
    _goal_maze("UMaze", 30_000),
    _goal_maze("Medium", 80_000),
    _goal_maze("Large", 120_000),
)
