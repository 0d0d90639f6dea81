"""Ranks of processes."""

import os


def is_first_process() -> bool:
    """This process is the one that writes files: rank 0, also where SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)
