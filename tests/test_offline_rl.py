"""The offline-RL experiments against the original's settings, and the dimensions of Ant that it uses."""

from typing import Any, NamedTuple, cast

import gymnasium as gym
import numpy as np
import pytest

from trajectory_transformer.app import schema
from trajectory_transformer.configuration import TrainConfig

from .test_configs import composed


class Setting(NamedTuple):
    """One row of the original's config/offline.py: planner, epochs of a million windows, windows in an update."""

    horizon: int
    beam_width: int
    k_act: int | None = None
    cdf_act: float | None = 0.6
    epochs: int = 50
    batch_size: int = 256


ORIGINAL = {
    "halfcheetah_medium": Setting(5, 32),
    "halfcheetah_medium_replay": Setting(5, 32),
    "halfcheetah_medium_expert": Setting(15, 32),
    "hopper_medium": Setting(15, 128),
    "hopper_medium_replay": Setting(15, 128, epochs=80),
    "hopper_medium_expert": Setting(15, 128),
    "walker2d_medium": Setting(15, 128),
    "walker2d_medium_replay": Setting(20, 32, k_act=40, cdf_act=None, epochs=80),
    "walker2d_medium_expert": Setting(5, 128),
    "ant_medium": Setting(5, 128, batch_size=128),
    "ant_medium_replay": Setting(5, 128, batch_size=128),
    "ant_medium_expert": Setting(15, 128, batch_size=128),
}
DATA = {
    "medium": ["mujoco/{}/medium-v0"],
    "medium_expert": ["mujoco/{}/medium-v0", "mujoco/{}/expert-v0"],
    "medium_replay": ["embedded/{}/medium-replay-v0"],
}


def experiment(name: str) -> TrainConfig:
    return schema.typed_train(composed("train", f"experiment={name}"))


@pytest.mark.parametrize("name", ORIGINAL)
def test_an_experiment_has_the_originals_settings(name: str) -> None:
    options, expected = experiment(name), ORIGINAL[name]
    planner = options.planner
    assert (planner.horizon, planner.beam_width) == (expected.horizon, expected.beam_width)
    assert (planner.k_act, planner.cdf_act) == (expected.k_act, expected.cdf_act)
    assert (planner.n_expand, planner.k_obs, planner.plan_freq, planner.context) == (2, 1, 1, 5)
    assert (planner.window, planner.percentile, planner.temperature) == ("sliding", "mean", 1.0)
    assert options.data.batch_size == expected.batch_size
    assert options.trainer.max_steps == expected.epochs * 1_000_000 // expected.batch_size
    assert (options.data.discount, options.data.termination_penalty) == (0.99, -100.0)
    assert (options.data.sequence_length, options.data.discretizer.strategy) == (10, "quantile")
    assert (options.model.n_layer, options.model.n_head, options.model.n_embd) == (4, 4, 128)
    assert options.optimizer.learning_rate == 6e-4


@pytest.mark.parametrize("name", ORIGINAL)
def test_an_experiment_has_its_data(name: str) -> None:
    body, _, kind = name.partition("_")
    expected = [dataset.format(body) for dataset in DATA[kind]]
    if name == "ant_medium_replay":  # there is no recipe for Ant
        expected = ["mujoco/ant/simple-v0", "mujoco/ant/medium-v0"]
    data = experiment(name).data
    assert data.dataset_ids == expected
    assert data.observation_indices == (list(range(27)) if body == "ant" else None)


def test_the_dimensions_kept_of_ant_are_its_positions_and_velocities() -> None:
    environment = gym.make("Ant-v5")
    environment.reset(seed=0)
    environment.step(environment.action_space.sample())
    observation, *_ = environment.step(environment.action_space.sample())
    state = cast(Any, environment.unwrapped).data
    assert observation.shape == (105,)
    np.testing.assert_array_equal(observation[:27], np.concatenate([state.qpos[2:], state.qvel]))
    environment.close()
