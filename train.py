"""Train a Trajectory Transformer, then plan with it: ``python train.py [data=…] [model=…] [OPTION=VALUE …]``."""

from pathlib import Path

from trajectory_transformer.app import entry_point

if __name__ == "__main__":
    entry_point("train", Path(__file__).parent / "configs")
