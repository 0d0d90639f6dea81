"""Fill the tables of README.md and docs/ from results: ``python -m tools.tables [--check]``.

A table stands between two lines of its own, the first of which names files and figures:

    <!-- table: results/goal/*.csv | success_rate, return_mean -->
    <!-- end of table -->

The files are copies of runs' ``figures.csv``. A row is one file's method; files whose names differ in ``_seed<N>``
alone share a row. Run it where README.md lies; ``--check`` changes nothing and exits with 1 where a page is stale.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from trajectory_transformer.errors import UserError
from trajectory_transformer.files import write_whole

from .pages import filled, pages


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command in the current folder; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is stale")
    options = parser.parse_args(arguments)
    root = Path.cwd()
    try:
        texts = {page: filled(root, page) for page in pages(root)}
        stale = [page for page, text in texts.items() if text != page.read_text()]
        for page in stale:
            if not options.check:
                write_whole(page, texts[page])
            print(f"{page.relative_to(root)}: {'stale' if options.check else 'written'}")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
