"""Splits that do not leak, and batches known in advance."""

from dataclasses import replace
from pathlib import Path

import minari
import numpy as np
import pytest
import torch
from minari.data_collector import EpisodeBuffer

from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule
from trajectory_transformer.training.batches import BatchOrder, TrainingBatches, ValidationBatches
from trajectory_transformer.training.datamodule import split_episodes

from .small_run import small_config, small_data, small_datamodule


@pytest.mark.parametrize(("episodes", "fraction", "expected"), [(20, 0.1, 2), (2, 0.9, 1), (3, 0.01, 1), (10, 0.5, 5)])
def test_split(episodes: int, fraction: float, expected: int) -> None:
    data = small_data(episodes)
    train, validation = split_episodes(data, fraction, seed=3)
    assert len(validation) == expected
    assert sorted(map(id, train + validation)) == sorted(map(id, data.episodes))
    again, other = split_episodes(data, fraction, seed=3), split_episodes(data, fraction, seed=4)
    assert [*map(id, again[1])] == [*map(id, validation)]
    assert episodes < 20 or [*map(id, other[1])] != [*map(id, validation)]


def test_single_episode_is_refused() -> None:
    with pytest.raises(UserError, match="small/walk-v0 has 1 episode"):
        split_episodes(small_data(1), 0.1, seed=0)


def test_discretizer_sees_the_training_part_only() -> None:
    config = small_config()
    data = small_data()
    _, validation = split_episodes(data, config.data.validation_fraction, config.seed)
    outlier = replace(validation[0], rewards=validation[0].rewards + 1e6)
    data.episodes[[id(e) for e in data.episodes].index(id(validation[0]))] = outlier
    module = small_datamodule(config, data)
    assert float(module.discretizer.edges.max()) < 1e3
    assert float(module.validation_table.values.max()) > 1e5
    assert len(module.train_examples) + len(module.validation_examples) == 12 * 8
    assert module.layout.transition_dim == 4
    assert module.train_examples is module.train_examples


def test_setup_reads_once() -> None:
    module = small_datamodule(small_config())
    before = module.data
    module.setup()  # would find no such data set
    assert module.data is before


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_epoch_sees_every_window_once(world_size: int) -> None:
    orders = [BatchOrder(32, 8, seed=1, rank=rank, world_size=world_size) for rank in range(world_size)]
    whole = BatchOrder(32, 8, seed=1)
    epochs = []
    for epoch in range(2):
        seen = []
        for step in range(4 * epoch, 4 * epoch + 4):
            shares = [order.indices(step) for order in orders]
            assert {len(share) for share in shares} == {8 // world_size}
            assert sorted(torch.cat(shares).tolist()) == sorted(whole.indices(step).tolist())
            seen += torch.cat(shares).tolist()
        assert sorted(seen) == list(range(32))
        epochs.append(seen)
    assert epochs[0] != epochs[1]


def test_order_depends_on_seed_and_step_only() -> None:
    order = BatchOrder(50, 8, seed=1)
    expected = [order.indices(step).tolist() for step in range(20)]
    assert order.steps_per_epoch == 6  # two windows of each epoch are left out
    torch.manual_seed(123)
    before = torch.get_rng_state()
    assert BatchOrder(50, 8, seed=1).indices(17).tolist() == expected[17]
    assert [order.indices(step).tolist() for step in (3, 19, 0)] == [expected[3], expected[19], expected[0]]
    assert BatchOrder(50, 8, seed=2).indices(17).tolist() != expected[17]
    assert torch.equal(torch.get_rng_state(), before)


def test_fewer_windows_than_a_batch() -> None:
    order = BatchOrder(5, 256, seed=0)
    assert order.steps_per_epoch == 1
    assert sorted(order.indices(7).tolist()) == [0, 1, 2, 3, 4]


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(UserError, match=r"data.batch_size=9 windows do not divide among 2 processes"):
        BatchOrder(100, 9, seed=0, rank=0, world_size=2)


def test_training_batches_begin_at_the_present_step() -> None:
    module = small_datamodule(small_config())
    step = 0
    batches = TrainingBatches(module.train_examples, module.train_order(), lambda: step)
    first = [next(iterator) for iterator in [iter(batches)] for _ in range(12)]
    step = 10
    for expected, found in zip(first[10:], batches, strict=False):
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    assert first[0].trajectories.shape == (9, 3 * 4 - 1)


@pytest.mark.parametrize(("batch_size", "world_size", "sizes"), [(9, 1, [9, 7]), (4, 2, [2] * 4), (6, 2, [3, 3, 2])])
def test_validation_batches(batch_size: int, world_size: int, sizes: list[int]) -> None:
    module = small_datamodule(small_config(), small_data(episodes=20))
    shares = [
        ValidationBatches(module.validation_examples, BatchOrder(16, batch_size, 0, rank, world_size))
        for rank in range(world_size)
    ]
    for share in shares:
        assert [len(batch.targets) for batch in share] == sizes
        assert len(share) == len(sizes)
        assert all(torch.equal(a.targets, b.targets) for a, b in zip(share, share, strict=True))
    rows = sum(len(batch.targets) for share in shares for batch in share)
    assert rows == 16


def test_real_minari_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    generator = np.random.default_rng(0)
    buffers = [
        EpisodeBuffer(
            observations=list(generator.normal(size=(7, 3)).astype(np.float32)),
            actions=list(generator.uniform(-1, 1, size=(6, 1)).astype(np.float32)),
            rewards=generator.normal(size=6).tolist(),
            terminations=[False] * 6,
            truncations=[False] * 5 + [True],
        )
        for _ in range(4)
    ]
    minari.create_dataset_from_buffers(
        "test/pendulum-v0",
        buffers,
        env="Pendulum-v1",
        eval_env="Pendulum-v1",
        algorithm_name="noise",
        author="test",
        author_email="test@example.com",
        code_permalink="https://example.com",
        description="noise",
    )
    module = TrajectoryDataModule(DataConfig(dataset_id="test/pendulum-v0", sequence_length=3), seed=0)
    module.setup()
    assert module.data.environment.env_id == "Pendulum-v1"
    assert (module.layout.observation_dim, module.layout.action_dim) == (3, 1)
    assert (len(module.train_examples), len(module.validation_examples)) == (18, 6)
    batch = module.train_examples.gather(torch.arange(4))
    assert batch.trajectories.shape == (4, 17)


def test_windows_of_a_goal_conditioned_model_begin_with_the_state_that_their_episode_ends_in() -> None:
    config = small_config()
    config.model.goal_conditioned = True
    module = small_datamodule(config)
    data = small_data()
    for windows, table, episodes in zip(
        (module.train_examples, module.validation_examples),
        (module.train_table, module.validation_table),
        split_episodes(data, config.data.validation_fraction, config.seed),
        strict=True,
    ):
        finals = torch.from_numpy(np.stack([e.observations[-1] for e in episodes for _ in range(len(e))]))
        expected = module.discretizer.encode(finals, module.layout.observation)
        batch = windows.gather(torch.arange(len(windows)))
        assert torch.equal(batch.trajectories[:, :1], expected)
        stop = module.discretizer.stop_token
        assert (batch.trajectories[:, 1 : module.layout.transition_dim] == stop).all()
        assert batch.trajectories.shape[1] == 4 * module.layout.transition_dim - 1  # three transitions and the goal
        assert (table.values[:, module.layout.reward :] == 0).all()
