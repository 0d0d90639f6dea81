"""Bad values for every option of both commands, as typed: each is refused with one sentence."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from trajectory_transformer.app import mistakes
from trajectory_transformer.app.checks import validated
from trajectory_transformer.app.names import as_text, options_of
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig
from trajectory_transformer.errors import UserError

from .conftest import CONFIGS

DIGITS = "9" * 5_000
BAD = {  # type -> words that are no value of it
    int: ["x", "1.5", "nan", "inf", "[1]", "{a: 1}", "-1", DIGITS, "''"],
    float: ["x", "nan", "inf", "-inf", "[1]", "{a: 1}", "1e300", DIGITS, "''"],
    bool: ["maybe", "2", "1.5", "nan", "[true]", "{a: 1}", DIGITS, "''"],
    str: ["[a]", "{a: 1}", DIGITS],
    list[int]: ["5", "x", "[x]", "[1.5]", "[[1]]", "{a: 1}", f"[{DIGITS}]", "''"],
    list[str]: ["5", "x", "[[a]]", "{a: 1}", f"[{DIGITS}]", "''"],
}
ELSEWHERE = ("resume", "extend", "extended", "tune", "checkpoint")  # have checks of their own, in other tests
SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig}
EVERY = 60  # share of the words that go through the whole command, too


def attempts(schema: type) -> Iterator[tuple[str, str]]:
    """(option, word) for all options of ``schema`` of these types."""
    for name, hint in options_of(schema):
        if name.partition(".")[0] not in ELSEWHERE:
            kinds = [kind for kind in BAD if hint in (kind, kind | None)]
            yield from ((name, word) for kind in kinds for word in BAD[kind])


def refusal(command: str, *words: str) -> str:
    """The sentence with which a command refuses its options; it is composed and checked here, and nothing is run."""
    schema, options = SCHEMAS[command], as_text(words, SCHEMAS[command])
    try:
        mistakes.refuse_unreadable(options, [CONFIGS], schema)
        config = compose(command, overrides=options, return_hydra_config=True)
        validated(config, cast(DictConfig, config.hydra))
    except UserError as error:
        return f"error: {error}"
    except mistakes.EXPECTED as error:
        return f"error: {mistakes.explain(error, schema, [CONFIGS])}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


@pytest.mark.slow
@pytest.mark.parametrize("command", SCHEMAS)
def test_bad_words_are_refused_in_one_sentence(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.ckpt").touch()
    needed = [] if command == "train" else ["checkpoint=a.ckpt"]
    tried, wrong = list(attempts(SCHEMAS[command])), []
    assert len(tried) > 300
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        for name, word in tried:
            told = refusal(command, *needed, f"{name}={word}")
            if not told.startswith("error: ") or "\n" in told or len(told) > 400:
                wrong.append(f"{name}={word[:20]}: {told[:200]}")
    assert wrong == [], f"{len(wrong)} of {len(tried)}"


@pytest.mark.slow
@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("command", SCHEMAS)
def test_the_command_says_that_sentence(
    command: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call: Callable[..., int] = request.getfixturevalue(command)
    (tmp_path / "a.ckpt").touch()
    needed = [] if command == "train" else ["checkpoint=a.ckpt"]
    for name, word in itertools.islice(attempts(SCHEMAS[command]), 0, None, EVERY):
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            told = refusal(command, *needed, f"{name}={word}")
        assert (call(*needed, f"{name}={word}"), capsys.readouterr().err.strip()) == (2, told)
