"""Ways in a maze, against lengths worked out by hand."""

import math

import numpy as np
import pytest
import torch

from tools.maze_oracle import Ways, WayToGoal, longest_wait
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.planning.objectives import Candidates

U_TURN = [  # the origin is the upper edge of the middle cell of the lower corridor
    [1, 1, 1, 1, 1],
    [1, 0, 1, 0, 1],
    [1, 0, 0, 0, 1],
    [1, 1, 1, 1, 1],
]
LEFT, RIGHT = np.array([-1.05, 0.55]), np.array([0.95, 0.55])  # near the middles of the cells beside the wall


def test_a_straight_way_is_as_long_as_its_distance() -> None:
    found = Ways(U_TURN).lengths(np.array([[-1.05, -0.45], [0.85, -0.45]]), np.array([0.95, -0.45]))
    assert found == pytest.approx([2.0, 0.1])


def test_a_way_round_a_wall_is_a_string_drawn_tight() -> None:
    ways = Ways(U_TURN)
    # Around the wall's corners (±0.5, 0) at a distance of 0.15, the middle of the first grid point that is free.
    tight = math.hypot(0.4, 0.7) + 1.3 + math.hypot(0.3, 0.7)
    found = ways.lengths(LEFT[None], RIGHT)[0]
    assert tight - 0.3 < found < 1.1 * tight  # not 2, the distance through the wall
    way = ways.way(LEFT, RIGHT)
    assert np.hypot(*np.diff(way, axis=0).T).sum() == pytest.approx(found)
    assert not ((np.abs(way[:, 0]) < 0.6 - 1e-9) & (way[:, 1] > -0.1 + 1e-9)).any()  # never within 0.1 m of the wall


def test_a_position_within_a_wall_begins_beside_it() -> None:
    ways = Ways(U_TURN)
    assert ways.lengths(np.array([[-0.45, 0.55]]), RIGHT)[0] > 2.0
    assert ways.lengths(np.array([[0.45, 0.55]]), RIGHT)[0] < 0.6


def test_the_objective_ranks_by_the_way_left_after_the_last_action() -> None:
    layout = TransitionLayout(observation_dim=4, action_dim=2)
    objective = WayToGoal()
    objective._ways, objective._reach = Ways(U_TURN), 0.4
    # The goal is on the right of the wall. Towards it, away from it, down the corridor; then at the goal.
    starts = torch.tensor([[-0.85, 0.55], [-0.85, 0.55], [-0.85, 0.55], [0.95, 0.45]])
    actions = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, -1.0], [0.0, 0.0]])
    rows = torch.cat([torch.tensor(RIGHT).float().expand(4, 2), starts, actions], dim=1)
    tokens = torch.arange(4)[None, :, None].expand(1, 4, layout.transition_dim)
    candidates = Candidates(
        t=0,
        returns=torch.zeros(1, 4, 2),
        discounts=torch.ones(2),
        tokens=tokens,
        layout=layout,
        decode=lambda tokens, columns: rows[tokens[..., 0]][..., columns],
    )
    towards, away, down, there = objective(candidates)[0].tolist()
    assert away < towards < down < there == 0.0
    assert down == pytest.approx(0.45 - Ways(U_TURN).lengths(np.array([[-0.85, 0.15]]), RIGHT)[0])


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        ([1, 2, 3, 4], 1),
        ([1, 3, 2, 2, 4, 5], 3),  # from 3 to 4
        ([1, 5, 2, 3, 4], 3),  # no value after 5 exceeds it: as far as the goal
        ([2, 1, 1, 3, 1, 1, 1, 1, 4, 2], 5),  # from 3 to 4
        ([7, 0], 1),
    ],
)
def test_the_longest_wait_for_a_higher_value(values: list[int], steps: int) -> None:
    assert longest_wait(np.array(values, dtype=float)) == steps
