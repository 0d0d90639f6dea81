"""From the command line to one job: Hydra for a run or a sweep, ``config.yaml`` alone for ``resume=DIR`` and ranks."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..configuration import EvaluateConfig, TrainConfig
from ..errors import UserError
from . import jobs, mistakes, resume
from .checks import leave, validated
from .schema import planner_overrides
from .tune import run_search

SCHEMAS = {"train": TrainConfig, "evaluate": EvaluateConfig}


def entry_point(name: str, configs: Path) -> None:
    """Run one of the two commands with ``sys.argv``; returns after success.

    Args:
        name: "train" or "evaluate"; ``configs/NAME.yaml`` is its root.
        configs: folder of the YAML files.

    Raises:
        SystemExit: 2 after a mistake in the options, 1 after a failed run or sweep, 130 or 143 after SIGINT or SIGTERM.
    """
    code = 1
    try:
        if name == "train" and resume.is_later_rank():
            resume.run_rank()
            return
        code = 2  # a mistake within a run never comes up to here
        if name == "train" and (asked := _resumed(sys.argv[1:])) is not None:
            resume.resume(*asked)
        else:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come through, without advice of Hydra's own
            hydra.main(version_base="1.3", config_path=str(configs.absolute()), config_name=name)(hydra_job)()
    except UserError as error:
        leave(str(error), code)
    except mistakes.EXPECTED as error:
        leave(mistakes.explain(error, SCHEMAS[name], configs), 2)
    except KeyboardInterrupt:
        sys.exit(130)


def hydra_job(config: DictConfig) -> float:
    """One run, alone or in a sweep; returns its score, or NaN after a failure within a sweep."""
    node = cast(DictConfig, HydraConfig.get())
    directory = Path(node.runtime.output_dir)
    overrides = list(node.overrides.task)
    parameters = dict(override.lstrip("+").split("=", 1) for override in overrides if "=" in override)
    job = jobs.Job(directory, parameters, directory.parent.name if node.mode == RunMode.MULTIRUN else None)

    def run() -> float:
        options = validated(config, node)
        if isinstance(options, TrainConfig):
            return jobs.train(options, job) if options.tune is None else run_search(options, job)
        chosen = node.runtime.choices.get("planner") is not None
        return jobs.evaluate(options, job, planner_overrides(overrides, vars(options.planner), chosen))

    return jobs.recorded(job, run)


def _resumed(arguments: Sequence[str]) -> tuple[Path, list[str]] | None:
    """The run directory of ``resume=DIR``, and the packages of ``allow=``, the only option beside it."""
    given = next((a for a in arguments if a.startswith("resume=") and a.partition("=")[2] not in ("", "null")), None)
    if given is None:
        return None
    allowed = [a for a in arguments if a.startswith("allow=")]
    if others := [a for a in arguments if a not in (given, *allowed[:1])]:
        raise UserError(
            f"{given} goes on with a run as it was set up and takes no other option but allow=[PACKAGE]: "
            f"{', '.join(others)}"
        )
    packages = [name.strip() for text in allowed for name in text.partition("=")[2].strip("[]'\"").split(",")]
    return Path(given.partition("=")[2].strip("'\"")), [name for name in packages if name]
