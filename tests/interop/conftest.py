"""The deprecated port is no dependency: its comparison is collected only where it is installed."""

import importlib.util

PORT = "transformers.models.deprecated.trajectory_transformer"
OLDER_PORT = "transformers.models.trajectory_transformer"


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


collect_ignore = [] if _installed(PORT) or _installed(OLDER_PORT) else ["test_transformers_port.py"]
