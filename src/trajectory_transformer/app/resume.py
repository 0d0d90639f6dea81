"""Runs whose options come from their ``config.yaml``: those that go on, and the later ranks of a distributed one."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import yaml

from ..building import TYPED_BY_USER, require_allowed
from ..configuration import TrainConfig, current_record
from ..errors import UserError
from . import mistakes
from .jobs import RANK_RUN, Job, context, fit_in, recorded
from .run_record import RunRecord
from .schema import typed
from .tune import run_search


def resume(directory: Path, allow: Sequence[str]) -> None:
    """Go on with the run in ``directory``, with the options in its ``config.yaml``.

    Args:
        directory: of the run.
        allow: packages besides this one that its ``config.yaml`` may name classes of.

    Raises:
        UserError: it holds no run of ``train.py``.
        SystemExit: as :func:`recorded`.
    """
    options = read_config(directory, allow)
    record = RunRecord.read(directory)
    has_checkpoint = (directory / "checkpoints" / "last.ckpt").exists()
    in_sweep = (directory.parent / "multirun.yaml").exists()
    sweep = directory.absolute().parent.name if in_sweep else None
    job = Job(directory, record.parameters if record else {}, sweep, claimed=True)
    if options.tune is None and record is not None and record.status == "finished":
        if options.evaluation.episodes == 0 or (directory / "results.json").exists():
            print(f"{directory} is finished; nothing to do")
            return
        print(f"{directory} is finished but for its evaluation")
    elif options.tune is None and not has_checkpoint:
        print(f"{directory} holds no checkpoint yet; starting from the beginning")
    from ..data.sources import require_available

    require_available(options.data, allow)
    text = (directory / "config.yaml").read_text()

    def run() -> float:
        return run_search(options, job) if options.tune is not None else fit_in(options, job, text, has_checkpoint)

    score = recorded(job, run)
    after = RunRecord.read(directory)
    if math.isnan(score) and after is not None and after.status == "failed":
        raise SystemExit(1)


def is_later_rank() -> bool:
    """True in a process that Lightning started beside the one that reads the command line."""
    return RANK_RUN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def run_rank() -> None:
    """Train as one of several processes, in the first one's run directory and with its ``config.yaml``."""
    run = json.loads(os.environ[RANK_RUN])
    job = Job(Path(run["directory"]))
    options = read_config(job.directory, TYPED_BY_USER)  # which this very command has just written
    from .experiment import run_training

    run_training(options, context(job, options.trainer.callbacks, run["resume"]))


def read_config(directory: Path, allow: Sequence[str] | None) -> TrainConfig:
    """The options of the run in ``directory``.

    Args:
        directory: of the run.
        allow: packages besides this one that its ``config.yaml`` may name classes of; :data:`TYPED_BY_USER`: any.

    Raises:
        UserError: there is none, or it is not valid.
    """
    file = directory / "config.yaml"
    try:
        options = yaml.safe_load(file.read_text())
    except OSError:
        runs = sorted(path.parent for path in directory.parent.glob("*/config.yaml"))
        latest = f"; the latest one there is {runs[-1]}" if runs else ""
        raise UserError(f"resume={directory}: there is no {file}, so no run to go on with{latest}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict) or "checkpoint" in options:
        raise UserError(f"{file} is not the config of a run of train.py")
    if isinstance(options.get("planner"), dict):
        options["planner"] = current_record(options["planner"])
    try:
        config: TrainConfig = typed(TrainConfig, options)
    except mistakes.EXPECTED as error:
        raise UserError(f"{file}: {mistakes.explain(error, TrainConfig, directory)}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if allow is not None:
        require_allowed(options, str(file), allow)
    return config
