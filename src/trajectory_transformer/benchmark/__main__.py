"""Speed of training, tokenising and planning on this machine: ``python -m trajectory_transformer.benchmark [PART …]``.

Parts: ``training``, ``tokenising``, ``planning``; default: all. Speed is also reported relative to this machine's rate
in large matrix products, measured in the same minute: for training as a fraction of that rate, for planning as a
multiple of the time that the arithmetic remaining with exact caching would take at that rate.
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
    """Return the name of the GPU or processor, or the machine's architecture if the name is unknown."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), os.uname().machine)


def show(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], markdown: bool) -> None:
    """Print a table, for the terminal or as Markdown."""
    if markdown:
        print("\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ("---",) * len(columns), *rows)))
    else:
        table = Table(*columns, title=title, title_justify="left")
        for cells in rows:
            table.add_row(*cells)
        Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.benchmark", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="parts to measure; default: all")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--accelerator", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--bf16", action="store_true", help="decode in bfloat16, train in mixed precision")
    parser.add_argument("--compile", action="store_true", help="train with torch.compile")
    parser.add_argument("--markdown", action="store_true", help="print tables as Markdown")
    arguments = parser.parse_args()
    if arguments.accelerator == "gpu" and not torch.cuda.is_available():
        parser.error("--accelerator=gpu: torch finds none on this machine; choose --accelerator=cpu")
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
