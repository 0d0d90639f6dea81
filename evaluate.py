"""Evaluate a checkpoint: ``python evaluate.py checkpoint=PATH [task=…] [planner=…] [OPTION=VALUE …]``."""

from pathlib import Path

from trajectory_transformer.app import entry_point

if __name__ == "__main__":
    entry_point("evaluate", Path(__file__).parent / "configs")
