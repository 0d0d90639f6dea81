"""Copy a checkpoint without what only resuming needs: ``python -m tools.strip_checkpoint SOURCE DESTINATION``.

Optimiser and loop states are two thirds of a file. The copy plans as its source does, and cannot be resumed.
"""

import argparse
from pathlib import Path

from trajectory_transformer.checkpoint_file import read_checkpoint, write_checkpoint

ONLY_FOR_RESUMING = ("optimizer_states", "lr_schedulers", "loops", "callbacks")


def strip(source: Path, destination: Path) -> None:
    """Write the copy; UserError if the source is no checkpoint."""
    contents = read_checkpoint(source)
    write_checkpoint(destination, {name: part for name, part in contents.items() if name not in ONLY_FOR_RESUMING})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    given = parser.parse_args()
    strip(given.source, given.destination)
