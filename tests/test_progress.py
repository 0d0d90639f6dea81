"""Progress: a bar on a terminal, lines in a log, or nothing."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from trajectory_transformer import progress as progress_file
from trajectory_transformer.progress import WorkProgress


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, and without a delay between lines."""
    monkeypatch.setattr(progress_file, "PLAIN_LINE_SECONDS", 0.001)
    monkeypatch.setenv("TTY_COMPATIBLE", "0")


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> list[str]:
    lines: list[str] = []
    deadline = time.monotonic() + 20
    while len(lines) < count and time.monotonic() < deadline:
        time.sleep(0.005)
        lines += capsys.readouterr().err.splitlines()
    return lines


@pytest.mark.usefixtures("soon")
def test_a_log_gets_lines_also_during_a_single_long_step(capsys: pytest.CaptureFixture[str]) -> None:
    with WorkProgress("{task.completed:.0f}/{task.total:.0f} episodes, mean {task.fields[mean]}") as progress:
        task = progress.add_task("planning", total=9, mean="[1;2]")
        assert wait_for_lines(capsys, 3)[2] == "planning  0/9 episodes, mean [1;2]  0:00:00 elapsed"
        progress.update(task, completed=4.5, mean="7")
        lines = wait_for_lines(capsys, 3)
    assert lines[-1].startswith("planning  4/9 episodes, mean 7  0:00:0")
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("soon")
def test_what_is_iterated_over_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    def slow() -> Iterator[int]:
        for number in range(3):
            deadline = time.monotonic() + 20
            while not wait_for_lines(capsys, 1)[-1].startswith(f"reading  {number} of 3"):
                assert time.monotonic() < deadline
            yield number

    with WorkProgress("{task.completed:.0f} of {task.total:.0f}") as progress:
        assert list(progress.track(slow(), total=3, description="reading")) == [0, 1, 2]


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize(("shown", "environment"), [(False, {}), (True, {"RANK": "1"})])
def test_nobody_is_told_twice_or_unasked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shown: bool, environment: dict[str, Any]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with WorkProgress("{task.completed}", shown) as progress:
        progress.add_task("planning", total=9)
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")


def test_quick_work_leaves_no_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "0")
    with WorkProgress("{task.completed}") as progress:
        progress.update(progress.add_task("planning", total=9), completed=9)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with WorkProgress("{task.completed:.0f}/{task.total:.0f}") as progress:
        progress.update(progress.add_task("planning", total=9), completed=9)
    shown = capsys.readouterr()
    assert "9/9" in shown.err
    assert shown.out == ""
