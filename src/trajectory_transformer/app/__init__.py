"""The two commands: options, checks, run directories, sweeps. Nothing here imports torch until a job starts."""

from pathlib import Path

from .checks import RunChecks
from .main import entry_point

__all__ = ["RunChecks", "entry_point", "evaluate", "train"]

CONFIGS = Path(__file__).parents[1] / "configs"  # in a checkout a link to the folder of that name at its root


def train() -> None:
    """The installed command ``trajectory-transformer-train``, which does as ``train.py``."""
    entry_point("train", CONFIGS)


def evaluate() -> None:
    """The installed command ``trajectory-transformer-evaluate``, which does as ``evaluate.py``."""
    entry_point("evaluate", CONFIGS)
