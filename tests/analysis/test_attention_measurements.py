"""Figures of attention: masses, ratios, differences, and intervals over episodes."""

import numpy as np
import pytest
from rich.console import Console

from trajectory_transformer.analysis.attention_masses import (
    ALL_LAYERS,
    UNIFORM,
    MeasuredAttention,
    attention_measurements,
    attention_table,
    episode_intervals,
)
from trajectory_transformer.evaluation.scores import bootstrap_interval

NAMES = ["mass_previous_transition", "action_mass_past_actions", "action_mass_past_observations"]


def measured() -> MeasuredAttention:
    """Two layers of two heads in three windows of two episodes; the second layer attends uniformly."""
    uniform = np.array([0.2, 0.1, 0.5])
    masses = np.broadcast_to(uniform, (3, 2, 2, 3)).copy()
    masses[:, 0, 0] = [[0.4, 0.3, 0.2], [0.6, 0.3, 0.2], [0.8, 0.3, 0.2]]
    masses[:, 0, 1] = [1.0, 0.0, 0.0]
    return MeasuredAttention(NAMES, uniform, masses, np.array([4, 4, 7]))


def test_heads_layers_and_the_whole() -> None:
    measurements = attention_measurements(measured())
    values = {(measurement.method, measurement.name): measurement.value for measurement in measurements}
    heads = [f"layer {layer} head {head}" for layer in (1, 2) for head in (1, 2)]
    methods = [UNIFORM, *heads[:2], "layer 1", *heads[2:], "layer 2", ALL_LAYERS]
    assert list(dict.fromkeys(measurement.method for measurement in measurements)) == methods
    assert len(measurements) == 3 + 7 * (3 + 3 + 2)
    assert {measurement.count for measurement in measurements} == {2}
    assert values[UNIFORM, "mass_previous_transition"] == 0.2
    assert values["layer 1 head 1", "mass_previous_transition"] == pytest.approx(0.6)
    assert values["layer 1 head 1", "ratio_previous_transition"] == pytest.approx(3.0)
    assert values["layer 1", "mass_previous_transition"] == pytest.approx((0.6 + 1.0) / 2)
    assert values[ALL_LAYERS, "mass_previous_transition"] == pytest.approx((0.6 + 1.0 + 0.2 + 0.2) / 4)
    assert values["layer 1 head 1", "action_ratio_past_observations"] == pytest.approx(0.4)
    assert values["layer 1 head 1", "action_mass_past_actions_minus_observations"] == pytest.approx(0.1)
    assert values["layer 1 head 1", "action_ratio_past_actions_minus_observations"] == pytest.approx(3.0 - 0.4)
    assert values["layer 2 head 2", "action_ratio_past_actions_minus_observations"] == pytest.approx(0.0)


def test_intervals_hold_the_resampled_means() -> None:
    measurements = {
        (measurement.method, measurement.name): measurement for measurement in attention_measurements(measured())
    }
    measurement = measurements["layer 1 head 1", "mass_previous_transition"]
    assert (measurement.low, measurement.high) == pytest.approx((0.5, 0.8))  # only the first episode, only the second
    assert measurements[UNIFORM, "mass_previous_transition"].low is None


def test_with_a_single_episode_there_is_no_interval() -> None:
    one = MeasuredAttention(NAMES, measured().uniform, measured().masses, np.array([4, 4, 4]))
    assert all(measurement.low is None and measurement.high is None for measurement in attention_measurements(one))


class TestEpisodeIntervals:
    def test_equal_episodes_have_the_bootstrap_interval_of_their_means(self) -> None:
        values = np.random.default_rng(1).normal(size=(40, 3, 2))
        found = episode_intervals(values.reshape(120, 2), np.repeat(np.arange(40), 3))
        assert found is not None
        for number in range(2):
            expected = bootstrap_interval(values[:, :, number].mean(axis=1))
            np.testing.assert_allclose(found[:, number], expected, atol=0.01)

    def test_repeated_windows_teach_nothing(self) -> None:
        values = np.random.default_rng(2).normal(size=(10, 1))
        once = episode_intervals(values, np.arange(10))
        often = episode_intervals(np.repeat(values, 50, axis=0), np.repeat(np.arange(10), 50))
        assert once is not None
        assert often is not None
        np.testing.assert_allclose(once, often)

    def test_an_episode_weighs_as_much_as_its_windows(self) -> None:
        # Two episodes, of one window (0) and of three (1): drawn are means 0, 3/4 and 1, the middle one in half.
        values, episodes = np.array([[0.0], [1.0], [1.0], [1.0]]), np.array([0, 1, 1, 1])
        found = episode_intervals(np.concatenate([values, 1 - values], axis=1), episodes)
        assert found is not None
        np.testing.assert_allclose(found, [[0.0, 0.0], [1.0, 1.0]])


def test_the_table_has_a_row_for_each_head() -> None:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(attention_table(attention_measurements(measured()), "Walk-v0"))
    lines = [line.split() for line in capture.get().splitlines()]
    assert ["layer", "1", "head", "1", "60", "×3.0", "30", "×3.0", "20", "×0.4"] in lines
    assert ["all", "layers", "50", "×2.5"] in [line[:4] for line in lines]
    assert ["uniform", "20", "10", "50"] in lines
