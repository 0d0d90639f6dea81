"""The two commands: options, checks, run directories, sweeps. Nothing here imports torch until a job starts."""

from .checks import RunChecks
from .main import entry_point

__all__ = ["RunChecks", "entry_point"]
