"""Single transitions: which rows belong together, and where an episode really ends."""

import numpy as np
import torch

from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.transition_set import TransitionSet, return_range


def episode(first: float, steps: int, terminated: bool) -> Episode:
    """Observations count up from ``first``; actions are 10 times, rewards 100 times the observation."""
    observations = (first + np.arange(steps + 1, dtype=np.float32))[:, None]
    return Episode(observations, 10 * observations[:-1], 100 * observations[:-1, 0], terminated)


EPISODES = [episode(1, 2, terminated=True), episode(5, 2, terminated=False)]


def test_rows_of_two_episodes_by_hand() -> None:
    transitions = TransitionSet(EPISODES, termination_penalty=None)
    assert len(transitions) == 4
    batch = transitions.gather(torch.tensor([0, 1, 2, 3]))
    assert batch.observations[:, 0].tolist() == [1, 2, 5, 6]
    assert batch.actions[:, 0].tolist() == [10, 20, 50, 60]
    assert batch.rewards.tolist() == [100, 200, 500, 600]
    assert batch.next_observations[:, 0].tolist() == [2, 3, 6, 7]  # never the next episode's
    assert batch.terminal.tolist() == [0, 1, 0, 0]  # the second episode met a time limit: its value goes on
    assert {column.dtype for column in batch} == {torch.float32}


def test_penalty_replaces_the_reward_of_a_termination_only() -> None:
    assert TransitionSet(EPISODES, -7.0).all.rewards.tolist() == [100, -7, 500, 600]
    assert return_range(EPISODES, -7.0) == (93.0, 1100.0)
    assert return_range(EPISODES, None) == (300.0, 1100.0)


def test_members_see_their_own_sample() -> None:
    samples = torch.tensor([[3, 3, 0, 1], [0, 2, 2, 1]])
    bootstrapped = TransitionSet(EPISODES, None).to(torch.device("cpu"), samples)
    batch = bootstrapped.gather(torch.tensor([0, 2]))
    assert len(bootstrapped) == 4
    assert batch.observations[..., 0].tolist() == [[6, 1], [1, 5]]
    assert batch.next_observations.shape == (2, 2, 1)
    assert batch.rewards.tolist() == [[600, 100], [100, 500]]
