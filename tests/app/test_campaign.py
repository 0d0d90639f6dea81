"""Bad values for every option of both commands, as typed: each is refused with one sentence and exit code 2."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trajectory_transformer.app.names import options_of
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig

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


def attempts(schema: type) -> Iterator[tuple[str, str]]:
    """(option, word) for all options of ``schema`` of these types."""
    for name, hint in options_of(schema):
        if name.partition(".")[0] not in ELSEWHERE:
            kinds = [kind for kind in BAD if hint in (kind, kind | None)]
            yield from ((name, word) for kind in kinds for word in BAD[kind])


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_bad_words_are_refused_in_one_sentence(
    command: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call: Callable[..., int] = request.getfixturevalue(command)
    (tmp_path / "a.ckpt").touch()
    needed = [] if command == "train" else ["checkpoint=a.ckpt"]
    tried = list(attempts(TrainConfig if command == "train" else EvaluateConfig))
    assert len(tried) > 200
    wrong: list[tuple[str, str, str]] = []
    for name, word in tried:
        try:
            code = call(*needed, f"{name}={word}")
        except Exception as error:
            code = type(error).__name__
        lines = capsys.readouterr().err.splitlines()
        if code != 2 or len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > 400:
            wrong.append((name, word[:20], f"{code}: {' '.join(lines)[:200]}"))
    assert wrong == [], f"{len(wrong)} of {len(tried)}"
