"""Free text on the command line stays as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trajectory_transformer.app.names import as_text
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig

from .conftest import Runs


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("5", "5"),
        ("1e3", "1e3"),
        ("007", "007"),
        ("1_000", "1_000"),
        ("+1.50", "+1.50"),
        ("true", "true"),
        ("NaN", "NaN"),
        ("-inf", "-inf"),
        ("a b 5", "a b 5"),
        ("'1e3'", "1e3"),
        ("null", None),
    ],
)
def test_text_is_not_read_as_a_number(train: Callable[..., int], runs: Runs, typed: str, meant: str | None) -> None:
    assert train(f"logger.project={typed}", f"++logger.run_name={typed}", "seed=7") == 0
    options = runs.calls[0][0]
    assert (options.logger.project, options.logger.run_name, options.seed) == (meant, meant, 7)


def test_lists_of_text_are_not_read_as_numbers(train: Callable[..., int], runs: Runs) -> None:
    assert train("logger.tags=[1e3, b,007]") == 0
    assert runs.calls[0][0].logger.tags == ["1e3", "b", "007"]


def test_text_in_a_sweep_is_not_read_as_a_number(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train("-m", "logger.run_name=1e3,2.50,x", "logger.group=05", "seed=1,2", "hydra.sweep.dir=sweep") == 0
    made = [(options.logger.run_name, options.logger.group, options.seed) for options, _ in runs.calls]
    assert made == [(name, "05", seed) for name in ("1e3", "2.50", "x") for seed in (1, 2)]
    assert yaml.safe_load((tmp_path / "sweep" / "0" / "config.yaml").read_text())["logger"]["run_name"] == "1e3"


def test_only_free_text_is_quoted() -> None:
    words = ["seed=1e3", "trainer.precision=32", "hydra.run.dir=5", "-m", "logger.extra.a=5", "logger.run_name=${seed}"]
    assert as_text(words, TrainConfig) == words
    assert as_text(["checkpoint=007", "video=2"], EvaluateConfig) == ["checkpoint='007'", "video=2"]
