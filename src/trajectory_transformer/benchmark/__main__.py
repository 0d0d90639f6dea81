"""Speed of training, tokenising and planning on this machine: ``python -m trajectory_transformer.benchmark [PART …]``.

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

from .machine import Hardware
from .planning import COLUMNS, PLANNING, measure_alone, planning_row
from .training import tokenising_rows, training_rows

PARTS = ("training", "tokenising", "planning")


def processor(device: str) -> str:
    """The name of what is measured: a GPU, or the processor, or its kind where the system does not say."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], markdown: bool) -> None:
    """Print a table, for people or for a page."""
    if markdown:
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)))
    else:
        table = Table(*columns, title=title, title_justify="left")
        for cells in rows:
            table.add_row(*cells)
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.benchmark", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="what to measure; all if none is named")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="decode in bfloat16, train in mixed precision")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--markdown", action="store_true", help="tables for a page")
    arguments = parser.parse_args()
    if arguments.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("--accelerator=gpu: this machine has none that torch can use; choose --accelerator=cpu")
    device = "cuda" if arguments.accelerator == "gpu" else "cpu"
    hardware = Hardware(device, arguments.threads, arguments.bf16, arguments.compile)
    torch.set_num_threads(arguments.threads)
    parts, rate = arguments.parts or PARTS, hardware.matmul_rate()
    speeds = ("what", "speed", "against this machine")
    if "training" in parts:
        show("Training, random weights; medians", speeds, training_rows(hardware, rate), arguments.markdown)
    if "tokenising" in parts:
        show("Episodes to windows; median", speeds, tokenising_rows(hardware), arguments.markdown)
    if "planning" in parts:
        rows = []
        with Console(stderr=True).status("planning") as status:
            for setting in PLANNING:
                status.update(f"planning: {setting.name}, {setting.planner.window}")
                speed = measure_alone(setting, hardware)
                rows.append(planning_row(setting, speed))
                rate = speed.rate
        show("Planning, random weights; for each environment and action", COLUMNS, rows, arguments.markdown)
    size = hardware.product_size
    print(
        f"{processor(device)}, {os.cpu_count()} cores, {arguments.threads} threads, torch {torch.__version__}, "
        f"{rate / 1e9:.0f} GFLOP/s in {size} × {size} products"
    )


if __name__ == "__main__":
    main()
