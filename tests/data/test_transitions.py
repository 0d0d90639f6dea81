import numpy as np
import pytest

from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.transitions import join_episodes, join_transitions, returns_to_go
from trajectory_transformer.errors import UserError


def episode(terminated: bool) -> Episode:
    observations = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.float32)
    actions = np.array([[10], [20], [30]], dtype=np.float32)
    return Episode(observations, actions, np.array([1, 2, 4], dtype=np.float32), terminated)


def test_return_to_go_leaves_out_the_current_reward():
    # V2 = 0, V1 = 4, V0 = 2 + 0.5 * 4
    np.testing.assert_array_equal(returns_to_go(np.array([1.0, 2.0, 4.0]), 0.5), [4.0, 4.0, 0.0])


@pytest.mark.parametrize(("discount", "expected"), [(1.0, [6.0, 4.0, 0.0]), (0.0, [2.0, 4.0, 0.0])])
def test_return_to_go_at_the_ends_of_the_discount_range(discount: float, expected: list[float]):
    np.testing.assert_array_equal(returns_to_go(np.array([1.0, 2.0, 4.0]), discount), expected)


def test_return_to_go_of_one_step_is_zero():
    np.testing.assert_array_equal(returns_to_go(np.array([7.0]), 0.9), [0.0])


def test_return_to_go_equals_the_quadratic_formula():
    rewards = np.random.default_rng(0).standard_normal(300)
    discounts = 0.97 ** np.arange(300)
    expected = [(rewards[t + 1 :] * discounts[: 300 - t - 1]).sum() for t in range(300)]
    values = returns_to_go(rewards, 0.97)
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)
    assert values.dtype == np.float64


def test_return_to_go_of_a_million_steps():
    values = returns_to_go(np.ones(1_000_000, dtype=np.float32), 0.99)  # hours, were the time quadratic
    np.testing.assert_allclose(values[0], 100.0, rtol=1e-9)


def test_rows_hold_observation_action_reward_value():
    joined = join_transitions(episode(terminated=False), 0.5, None)
    np.testing.assert_array_equal(joined, [[1, 2, 10, 1, 4], [3, 4, 20, 2, 4], [5, 6, 30, 4, 0]])
    assert joined.dtype == np.float32


def test_penalty_replaces_the_last_reward_of_a_terminated_episode_before_returns():
    joined = join_transitions(episode(terminated=True), 0.5, -100.0)
    np.testing.assert_array_equal(joined[:, 3], [1, 2, -100])
    np.testing.assert_array_equal(joined[:, 4], [2 - 50, -100, 0])


def test_penalty_leaves_truncated_episodes_and_the_episode_itself_alone():
    truncated, terminated = episode(terminated=False), episode(terminated=True)
    np.testing.assert_array_equal(join_transitions(truncated, 0.5, -100.0), join_transitions(truncated, 0.5, None))
    join_transitions(terminated, 0.5, -100.0)
    np.testing.assert_array_equal(terminated.rewards, [1, 2, 4])


def test_a_truncated_episode_continues_with_its_last_rewards():
    # A discount of 0.5 looks 2 steps ahead: V2 = (2 + 4) / 2 * 2, V1 = 4 + 0.5 * 6, V0 = 2 + 0.5 * 7
    joined = join_transitions(episode(terminated=False), 0.5, None, continue_truncated=True)
    np.testing.assert_array_equal(joined[:, 4], [5.5, 7, 6])
    np.testing.assert_array_equal(joined[:, 3], [1, 2, 4])


@pytest.mark.parametrize("discount", [0.0, 0.3, 0.9, 0.999])
def test_an_episode_of_one_reward_that_continues_is_worth_the_same_at_every_step(discount: float):
    constant = episode(terminated=False)
    constant.rewards[:] = 3.0
    values = join_transitions(constant, discount, None, continue_truncated=True)[:, 4]
    np.testing.assert_allclose(values, 3.0 / (1.0 - discount), rtol=1e-6)


def test_a_terminated_episode_does_not_continue():
    ended = episode(terminated=True)
    expected = join_transitions(ended, 0.5, -100.0)
    np.testing.assert_array_equal(join_transitions(ended, 0.5, -100.0, continue_truncated=True), expected)


def test_a_table_has_the_values_that_its_options_say():
    options = DataConfig(discount=0.5, termination_penalty=None, continue_truncated=True)
    table = join_episodes([episode(terminated=False)], options)
    np.testing.assert_array_equal(table.values[:, 4], [5.5, 7, 6])


def test_values_that_never_end_need_a_discount():
    with pytest.raises(UserError, match=r"data\.discount=1 .*data\.continue_truncated=false"):
        DataConfig(discount=1.0, continue_truncated=True)
    assert DataConfig(discount=1.0).discount == 1.0


def test_a_table_keeps_lengths_and_endings():
    first, second = episode(terminated=True), episode(terminated=False)
    table = join_episodes([first, second], DataConfig(discount=0.5, termination_penalty=-1.0))
    np.testing.assert_array_equal(table.values[:3], join_transitions(first, 0.5, -1.0))
    np.testing.assert_array_equal(table.values[3:], join_transitions(second, 0.5, -1.0))
    assert table.lengths.tolist() == [3, 3]
    assert table.terminated.tolist() == [True, False]


def test_a_table_needs_an_episode():
    with pytest.raises(ValueError, match="at least one episode"):
        join_episodes([], DataConfig())


def test_a_table_needs_a_penalty_that_is_decided():
    with pytest.raises(ValueError, match=r"resolve_penalty\(data.ends_have_rewards\)"):
        join_episodes([episode(terminated=True)], DataConfig())
