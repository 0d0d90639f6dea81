import numpy as np
import pytest
import torch

from trajectory_transformer.data.discretizer import QuantileDiscretizer
from trajectory_transformer.data.transitions import TransitionTable
from trajectory_transformer.data.windows import TokenWindows

STOP = 9


def small_windows(sequence_length: int) -> TokenWindows:
    """A terminated episode of 3 steps and a truncated one of 2, width 2; tokens are the values themselves."""
    values = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 0]], dtype=np.float32)
    discretizer = QuantileDiscretizer(STOP)
    discretizer.edges = torch.arange(10.0).repeat(2, 1)
    table = TransitionTable(values, np.array([3, 2]), np.array([True, False]))
    return TokenWindows(table, discretizer, sequence_length)


def test_every_transition_starts_a_window():
    assert len(small_windows(2)) == 5


def test_single_transitions_may_be_drawn_without_their_windows():
    tokens = small_windows(3).transitions(torch.tensor([4, 0, 4]))
    assert tokens.tolist() == [[8, 0], [0, 1], [8, 0]]
    assert tokens.dtype == torch.int64


def test_a_window_inside_an_episode():
    batch = small_windows(2).gather(torch.tensor([0]))
    assert batch.trajectories.tolist() == [[0, 1, 2]]
    assert batch.targets.tolist() == [[1, 2, 3]]
    assert batch.mask.tolist() == [[1, 1, 1]]


def test_stop_tokens_after_a_terminated_episode_are_trained_on():
    batch = small_windows(3).gather(torch.tensor([1, 2]))
    assert batch.trajectories.tolist() == [[2, 3, 4, 5, STOP], [4, 5, STOP, STOP, STOP]]
    assert batch.targets.tolist() == [[3, 4, 5, STOP, STOP], [5, STOP, STOP, STOP, STOP]]
    assert batch.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]


def test_what_follows_a_truncated_episode_is_masked_where_it_is_the_target():
    batch = small_windows(3).gather(torch.tensor([3, 4]))
    assert batch.trajectories.tolist() == [[6, 7, 8, 0, STOP], [8, 0, STOP, STOP, STOP]]
    assert batch.targets.tolist() == [[7, 8, 0, STOP, STOP], [0, STOP, STOP, STOP, STOP]]
    assert batch.mask.tolist() == [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]


def test_windows_of_one_transition_need_no_padding():
    windows = small_windows(1)
    batch = windows.gather(torch.arange(5))
    assert batch.trajectories.tolist() == [[0], [2], [4], [6], [8]]
    assert batch.targets.tolist() == [[1], [3], [5], [7], [0]]
    assert batch.mask.tolist() == [[1]] * 5


def test_batches_keep_the_order_of_the_indices_and_their_types():
    windows = small_windows(2)
    batch = windows.gather(torch.tensor([4, 0, 4]))
    assert batch.trajectories[:, 0].tolist() == [8, 0, 8]
    assert (batch.trajectories.dtype, batch.targets.dtype, batch.mask.dtype) == (
        torch.int64,
        torch.int64,
        torch.float32,
    )
    assert batch.trajectories.device == windows.device


def test_an_index_out_of_range_is_refused():
    with pytest.raises(IndexError):
        small_windows(2).gather(torch.tensor([5]))


def test_sequence_length_must_be_positive():
    with pytest.raises(ValueError, match="sequence_length"):
        small_windows(0)


@pytest.mark.parametrize(("num_bins", "bytes_per_token"), [(255, 1), (256, 2), (1000, 2), (32766, 2)])
def test_tokens_are_as_small_as_their_number_allows(num_bins: int, bytes_per_token: int):
    values = np.linspace(-1, 1, 70_000, dtype=np.float32).reshape(-1, 2)
    discretizer = QuantileDiscretizer(num_bins).fit(values)
    table = TransitionTable(values, np.array([len(values)]), np.array([True]))
    windows = TokenWindows(table, discretizer, 2)
    assert windows._tokens.nbytes == 35_000 * 2 * bytes_per_token
    batch = windows.gather(torch.tensor([0, 34_999]))
    assert torch.equal(batch.trajectories[0, :2], discretizer.encode(torch.from_numpy(values[:1]))[0])
    assert batch.targets[1, -2:].tolist() == [num_bins, num_bins]  # the largest token fits its type


def test_tokens_equal_those_of_the_discretizer_over_many_chunks():
    generator = np.random.default_rng(0)
    values = generator.standard_normal((150_000, 3)).astype(np.float32)
    lengths = np.full(100, 1500)
    discretizer = QuantileDiscretizer(20).fit(values)
    windows = TokenWindows(TransitionTable(values, lengths, np.zeros(100, dtype=bool)), discretizer, 4)
    batch = windows.gather(torch.arange(0, 150_000, 1500) + 7)  # inside every episode
    expected = discretizer.encode(torch.from_numpy(values)).reshape(100, 1500, 3)[:, 7:11].flatten(1)
    assert torch.equal(batch.trajectories, expected[:, :-1])
    assert torch.equal(batch.targets, expected[:, 1:])
    assert batch.mask.all()


def test_windows_begin_with_their_episodes_goal_which_is_not_trained_on():
    values = np.array([[0, 1], [2, 3], [4, 5], [6, 7], [8, 0]], dtype=np.float32)
    discretizer = QuantileDiscretizer(STOP)
    discretizer.edges = torch.arange(10.0).repeat(2, 1)
    table = TransitionTable(values, np.array([3, 2]), np.array([True, False]))
    windows = TokenWindows(table, discretizer, 2, goals=torch.tensor([[5, STOP], [1, STOP]]))
    batch = windows.gather(torch.tensor([1, 2, 4]))
    assert batch.trajectories.tolist() == [[5, STOP, 2, 3, 4], [5, STOP, 4, 5, STOP], [1, STOP, 8, 0, STOP]]
    assert batch.targets.tolist() == [[STOP, 2, 3, 4, 5], [STOP, 4, 5, STOP, STOP], [STOP, 8, 0, STOP, STOP]]
    # The goal's own tokens are not predicted; the first observation is, from the last of them.
    assert batch.mask.tolist() == [[0, 1, 1, 1, 1], [0, 1, 1, 1, 1], [0, 1, 1, 0, 0]]
