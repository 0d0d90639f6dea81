"""Add chosen snapshots of ``train_behavior`` to one file of this package, as float16 arrays.

    python -m tools.select_snapshots logs/behavior/hopper hopper.npz 40000 600000

The snapshots are then named ``step_0040000`` and ``step_0600000`` in a recipe's ``PolicyBehavior``.
"""

import argparse
from pathlib import Path

import numpy as np

from trajectory_transformer import simulation

POLICIES = Path(simulation.__file__).parent


def select_snapshots(folder: Path, file: Path, steps: list[int]) -> None:
    """Write ``folder/step_*.npz`` of each of the ``steps`` to ``file`` under keys ``step_NNNNNNN/LAYER``.

    Other snapshots in ``file`` are kept.
    """
    chosen = {}
    if file.exists():
        with np.load(file) as arrays:
            chosen |= {key: arrays[key] for key in arrays}
    for step in steps:
        name = f"step_{step:07d}"
        with np.load(folder / f"{name}.npz") as arrays:
            chosen |= {f"{name}/{layer}": arrays[layer].astype(np.float16) for layer in arrays}
    np.savez_compressed(file, **chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of train_behavior")
    parser.add_argument("file", help="name of the .npz in this package")
    parser.add_argument("steps", type=int, nargs="+", help="training steps of the snapshots")
    args = parser.parse_args()
    select_snapshots(args.folder, POLICIES / args.file, args.steps)


if __name__ == "__main__":
    main()
