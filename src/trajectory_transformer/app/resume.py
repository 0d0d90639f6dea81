"""Runs whose options come from their ``config.yaml``: those that go on, and the later ranks of a distributed one."""

import json
import math
import os
from pathlib import Path

import yaml

from ..configuration import TrainConfig
from ..errors import UserError
from . import mistakes
from .instantiation import check_targets
from .jobs import RANK_RUN, Job, context, fit_and_record, recorded, train
from .run_record import RunRecord
from .schema import typed


def resume(directory: Path) -> None:
    """Go on with the run in ``directory``, with the options in its ``config.yaml``.

    Raises:
        UserError: it holds no run of ``train.py``.
        SystemExit: as :func:`recorded`.
    """
    options = read_config(directory)
    record = RunRecord.read(directory)
    finished = record is not None and record.status == "finished"
    in_sweep = (directory.parent / "multirun.yaml").exists()
    sweep = directory.absolute().parent.name if in_sweep else None
    job = Job(directory, record.parameters if record else {}, sweep, claimed=True)
    if finished and options.tune is None:
        if options.evaluation.episodes == 0 or (directory / "results.json").exists():
            print(f"{directory} is finished; nothing to do")
            return
        print(f"{directory} is finished but for its evaluation")
    elif not (directory / "checkpoints" / "last.ckpt").exists() and options.tune is None:
        print(f"{directory} holds no checkpoint yet; starting from the beginning")
    from ..data.sources import require_available

    require_available(options.data, allow=())  # a file names it, and is trusted from here on
    text = (directory / "config.yaml").read_text()
    has_checkpoint = (directory / "checkpoints" / "last.ckpt").exists()

    def run() -> float:
        return fit_and_record(options, job, text, has_checkpoint) if options.tune is None else train(options, job)

    score = recorded(job, run)
    after = RunRecord.read(directory)
    if math.isnan(score) and after is not None and after.status == "failed":
        raise SystemExit(1)


def is_later_rank() -> bool:
    """This process was started by Lightning beside the one that reads the command line."""
    return RANK_RUN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0


def run_rank() -> None:
    """Train as one of several processes, in the first one's run directory and with its ``config.yaml``."""
    run = json.loads(os.environ[RANK_RUN])
    directory = Path(run["directory"])
    options = read_config(directory)
    from .experiment import run_training

    run_training(options, context(options, Job(directory), run["resume"]))


def read_config(directory: Path) -> TrainConfig:
    """The options of the run in ``directory``.

    Raises:
        UserError: there is none, or it is not valid.
    """
    file = directory / "config.yaml"
    try:
        options = yaml.safe_load(file.read_text())
    except OSError:
        raise UserError(
            f"resume={directory}: there is no {file}, so no run to go on with{_runs_beside(directory)}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(options, dict) or "checkpoint" in options:
        raise UserError(f"{file} is not the config of a run of train.py")
    try:
        config: TrainConfig = typed(TrainConfig, options)
    except mistakes.EXPECTED as error:
        raise UserError(f"{file}: {mistakes.explain(error, TrainConfig, directory)}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    check_targets(config.trainer.callbacks, f"{file}: trainer.callbacks")
    return config


def _runs_beside(directory: Path) -> str:
    runs = sorted(path.parent for path in directory.parent.glob("*/config.yaml"))
    return f"; the latest one there is {runs[-1]}" if runs else ""
