"""``python -m trajectory_transformer.data.collect recipe=NAME``: simulate an embedded data set and write it to disk."""

import sys

from ..simulation.collect import main

if __name__ == "__main__":
    sys.exit(main())
