"""Goals as tokens, and which dimensions they fix."""

from dataclasses import replace

import pytest
import torch

from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.data.goals import goal_transitions
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout


def leaf(size: int, *path: str) -> SpaceLeaf:
    return SpaceLeaf(path, "box", (size,), (-1.0,) * size, (1.0,) * size)


MAZE = EnvironmentSpec(
    "Maze-v0",
    None,
    SpaceSpec((leaf(2, "achieved_goal"), leaf(2, "desired_goal"), leaf(4, "observation"))),
    SpaceSpec((leaf(2),)),
    (6, 1, 0, 7),
)


def test_a_goal_fills_a_transition_whose_other_tokens_are_stop_tokens() -> None:
    layout = TransitionLayout(3, 1)
    discretizer = UniformDiscretizer(10).fit(torch.tensor([[0.0] * 6, [10.0] * 6]))
    tokens = goal_transitions(torch.tensor([[7.5, 0.5], [99.0, 3.5]]), (2, 0), layout, discretizer)
    assert tokens.tolist() == [[0, 10, 7, 10, 10, 10], [3, 10, 9, 10, 10, 10]]


def test_what_was_achieved_is_the_goal_in_the_goals_own_order() -> None:
    assert MAZE.goal_dimensions == (2, 1)


def test_without_an_achieved_goal_all_dimensions_are_the_goal() -> None:
    plain = EnvironmentSpec("Hopper-v5", None, SpaceSpec((leaf(5),)), SpaceSpec((leaf(2),)))
    assert plain.goal_dimensions == (0, 1, 2, 3, 4)
    assert replace(plain, observation_indices=(3, 1)).goal_dimensions == (0, 1)


@pytest.mark.parametrize("indices", [None, (0, 1, 2, 6), (0, 6, 7)])
def test_a_model_must_see_the_achieved_and_not_the_desired_goal(indices: tuple[int, ...] | None) -> None:
    message = r"must contain \[0, 1\] \(achieved_goal\) and none of \[2, 3\]"
    with pytest.raises(UserError, match=message):
        _ = replace(MAZE, observation_indices=indices).goal_dimensions
