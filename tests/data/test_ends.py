"""Whether a data set's own rewards tell what the end of an episode is worth (``data.termination_penalty=auto``)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data import episodes as module
from trajectory_transformer.data.episodes import Episode, OfflineData
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError

BOX = SpaceSpec((SpaceLeaf((), "box", (1,), (-1.0,), (1.0,)),))


def data_of(*parts: tuple[list[float], bool]) -> OfflineData:
    """Episodes of one-dimensional zeros with these rewards, which terminated or were cut."""
    episodes = [
        Episode(np.zeros((len(rewards) + 1, 1), np.float32), np.zeros((len(rewards), 1), np.float32),
                np.array(rewards, dtype=np.float32), terminated)
        for rewards, terminated in parts
    ]  # fmt: skip
    return OfflineData(["tests/ends-v0"], episodes, EnvironmentSpec("", None, BOX, BOX), None, "none", "")


STEPS = list(np.linspace(1.0, 3.0, 101))  # quantiles 5 % and 95 %: 1.1 and 2.9; stands out: below -2.5 or above 6.5


@pytest.mark.parametrize(
    ("last", "stands_out"), [(2.0, False), (-2.4, False), (6.4, False), (-2.6, True), (6.6, True), (100.0, True)]
)
def test_an_end_stands_out_by_twice_the_range_of_other_rewards(last: float, stands_out: bool) -> None:
    assert data_of((STEPS, False), ([*STEPS, last], True)).ends_have_rewards == stands_out


def test_one_end_in_a_hundred_has_to_stand_out() -> None:
    ordinary, crash = ([*STEPS, 2.0], True), ([*STEPS, -100.0], True)
    assert data_of(*[ordinary] * 99, crash).ends_have_rewards
    assert not data_of(*[ordinary] * 100, crash).ends_have_rewards


def test_without_terminations_there_is_no_end_to_reward() -> None:
    assert not data_of((STEPS, False), ([-1.0, -1.0], False)).ends_have_rewards


def test_a_success_that_alone_is_rewarded_stands_out() -> None:
    assert data_of(([0.0, 0.0, 1.0], True), ([0.0, 0.0], False)).ends_have_rewards


def test_an_end_of_costs_is_worth_something() -> None:
    assert data_of(([-1.0, -1.0, -1.0], True)).ends_have_rewards  # a mountain car
    assert data_of(([-1.0], True)).ends_have_rewards  # no other step to compare with
    assert not data_of(([1.0, 1.0, 1.0], True)).ends_have_rewards  # a pole that falls


def test_a_large_set_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLED_REWARDS", 50)
    assert data_of((STEPS, False), ([*STEPS, 6.8], True)).ends_have_rewards
    assert not data_of((STEPS, False), ([*STEPS, 6.2], True)).ends_have_rewards


@pytest.mark.parametrize("name", ["hopper/mixed", "hopper/medium-replay", "walker2d/medium-replay"])
def test_a_fall_of_the_simulated_robots_is_penalised(name: str) -> None:
    data = load_offline_data(DataConfig(dataset_id=f"embedded/{name}-v0"), progress=False)
    assert any(episode.terminated for episode in data.episodes)
    assert DataConfig().resolve_penalty(data.ends_have_rewards).termination_penalty == -100.0


def test_only_auto_depends_on_the_data() -> None:
    for given in (-7, 0.0, None):
        assert DataConfig(termination_penalty=given).resolve_penalty(True).termination_penalty == given
    assert DataConfig().resolve_penalty(True) == replace(DataConfig(), termination_penalty=None)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("none", "data.termination_penalty='none' must be a number, null or auto"),
        (True, "data.termination_penalty must be a number or null, got True"),
        (float("nan"), "data.termination_penalty=nan must be finite"),
        (-1e19, "data.termination_penalty=-1e+19 must be at least"),
    ],
)
def test_wrong_penalties_are_named(wrong: object, message: str) -> None:
    with pytest.raises(UserError) as error:
        DataConfig(termination_penalty=wrong)
    assert message in str(error.value)


def test_episodes_on_disk_are_judged_alike(tmp_path: Path) -> None:
    config = DataConfig(dataset_id="embedded/hopper/mixed-v0", cache=str(tmp_path))
    assert not load_offline_data(config, progress=False).ends_have_rewards
