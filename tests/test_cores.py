"""Cores used by other processes, from a fake and the real /proc/stat, and the resulting numbers of threads."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trajectory_transformer import cores
from trajectory_transformer.cores import OtherProcesses, are_contended, wait_passively

TICKS = os.sysconf("SC_CLK_TCK")


def test_what_others_use_is_what_all_use_but_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stat, clock, own = tmp_path / "stat", [100.0], [7.0]
    monkeypatch.setattr(cores, "STAT", stat)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "process_time", lambda: own[0])
    #                     user nice system idle waiting irq softirq steal guest
    stat.write_text(f"cpu  {10 * TICKS} 0 {TICKS} 999 88 0 0 0 5 0\ncpu0 1 2 3\n")
    others = OtherProcesses()
    clock[0], own[0] = 110.0, 12.0  # ten seconds later, of which five were ours
    stat.write_text(f"cpu  {20 * TICKS} {2 * TICKS} {4 * TICKS} 5555 777 {TICKS} {TICKS} {3 * TICKS} 5 0\ncpu0 1 2 3\n")
    assert others.cores() == pytest.approx((10 + 2 + 3 + 1 + 1 + 3 - 5) / 10)
    clock[0] = 120.0
    assert others.cores() == 0.0  # since the call before


@pytest.mark.skipif(not cores.STAT.exists(), reason="there is no /proc/stat")
def test_a_busy_process_is_seen() -> None:
    others = OtherProcesses()
    ready = "print(flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", ready], stdout=subprocess.PIPE) as rival:
        assert rival.stdout is not None
        rival.stdout.readline()
        others.cores()
        time.sleep(0.5)
        assert others.cores() > 0.2
        rival.kill()


def test_where_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "STAT", Path("/nowhere"))
    assert OtherProcesses().cores() == 0.0


@pytest.mark.parametrize(
    ("others", "threads", "contended"),
    [(0.0, 2, False), (0.2, 4, False), (1.0, 2, False), (2.6, 2, True), (1, 4, True)],
)
def test_contended_on_four_cores(others: float, threads: int, contended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert are_contended(others, threads) == contended


@pytest.mark.parametrize(
    ("others", "given", "wanted"),
    [(0.0, {}, None), (1.0, {}, "0"), (1.0, {"GOMP_SPINCOUNT": "7"}, "7"), (1.0, {"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_wait_passively_where_cores_are_contended(
    others: float, given: dict[str, str], wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    wait_passively(others)
    assert os.environ.get("GOMP_SPINCOUNT") == wanted
