"""The typed record of a checkpoint, and its other contents."""

import copy
import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from trajectory_transformer.checkpoint import Checkpoint, DatasetRecord, TrainingRecord
from trajectory_transformer.configuration import DataConfig, DiscretizerConfig, PlannerConfig
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError

from .specs import box

ENVIRONMENT = EnvironmentSpec("Walk-v0", None, box(3), box(2))
DATASET = DatasetRecord(
    ("tests/walk-v0",), "same", torch.tensor([1.5, -2.0], dtype=torch.float64), (0.0, 9.0), "d4rl", longest_episode=12
)
DATA = DataConfig("tests/walk-v0", discretizer=DiscretizerConfig("uniform", 7), discount=0.9)
RECORD = TrainingRecord("iql", {"_target_": "my_package.Mine", "width": 3}, ENVIRONMENT, DATASET, DATA, seed=4)


def checkpoint(record: TrainingRecord) -> Checkpoint:
    return Checkpoint("ensemble.ckpt", record, {}, {"network.a.weight": torch.ones(1), "other": torch.zeros(1)})


def test_a_record_survives_its_plain_values() -> None:
    discretizer = UniformDiscretizer(7).fit(torch.tensor([[-1.0] * 7, [1.0] * 7]))
    full = replace(RECORD, planner=PlannerConfig(horizon=3), discretizer=discretizer)
    for record in (RECORD, full):
        restored = TrainingRecord.from_dict(record.to_dict())
        assert restored.to_dict().keys() == record.to_dict().keys()
        for name in ("kind", "learner", "environment", "data", "seed", "planner"):
            assert getattr(restored, name) == getattr(record, name)
        assert replace(restored.dataset, returns=DATASET.returns) == DATASET
        assert torch.equal(restored.dataset.returns, DATASET.returns)
    restored = TrainingRecord.from_dict(full.to_dict()).discretizer
    assert restored is not None
    assert torch.equal(restored.edges, discretizer.edges)


def test_the_longest_episode_of_earlier_versions_is_unknown() -> None:
    values = RECORD.to_dict()
    del values["dataset"]["longest_episode"]
    assert TrainingRecord.from_dict(values).dataset.longest_episode is None


def test_weights_of_one_part() -> None:
    assert checkpoint(RECORD).weights("network").keys() == {"a.weight"}


def test_what_was_trained_on_the_same_data_is_taken() -> None:
    checkpoint(RECORD).require_same_data("predict.ensemble", ENVIRONMENT, "same")
    checkpoint(RECORD).require_same_split("predict.ensemble", DATA, 4)
    checkpoint(RECORD).require_kind("iql")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            replace(RECORD, environment=replace(ENVIRONMENT, observation=box(5))),
            "has 5 observation dimensions, the checkpoint's model 3",
        ),
        (
            replace(RECORD, environment=replace(ENVIRONMENT, action=box(1))),
            "has 1 action dimensions, the checkpoint's model 2",
        ),
        (
            replace(RECORD, dataset=replace(DATASET, ids=("tests/other-v0",), fingerprint="other")),
            r"other data \(tests/other-v0\)",
        ),
        (
            replace(RECORD, environment=replace(ENVIRONMENT, observation=box(4), observation_indices=(0, 1, 3))),
            r"\(0, 1, 3\).* None",
        ),
    ],
)
def test_what_was_trained_on_other_data_is_refused(record: TrainingRecord, message: str) -> None:
    with pytest.raises(UserError, match=rf"predict\.ensemble .*{message}"):
        checkpoint(record).require_same_data("predict.ensemble", ENVIRONMENT, "same")


def test_another_split_or_kind_is_refused() -> None:
    with pytest.raises(UserError, match=r"^predict\.ensemble was trained with seed=4, the checkpoint's model with 5"):
        checkpoint(RECORD).require_same_split("predict.ensemble", DATA, 5)
    with pytest.raises(UserError, match=r"data\.validation_fraction=0\.1, the checkpoint's model with 0\.2"):
        checkpoint(RECORD).require_same_split("predict.ensemble", replace(DATA, validation_fraction=0.2), 4)
    with pytest.raises(UserError, match=r"^checkpoint 'ensemble\.ckpt' was trained with learner=iql, and one of"):
        checkpoint(RECORD).require_kind("transformer")


