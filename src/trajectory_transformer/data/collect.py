"""Command that simulates an embedded recipe and writes it to disk as a Minari data set.

python -m trajectory_transformer.data.collect recipe=pointmaze_umaze steps=20000 overwrite=true
"""

import contextlib
import os
import sys
import time
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np

from ..configuration import require, require_choice
from ..errors import UserError
from ..progress import WorkProgress
from ..simulation import RECIPES, Recipe, find_recipe
from ..simulation.simulate import SimulatedEpisode, simulate
from ..simulation.storage import collecting_folder, disk_errors, publish, write_dataset

STEPS_WORTH_A_PROCESS = 5_000  # about a second of simulation; fewer do not justify starting a process


def collect(
    recipe: Recipe,
    steps: int | None = None,
    progress: bool = True,
    *,
    seed: int = 0,
    processes: int | None = None,
    overwrite: bool = False,
) -> str:
    """Simulate ``recipe`` and write its data set atomically to ``$MINARI_DATASETS_PATH``; returns its id.

    Args:
        steps: minimum number of environment steps; the last episode is kept whole. None: the recipe's default.
        progress: show a progress bar and, at the end, the data set's statistics.
        seed: the same seed gives the same data, whatever the number of processes.
        processes: number of simulating processes; None: one per available core, at most 8.
        overwrite: replace the data set if it exists.

    Raises:
        UserError: the data set exists, ``steps`` or ``processes`` is below 1, or the folder cannot be written.
    """
    steps = recipe.default_steps if steps is None else steps
    require(steps >= 1, f"steps={steps} must be at least 1")
    require(processes is None or processes >= 1, f"processes={processes} must be at least 1")
    if processes is None:
        processes = max(1, min(len(os.sched_getaffinity(0)), 8, steps // STEPS_WORTH_A_PROCESS))
    start = time.monotonic()
    with collecting_folder(recipe, overwrite) as staging:
        episodes = _simulate_steps(recipe, steps, simulate(recipe, seed, processes), progress)
        with disk_errors(recipe):
            write_dataset(recipe, episodes, seed, staging)
            path = publish(recipe, staging, overwrite)
    if progress:
        returns = [episode.rewards.sum() for episode in episodes]
        print(
            f"{recipe.dataset_id}: {len(episodes)} episodes, {sum(map(len, episodes))} steps, "
            f"return mean {np.mean(returns):.1f}, min {np.min(returns):.1f}, max {np.max(returns):.1f}, "
            f"in {time.monotonic() - start:.0f} s, written to {path}"
        )
    return recipe.dataset_id


def _simulate_steps(
    recipe: Recipe, steps: int, stream: Generator[SimulatedEpisode, None, None], progress: bool
) -> list[SimulatedEpisode]:
    """Take episodes from ``stream`` until they have ``steps`` steps in total."""
    episodes: list[SimulatedEpisode] = []
    done = 0
    text = "{task.completed:,.0f}/{task.total:,.0f} steps"
    with contextlib.closing(stream), WorkProgress(text, progress) as bar:
        task = bar.add_task(f"simulating {recipe.env_id}", total=steps)
        while done < steps:
            episodes.append(next(stream))
            done += len(episodes[-1])
            bar.update(task, completed=min(done, steps))
    return episodes


def parse_arguments(words: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` words into arguments of :func:`collect`; raises UserError for the first wrong one."""
    options: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        require_choice("option", key, ("recipe", "steps", "seed", "processes", "overwrite"))
        require(bool(equals), f"option {word} needs a value, as in {word}=…")
        if key == "recipe":
            options[key] = find_recipe(value)
        elif key == "overwrite":
            require_choice(key, value.lower(), ("true", "false"))
            options[key] = value.lower() == "true"
        else:
            digits = value.replace("_", "")
            require(digits.isdecimal(), f"{word} must be a whole number")
            options[key] = int(digits)
    require("recipe" in options, f"recipe=NAME is missing; NAME is one of {', '.join(RECIPES)}")
    return options


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        collect(**parse_arguments(sys.argv[1:] if words is None else words))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
