"""Free text on the command line stays as it is typed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser

from trajectory_transformer.app.mistakes import refuse_changed_text
from trajectory_transformer.app.names import as_text
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig
from trajectory_transformer.errors import UserError

from .conftest import CONFIGS, Runs


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
    assert train("logger=wandb", f"logger.project={typed}", f"++logger.run_name={typed}", "seed=7") == 0
    options = runs.calls[0][0]
    assert (options.logger.project, options.logger.run_name, options.seed) == (meant, meant, 7)


def test_lists_of_text_are_not_read_as_numbers(train: Callable[..., int], runs: Runs) -> None:
    assert train("logger=wandb", "logger.tags=[1e3, b,007]") == 0
    assert runs.calls[0][0].logger.tags == ["1e3", "b", "007"]


def test_text_in_a_sweep_is_not_read_as_a_number(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train("-m", "logger.run_name=1e3,2.50,x", "logger.group=05", "seed=1,2", "hydra.sweep.dir=sweep") == 0
    made = [(options.logger.run_name, options.logger.group, options.seed) for options, _ in runs.calls]
    assert made == [(name, "05", seed) for name in ("1e3", "2.50", "x") for seed in (1, 2)]
    assert yaml.safe_load((tmp_path / "sweep" / "0" / "config.yaml").read_text())["logger"]["run_name"] == "1e3"


READ = {  # words of one run -> the text meant, or of a sweep -> the texts
    "a=b": ["a=b"], "naïve": ["naïve"], "日本 ☃": ["日本 ☃"], "#5": ["#5"], "!x&": ["!x&"], "1e3 ": ["1e3"],
    "'a,b'": ["a,b"], "'null'": ["null"], '"it\'s"': ["it's"], "' x '": [" x "], "${seed}": ["0"], "$x": ["$x"],
    "null": [None], "a b 5": ["a b 5"],
    "1e3,'x,y',a=b": ["1e3", "x,y", "a=b"], "007,true,null": ["007", "true", None], "é,0x10": ["é", "0x10"],
    "choice(a,b)": ["a", "b"],
}  # fmt: skip


def test_text_is_read_as_it_was_typed_or_quoted() -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        parser = OverridesParser.create(GlobalHydra.instance().config_loader())
        for typed, meant in READ.items():
            parsed = parser.parse_overrides(as_text([f"logger.run_name={typed}"], TrainConfig))
            jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
            assert [compose("train", overrides=[*job]).logger.run_name for job in jobs] == meant, typed


@pytest.mark.parametrize(("written", "as_read"), [("1e3", "1000.0"), ("007", "7"), ("true", "True"), ("1_000", "1000")])
def test_text_that_yaml_would_change_is_refused(tmp_path: Path, written: str, as_read: str) -> None:
    (tmp_path / "logger").mkdir()
    file = tmp_path / "logger" / "mine.yaml"
    for text in (f"run_name: {written}", f"tags: [a, {written}]", f"# @package _global_\nlogger: {{group: {written}}}"):
        file.write_text(text)
        with pytest.raises(
            UserError, match=rf"mine\.yaml: YAML reads {written} as {as_read}, but logger\.\w+ is a text"
        ):
            refuse_changed_text({"logger": "mine"}, [tmp_path], TrainConfig)
    file.write_text(
        f"run_name: '{written}'\ntags: [5, 1.5, '{written}']\nproject: null\ngroup: ${{seed}}\noffline: true"
    )
    refuse_changed_text({"logger": ["mine"], "model": "absent", "local": None}, [tmp_path], TrainConfig)


def test_only_free_text_is_quoted() -> None:
    words = ["seed=1e3", "trainer.precision=32", "hydra.run.dir=5", "-m", "logger.extra.a=5", "logger.run_name=${seed}"]
    assert as_text(words, TrainConfig) == words
    assert as_text(["checkpoint=007", "video=2"], EvaluateConfig) == ["checkpoint='007'", "video=2"]
