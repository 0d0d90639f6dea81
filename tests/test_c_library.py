"""Forked processes, after their parent has computed with several threads."""

import subprocess
import sys

FORK = """
import os, torch
from trajectory_transformer import c_library

torch.set_num_threads(2)
numbers = torch.randn(600, 600)
numbers.exp().sum()
child = os.fork()
if child == 0:
    numbers.exp().sum()
    os._exit(0 if torch.get_num_threads() == 1 else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_computes_with_one_thread() -> None:
    """It lacks its parent's other threads, and would wait for them forever."""
    assert subprocess.run([sys.executable, "-c", FORK], timeout=60).returncode == 0
