"""Every option has its meaning below its field, and is listed with its values."""

import dataclasses

import pytest

from trajectory_transformer import configuration
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig, one_of, within
from trajectory_transformer.configuration.documentation import Option, meanings_of, options_of
from trajectory_transformer.configuration.validation import Range
from trajectory_transformer.data.minari_set import EmbeddedSet, MinariSet
from trajectory_transformer.data.npz_folder import NpzFolder
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.behavior import DeterministicBehavior
from trajectory_transformer.learners.critic_objective import CriticValue
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.planning.objectives import Goal, Likelihood, WeightedSum

RECORDS = [getattr(configuration, name) for name in configuration.__all__ if name.endswith("Config")]
RECORDS += [TransformerConfig, BehaviorCloning, EnsembleLearner, ImplicitQLearning, CriticValue, Goal, Likelihood]
RECORDS += [
    DeterministicBehavior,
    ReturnConditioned,
    RegularizedActorCritic,
    WeightedSum,
    EmbeddedSet,
    MinariSet,
    NpzFolder,
]


@pytest.mark.parametrize("record", RECORDS)
def test_every_option_has_a_meaning(record: type) -> None:
    meanings = meanings_of(record)
    assert set(meanings) == {field.name for field in dataclasses.fields(record) if field.init}
    for name, meaning in meanings.items():
        assert meaning[0].isupper(), name
        assert meaning.endswith((".", "…")), name
        assert len(meaning) <= 250, name


@dataclasses.dataclass
class Inner:
    share: float = within(0.5, above=0.0, below=1.0)
    """A share,
    on two lines."""
    undocumented: int = 3


@dataclasses.dataclass
class Outer(Inner):
    word: str = one_of("a", ("a", "b"))
    """A word."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """Not an option itself."""
    inners: dict[str, Inner] = dataclasses.field(default_factory=dict)
    needed: list[int] | None = dataclasses.field(kw_only=True)
    count: int | None = within(None, 1, 9)


def test_a_record_s_options() -> None:
    found = {option.name: option for option in options_of(Outer, "at.")}
    names = ["share", "undocumented", "word", "inner.share", "inner.undocumented", "inners", "needed", "count"]
    assert list(found) == [f"at.{name}" for name in names]
    assert found["at.inner.share"].meaning == found["at.share"].meaning == "A share, on two lines."
    assert found["at.undocumented"].meaning == ""
    values = {name: option.values for name, option in found.items()}
    assert values["at.share"] == "number in (0, 1)"
    assert values["at.word"] == "a, b"
    assert values["at.needed"] == "list, or null"
    assert values["at.count"] == "whole number in [1, 9], or null"
    assert (found["at.needed"].default, found["at.inners"].default) == (dataclasses.MISSING, {})


@pytest.mark.parametrize("root", [TrainConfig, EvaluateConfig])
def test_each_of_a_command_s_options_is_there_once(root: type) -> None:
    options = list(options_of(root))
    names = [option.name for option in options]
    assert len(names) == len(set(names)) >= 50
    assert all(isinstance(option, Option) and option.meaning for option in options)
    assert ("tune.trials" in names) is (root is TrainConfig)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Range(1, 1000), "in [1, 1000]"),
        (Range(high=1.0, above=0.0), "in (0, 1]"),
        (Range(0.0, below=0.5), "in [0, 0.5)"),
        (Range(1), "≥ 1"),
        (Range(above=0.0, high=1e18), "> 0"),
        (Range(), ""),
    ],
)
def test_ranges(limits: Range, words: str) -> None:
    assert str(limits) == words