def hostile(change: Callable[[dict[str, Any]], object]) -> str:
    """The refusal of a checkpoint whose section was changed."""
    section = copy.deepcopy(RECORD.to_dict()) | {"model": {}}
    change(section)
    with pytest.raises(UserError) as caught:
        Checkpoint.from_contents({"trajectory_transformer": section, "state_dict": {}}, "foreign.ckpt")
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_VALUES = [None, 5, 1.5, math.nan, "x", [], {}, [[1]], True, 10**5000, 1j, {"a": {"b": 1}}]


def test_values_of_no_sense_in_a_checkpoint_are_one_sentence() -> None:
    """Each entry of each part, with a dozen values mostly of a wrong type."""
    places = [(name,) for name in RECORD.to_dict()]
    places += [(part, name) for part in ("environment", "dataset", "data") for name in RECORD.to_dict()[part]]
    places += [("environment", "observation", "leaves", 0, name) for name in ("path", "kind", "shape", "low", "high")]
    refused: list[str] = []
    for place in places:
        for value in BAD_VALUES:
            section = copy.deepcopy(RECORD.to_dict()) | {"model": {}}
            inner: Any = section
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = value
            try:
                Checkpoint.from_contents({"trajectory_transformer": section, "state_dict": {}}, "foreign.ckpt")
            except UserError as error:
                refused.append(str(error))
    assert all("foreign.ckpt" in message and "\n" not in message for message in refused)
    assert len(refused) > len(places) * len(BAD_VALUES) * 0.7


@pytest.mark.parametrize(
    ("place", "option"),
    [
        (("data",), "data.future"),
        (("data", "discretizer"), "data.discretizer.future"),
        (("planner",), "planner.future"),
    ],
)
def test_an_option_of_a_newer_version_is_named(place: tuple[str, ...], option: str) -> None:
    def add(section: dict[str, Any]) -> None:
        section["planner"] = {"name": "return"}
        for key in place:
            section = section[key]
        section["future"] = 1

    assert f"this version has no option {option}; the file is probably of a newer one" in hostile(add)


def test_bounds_and_dimensions_of_a_checkpoint_fit_its_spaces() -> None:
    def leaf(section: dict[str, Any]) -> dict[str, Any]:
        return section["environment"]["observation"]["leaves"][0]

    assert "shape does not fit" in hostile(lambda section: leaf(section).update(shape=[10**9]))
    assert "shape does not fit" in hostile(lambda section: leaf(section).update(low=[2.0, 2.0, 2.0]))
    assert "not among 3" in hostile(lambda section: section["environment"].update(observation_indices=[3]))


def test_nothing_is_built_of_sizes_that_the_weights_do_not_have() -> None:
    """A layer of ten thousand by ten thousand, eight hundred times, would be 320 GB."""
    options = {"hidden_layers": 800, "hidden_width": 10_000, "reward_scale": 1.0, "reward_shift": 0.0}
    small = replace(checkpoint(RECORD), model=options)
    built: list[torch.device] = []

    def make() -> torch.nn.Module:
        layer = torch.nn.Linear(10_000, 10_000)
        built.append(layer.weight.device)
        return layer

    with pytest.raises(UserError, match=r"do not fit together: the tensor 'weight' is missing"):
        small.build("network", make)
    assert [device.type for device in built] == ["meta"]


def test_the_fingerprint_is_of_the_weights_alone() -> None:
    """Of their names, types, shapes and bits, in whatever order; 0-dimensional and empty ones, too."""
    weights = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor(True),
        "c": torch.empty(0),
        "d": torch.ones(2).bfloat16(),
    }
    given = replace(checkpoint(RECORD), state_dict=weights)
    same = replace(given, name="other", training=replace(RECORD, seed=99), state_dict=dict(reversed(weights.items())))
    assert same.fingerprint() == given.fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", given.fingerprint())
    changed: list[dict[str, torch.Tensor]] = [
        {**weights, "a": weights["a"].view(3, 2)},
        {**weights, "a": weights["a"].nextafter(torch.tensor(9.0))},
        {**weights, "a": weights["a"].t().contiguous().t().int()},
        {name + "x": value for name, value in weights.items()},
    ]
    assert len({replace(given, state_dict=one).fingerprint() for one in (weights, *changed)}) == 5
    transposed = {**weights, "a": weights["a"].t().contiguous().t()}  # equal values in another order in memory
    assert replace(given, state_dict=transposed).fingerprint() == given.fingerprint()
