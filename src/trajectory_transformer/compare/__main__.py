"""Compare methods over tasks and seeds: ``python -m trajectory_transformer.compare NAME=FOLDER[,FOLDER…] …``.

A folder is a run, a sweep, or a folder of them, and may be a glob pattern; without NAME, the method has the folder's
name. Prints a table by task, one of tasks by methods, aggregates over tasks with intervals, probabilities of
improvement, and the expected best of n policies tried.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..app.mistakes import without_usage
from ..configuration import require
from ..errors import UserError
from ..reachability import unreachable, wandb_key_is_configured, wandb_url
from .runs import NORMALIZATIONS, differences, find_results, read_run, remarks

if TYPE_CHECKING:
    from .report import Report


def compare_runs(
    words: Sequence[str],
    normalization: str = "reference",
    anyway: bool = False,
    out: Path | None = None,
    project: str | None = None,
    by: str | None = None,
) -> None:
    """Compare runs as the command does; raises UserError if they cannot be read, compared or written."""
    compared = report_on(words, normalization, anyway, by)
    from . import report

    print(report.as_text(compared), end="")
    picture = None
    if out is not None:
        from .figure import plot_comparison

        report.write(compared, out)
        picture = out / "compare.png"
        over = next(table for table in compared.tables if table.name == "aggregates")
        plot_comparison(compared, over.heading, picture)
        print(f"written to {out}")
    if project is not None:
        _log_to_wandb(compared, project, out, picture)


def report_on(
    words: Sequence[str], normalization: str = "reference", anyway: bool = False, by: str | None = None
) -> "Report":
    """Return the report on runs, arguments as on the command line; raises UserError as :func:`compare_runs`."""
    files, unfinished = find_results(words, by)
    methods = {name: [read_run(name, file, normalization) for file in found] for name, found in files.items()}
    notes = [*remarks(methods), *(f"not counted, because it has no results: {run}" for run in unfinished)]
    differs = list(differences(methods))
    if differs and not anyway:
        reasons = "".join(f"\n  {one}" for one in differs)
        raise UserError(
            f"these runs cannot be compared fairly (--anyway compares them and notes the differences):{reasons}"
        )
    tasks = [{run.task for run in runs} for runs in methods.values()]
    require(bool(set.intersection(*tasks)), f"no task has results of all methods ({', '.join(methods)})")
    from . import report  # imported here so that an option is refused without loading SciPy

    return report.compare(methods, NORMALIZATIONS[normalization], differs, notes)


def _log_to_wandb(compared: Any, project: str, out: Path | None, picture: Path | None) -> None:
    """Log the tables, notes and plot as one W&B run; offline without a key, unless WANDB_MODE is set."""
    import wandb
    from wandb.errors import CommError, UsageError

    online = wandb_key_is_configured() and unreachable(wandb_url()) is None
    mode: Any = os.environ.get("WANDB_MODE") or ("online" if online else "offline")
    settings = wandb.Settings(init_timeout=20, silent=True)
    try:
        run = wandb.init(project=project, job_type="compare", dir=out, mode=mode, settings=settings)
    except (UsageError, CommError) as error:
        raise UserError(f"W&B cannot start: {error}; log in with `wandb login`, or set WANDB_MODE=offline") from None
    for table in compared.tables:
        columns, rows = table.plain()
        run.log({f"compare/{table.name}": wandb.Table(columns=columns, data=rows, allow_mixed_types=True)})
    if picture is not None:
        run.log({"compare/figure": wandb.Image(str(picture))})
    run.summary["notes"] = "\n".join(compared.notes)
    run.finish()


def _folder(name: str) -> Path:
    """Return a folder's path; an empty name, which Path reads as the current folder, is refused."""
    if not name:
        raise argparse.ArgumentTypeError("the name is empty; give . for the current folder")
    return Path(name)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = without_usage(
        argparse.ArgumentParser(
            prog="python -m trajectory_transformer.compare",
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
    )
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDER", help="a method and its runs, or FOLDER alone")
    parser.add_argument(
        "--by",
        metavar="OPTION[,OPTION]",
        help="in sweeps, make each value of this option a method, as in --by method, or each combination of several",
    )
    parser.add_argument(
        "--anyway", action="store_true", help="compare runs that differ in data or evaluation, and note the differences"
    )
    parser.add_argument(
        "--normalize", choices=[*NORMALIZATIONS], default="reference", help="returns that count as 0 and 100 %%"
    )
    parser.add_argument(
        "--out",
        type=_folder,
        metavar="DIR",
        help="write the comparison to this folder as text, Markdown, LaTeX, CSV and PNG",
    )
    parser.add_argument("--wandb", metavar="PROJECT", help="log the tables to Weights & Biases")
    try:
        given = parser.parse_intermixed_args(words)
        compare_runs(given.methods, given.normalize, given.anyway, given.out, given.wandb, given.by)
    except UserError as error:
        print(f"error: {error.told}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


if __name__ == "__main__":
    sys.exit(main())
