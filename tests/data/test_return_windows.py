"""Windows of returns, observations and actions, worked out by hand."""

import numpy as np
import torch

from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.return_windows import ReturnWindows


def episode(length: int, first: float, terminated: bool) -> Episode:
    """Observations count up from ``first``, actions are their negatives, rewards 1, 2, 4, …"""
    observations = first + np.arange(length + 1, dtype=np.float32)[:, None]
    return Episode(observations, -observations[:-1], 2.0 ** np.arange(length, dtype=np.float32), terminated)


def test_every_step_starts_a_window_that_ends_with_its_episode() -> None:
    windows = ReturnWindows([episode(3, 10.0, False), episode(2, 20.0, True)], None, length=3)
    assert len(windows) == 5
    batch = windows.gather(torch.tensor([0, 1, 4, 3]))
    assert batch.returns.tolist() == [[7, 6, 4], [6, 4, 4], [2, 2, 2], [3, 2, 2]]
    assert batch.observations[..., 0].tolist() == [[10, 11, 12], [11, 12, 12], [21, 21, 21], [20, 21, 21]]
    assert batch.actions[..., 0].tolist() == (-batch.observations[..., 0]).tolist()
    assert batch.steps.tolist() == [[0, 1, 2], [1, 2, 2], [1, 1, 1], [0, 1, 1]]
    assert batch.mask.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 0]]
    assert {tensor.dtype for tensor in (batch.returns, batch.observations, batch.actions, batch.mask)} == {
        torch.float32
    }
    moved = windows.to(torch.device("meta"))
    assert moved.gather(torch.tensor([0, 1])).actions.shape == (2, 3, 1)
    assert (moved.device.type, windows.device.type) == ("meta", "cpu")


def test_a_termination_penalty_replaces_the_last_reward() -> None:
    windows = ReturnWindows([episode(3, 0.0, True), episode(2, 0.0, False)], -100.0, length=1)
    assert windows.gather(torch.arange(5)).returns[:, 0].tolist() == [-97, -98, -100, 3, 2]
