"""Columns of integers with one token per value, and refusals."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from trajectory_transformer import available_memory
from trajectory_transformer.configuration import DataConfig, DiscretizerConfig, ModelConfig, TrainConfig
from trajectory_transformer.data.episodes import Episode, OfflineData
from trajectory_transformer.environments.make import space_spec
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.learners import transformer_datamodule
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule, index_ranges


def environment(observation: gym.Space, action: gym.Space) -> EnvironmentSpec:
    return EnvironmentSpec("", None, space_spec(observation), space_spec(action))


BOX = gym.spaces.Box(-1.0, 1.0, (2,))
MIXED = gym.spaces.Dict(
    {"body": BOX, "room": gym.spaces.Discrete(500, start=1), "z": gym.spaces.Box(0, 9, (1,), np.int8)}
)


def test_columns_are_counted_as_the_model_sees_them() -> None:
    spec = environment(MIXED, gym.spaces.Discrete(4))
    assert index_ranges(spec, 500) == {2: (1.0, 500.0), 3: (0.0, 9.0), 4: (0.0, 3.0)}
    assert index_ranges(replace(spec, observation_indices=(3, 0)), 10) == {0: (0.0, 9.0), 2: (0.0, 3.0)}


def test_integers_of_a_box_that_are_more_than_bins_share_them() -> None:
    assert index_ranges(environment(gym.spaces.Box(0, 255, (1,), np.uint8), BOX), 255) == {}


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (MIXED, BOX, r"observation dimension 'room' holds 500 Discrete values, 1 to 500, more than .*num_bins=499.*"
         r"set data\.discretizer\.num_bins=500, or leave it out by data\.observation_indices"),
        (BOX, gym.spaces.Discrete(500), "action dimension 'index' holds 500 Discrete values.* or record other actions"),
        (gym.spaces.Discrete(40_000), BOX, "share a token; leave it out"),  # as no num_bins is that large
        (gym.spaces.Discrete(3, start=2**24), BOX, "only values up to ±4194304 can become tokens"),
    ],
)  # fmt: skip
def test_what_has_no_token_of_its_own_is_refused_by_name(
    observation: gym.Space, action: gym.Space, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        index_ranges(environment(observation, action), 499)


@pytest.mark.parametrize("strategy", ["quantile", "uniform"])
def test_every_discrete_action_decodes_to_itself(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 23: 14 of 64 actions came back as another one."""
    generator = np.random.default_rng(0)
    spec = environment(BOX, gym.spaces.Discrete(64))

    def episode() -> Episode:
        actions = generator.integers(64, size=(100, 1)).astype(np.float32)
        return Episode(generator.uniform(-1, 1, (101, 2)).astype(np.float32), actions, np.ones(100, np.float32), False)

    data = OfflineData(["set"], [episode() for _ in range(4)], spec, None, "none", "")
    monkeypatch.setattr("trajectory_transformer.training.datamodule.load_offline_data", lambda config: data)
    module = TrajectoryDataModule(DataConfig(discretizer=DiscretizerConfig(strategy)), seed=0)
    module.setup()
    indices = torch.arange(64.0)[:, None]
    columns = module.layout.action
    decoded = module.discretizer.decode(module.discretizer.encode(indices, columns), columns)
    assert spec.action.to_environment(decoded.numpy()).tolist() == list(range(64))


@pytest.mark.parametrize("batch", [2, 40])
@pytest.mark.parametrize("free", [0.99, 1.01])
def test_windows_too_long_for_memory_are_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, free: float, batch: int
) -> None:
    pixels = space_spec(gym.spaces.Box(0, 255, (64, 64, 3), np.uint8))
    layout = TransitionLayout(pixels.size, 1)
    config = TrainConfig(data=DataConfig(sequence_length=2, batch_size=batch), model=ModelConfig(n_layer=1, n_head=2))
    tokens = 2 * layout.transition_dim - 1
    weights = 3 * (layout.transition_dim * 201 * 128 + tokens * 128 + 12 * 128**2)  # values, and two averages of AdamW
    needed = 4 * weights + tokens**2 + max(4 * batch * tokens * (202 + 8 * 128), 4 * tokens**2)
    monkeypatch.setattr(available_memory, "available_memory", lambda: free * needed)
    module: Any = SimpleNamespace(layout=layout, num_train=100)
    if free > 1:
        TransformerLearner()._require_memory(config, module)
        return
    with pytest.raises(UserError, match=rf"have {tokens} tokens.* {batch} of them .*takes at least {needed:,} bytes"):
        TransformerLearner()._require_memory(config, module)


def test_processes_that_divide_a_model_need_a_share_of_its_memory_each(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(model=ModelConfig(n_layer=24, n_head=2, n_embd=4096), data=DataConfig(batch_size=4))
    config.trainer.devices = 4
    module: Any = SimpleNamespace(layout=TransitionLayout(11, 3), num_train=100)
    weights = 3 * 4 * 12 * 24 * 4096**2  # nearly all of it, with AdamW's averages
    monkeypatch.setattr(available_memory, "available_memory", lambda: weights / 2)
    with pytest.raises(UserError, match=r"on 1 of them at once takes at least"):
        TransformerLearner()._require_memory(config, module)
    config.trainer.strategy = "fsdp"
    TransformerLearner()._require_memory(config, module)


def test_too_many_values_are_refused_before_bins_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    episode = Episode(np.zeros((3, 2), np.float32), np.zeros((2, 1), np.float32), np.zeros(2, np.float32), False)
    data: Any = OfflineData(["set"], [episode] * 2, environment(BOX, gym.spaces.Discrete(101)), None, "none", "")
    monkeypatch.setattr("trajectory_transformer.training.datamodule.load_offline_data", lambda config: data)
    monkeypatch.setattr(transformer_datamodule, "make_discretizer", None)
    with pytest.raises(UserError, match="101 Discrete values"):
        TrajectoryDataModule(DataConfig(), seed=0).setup()
