"""Every option of every record is of its type, finite and within its range, or refused in one sentence."""

import dataclasses
import math
from typing import Any, get_type_hints

import numpy as np
import pytest

from trajectory_transformer import configuration
from trajectory_transformer.configuration import ParameterConfig, PlannerConfig, TrainerConfig, validate, within
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.model.config import TransformerConfig

RECORDS = [getattr(configuration, name) for name in configuration.__all__ if name.endswith("Config")]
RECORDS += [TransformerConfig, BehaviorCloning, ReturnConditioned, RegularizedActorCritic]
NEEDED: dict[type, dict[str, Any]] = {
    configuration.EvaluateConfig: {"checkpoint": "best.ckpt"},
    ParameterConfig: {"low": 0, "high": 1},
    configuration.TuneConfig: {"parameters": {"seed": ParameterConfig(0, 1)}},
}
NUMBERS = ["x", math.nan, math.inf, -math.inf, [1], {}, True, 10**400, 10**5000 - 1, 1e300, -1e300, 1j]
BAD: dict[Any, list[Any]] = {
    int: [*NUMBERS, 1.5, -1],
    float: NUMBERS,
    bool: ["yes", 2, [True], 1.5],
    str: [5, ["a"], {}, 1.5, True],
    list[int]: [5, {"a": 1}, "x", [[1]], [1.5], [True]],
    list[str]: [5, {"a": 1}, "x", [["a"]], [1]],
    dict[str, Any]: [5, [1], "x", {1: 2}],
}


def campaign() -> list[tuple[type, str, Any]]:
    """(record, option, bad value) for all options of numbers, texts, flags, lists and mappings."""
    found = []
    for record in RECORDS:
        hints = get_type_hints(record)
        for option in dataclasses.fields(record):
            kinds = [kind for kind in BAD if hints[option.name] in (kind, kind | None)]
            found += [(record, option.name, value) for kind in kinds for value in BAD[kind]]
    return found


def test_bad_values_are_refused_in_one_sentence() -> None:
    attempts = campaign()
    assert len(attempts) > 1000
    wrong = []
    for record, name, value in attempts:
        try:
            record(**NEEDED.get(record, {}) | {name: value})
            wrong.append((record.__name__, name, type(value), "accepted"))
        except UserError as error:
            if name not in str(error) or "\n" in str(error) or len(str(error)) > 250:
                wrong.append((record.__name__, name, type(value), str(error)))
        except Exception as error:
            wrong.append((record.__name__, name, type(value), repr(error)))
    assert wrong == []


def test_defaults_and_numbers_of_numpy_are_taken() -> None:
    for record in RECORDS:
        record(**NEEDED.get(record, {}))
    assert TrainerConfig(max_steps=np.int64(3)).max_steps == 3  # pyright: ignore[reportArgumentType]
    assert PlannerConfig(temperature=np.float32(0.5), discount=1).discount == 1  # pyright: ignore[reportArgumentType]


@dataclasses.dataclass
class Some:
    share: float = within(0.5, above=0.0, below=1.0)
    count: int | None = within(None, 2, 9)
    pair: tuple[float, ...] = ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": 1.0}, r"^at\.share=1\.0 must lie in \(0, 1\)$"),
        ({"count": 10}, r"^at\.count=10 must be at most 9, or null$"),
        ({"count": 1}, r"^at\.count=1 must be at least 2, or null$"),
        ({"count": "3"}, r"^at\.count must be a whole number or null, got '3'$"),
        ({"count": 2**63}, r"^at\.count=9223372036854775808 is too large a number$"),
        ({"pair": (1.0, "2")}, r"^at\.pair must be a list, each entry a number, got \(1\.0, '2'\)$"),
        ({"pair": ("x" * 100,)}, r"^at\.pair must be .*xx…$"),
    ],
)
def test_messages(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate("at.", Some(**options))


def test_candidates_are_bounded_together() -> None:
    PlannerConfig(beam_width=256, n_expand=256)
    with pytest.raises(UserError, match=r"planner\.n_expand=1000000 make 32,000,000 candidates"):
        PlannerConfig(n_expand=10**6)
