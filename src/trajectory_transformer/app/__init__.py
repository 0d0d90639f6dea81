"""The two commands: options, checks, run directories, sweeps. Nothing here imports torch until a job starts."""

import sys
from pathlib import Path

from . import completion

__all__ = ["entry_point", "evaluate", "train"]

CONFIGS = Path(__file__).parents[1] / "configs"  # in a checkout, a link to the folder at the repository's root


def entry_point(name: str, configs: Path) -> None:
    """Run "train" or "evaluate", whose root is ``configs/NAME.yaml``, with ``sys.argv``; returns after success.

    Raises:
        SystemExit: as :func:`~.main.run_command`.
    """
    if completion.is_query(sys.argv[1:]):
        print(*completion.answer(name, configs), sep="\n")
        return
    from .main import run_command  # here, as Hydra takes time

    run_command(name, configs)


def train() -> None:
    """Run the installed command ``trajectory-transformer-train``, which is equivalent to ``train.py``."""
    entry_point("train", CONFIGS)


def evaluate() -> None:
    """Run the installed command ``trajectory-transformer-evaluate``, which is equivalent to ``evaluate.py``."""
    entry_point("evaluate", CONFIGS)
