"""Memory available to a process; limits are set in a separate process."""

import math
import os
import platform
import subprocess
import sys

import pytest

from trajectory_transformer import available_memory
from trajectory_transformer.available_memory import require_memory
from trajectory_transformer.errors import UserError


def test_a_limit_of_address_space_counts() -> None:
    code = (
        "import resource; from trajectory_transformer.available_memory import available_memory\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 * 10**9, 2 * 10**9)); print(available_memory())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0 < float(done.stdout) < 2e9


def test_a_machine_that_says_nothing_has_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(_: object) -> list[str]:
        raise FileNotFoundError

    assert 0 < available_memory.available_memory() < 1e15
    monkeypatch.setattr(available_memory, "_lines", nothing)
    assert available_memory.available_memory() == math.inf


def test_a_refusal_has_the_bytes() -> None:
    require_memory(10, 10, "it takes", "take less")
    with pytest.raises(UserError, match=r"^it takes at least 12,000,000,001 bytes of memory \(12\.0 GB\), and 0\.5 GB"):
        require_memory(12e9 + 1, 5e8, "it takes", "take less")


REUSE = """
import resource
from trajectory_transformer.available_memory import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(20 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages()
before = new_pages()
keep_freed_memory()
new_pages()
print(before, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such option")
def test_freed_memory_is_used_again() -> None:
    done = subprocess.run([sys.executable, "-c", REUSE], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 0.9 * 20 * 2**20 / os.sysconf("SC_PAGE_SIZE")
    assert after < before / 10
