"""How fast this machine trains, tokenises and plans: ``python -m trajectory_transformer.benchmark [PART …]``.

Parts: ``training``, ``tokenising``, ``planning``; none given means all. Speed is also given against what this machine
reaches in large matrix products, measured in the same minute: as a fraction of it for training, and for planning as a
multiple of the time that the arithmetic which exact caching leaves would take at that rate.
"""

import argparse
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from .machine import matmul_rate
from .planning import COLUMNS, PLANNING, measure_alone, planning_row
from .training import tokenising_rows, training_rows

PARTS = ("training", "tokenising", "planning")


def processor() -> str:
    """The processor's name, or its kind where the system does not say."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], markdown: bool) -> None:
    """Print a table, for people or for a page."""
    if markdown:
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)))
        return
    table = Table(*columns, title=title, title_justify="left")
    for cells in rows:
        table.add_row(*cells)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.benchmark", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; all if none is named")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--markdown", action="store_true", help="tables for a page")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts, rate = arguments.parts or PARTS, matmul_rate()
    speeds = ("what", "speed", "against this machine")
    if "training" in parts:
        show("Training, random weights; medians", speeds, training_rows(rate), arguments.markdown)
    if "tokenising" in parts:
        show("Episodes to windows; median", speeds, tokenising_rows(), arguments.markdown)
    if "planning" in parts:
        rows = []
        with Console(stderr=True).status("planning") as status:
            for setting in PLANNING:
                status.update(f"planning: {setting.name}, {setting.planner.window}")
                figures = measure_alone(setting, arguments.threads)
                rows.append(planning_row(setting, figures))
                rate = figures.rate
        show("Planning, random weights; for each environment and action", COLUMNS, rows, arguments.markdown)
    print(
        f"{processor()}, {os.cpu_count()} cores, {arguments.threads} threads, torch {torch.__version__}, "
        f"{rate / 1e9:.0f} GFLOP/s in 2048 × 2048 products"
    )


if __name__ == "__main__":
    main()
