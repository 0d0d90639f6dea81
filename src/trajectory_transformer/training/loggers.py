"""Where metrics go: ``metrics.csv`` always, Weights & Biases as well where it is chosen."""

import json
import logging
import netrc
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from .. import reachability
from ..configuration import LoggerConfig
from ..errors import UserError
from ..evaluation.figures import Figure
from ..processes import is_first_process
from .metrics_file import MetricsFile

log = logging.getLogger(__name__)

EPISODE_COLUMNS = ("seed", "return", "length", "terminated", "success", "normalized_score")


@dataclass(frozen=True)
class RunLabels:
    """What a run is called where the options do not say.

    Attributes:
        group: runs that are compared side by side, such as a sweep; or None.
        job_type: "train" or "evaluate".
        tags: to find it by.
    """

    group: str | None = None
    job_type: str = "train"
    tags: tuple[str, ...] = ()


def make_loggers(
    config: LoggerConfig, run_directory: Path, resolved_config: Mapping[str, Any], defaults: RunLabels
) -> list[Logger]:
    """The loggers of one run.

    Args:
        config: which, and what the user calls the run.
        run_directory: everything they write lies below it.
        resolved_config: all options of the run, to be shown beside its metrics.
        defaults: labels where ``config`` has none.

    Raises:
        UserError: W&B refuses to start, such as online without a key.
    """
    loggers: list[Logger] = [MetricsFile(run_directory / "metrics.csv")]
    if config.name == "wandb":
        loggers.append(_wandb_logger(config, run_directory, resolved_config, defaults))
    return loggers


def _wandb_logger(
    config: LoggerConfig, run_directory: Path, resolved_config: Mapping[str, Any], labels: RunLabels
) -> WandbLogger:
    folder = (run_directory / "wandb").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    # By default artifacts wait for their upload in the home directory and are lost when a run is copied elsewhere.
    for name, part in (("WANDB_DIR", ".."), ("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ[name] = str((folder / part).resolve())
    mode = _wandb_mode(config)
    logger = WandbLogger(
        save_dir=run_directory,
        name=run_directory.name,
        id=_stable_id(folder / "run_id.txt") if is_first_process() else None,
        project=config.project,
        mode=mode,  # not Lightning's offline=, which leaves WANDB_MODE set for whatever runs next
        entity=config.entity,
        group=config.group or labels.group,
        job_type=config.job_type or labels.job_type,
        tags=[*config.tags, *labels.tags],
        config=dict(resolved_config),
        resume="allow" if mode == "online" else None,
    )
    if is_first_process():
        _start(logger)
    return logger


def _wandb_mode(config: LoggerConfig) -> str:
    if config.offline is not None:
        return "offline" if config.offline else "online"
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    if not wandb_key_is_configured():
        log.info("no W&B key is configured: this run is logged offline; `wandb sync` uploads it later")
        return "offline"
    reason = reachability.unreachable(_wandb_url()) if is_first_process() else None
    if reason is not None:
        log.warning("W&B cannot be reached (%s): this run is logged offline; `wandb sync` uploads it later", reason)
        return "offline"
    return "online"


def _wandb_url() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _start(logger: WandbLogger) -> None:
    """Start the run now, so that a missing key stops the run before training, not in the middle of it."""
    from wandb.errors import CommError, UsageError

    try:
        run = logger.experiment
    except (UsageError, CommError) as error:
        raise UserError(f"W&B does not start: {error}; log in with `wandb login`, or use logger.offline=true") from None
    run.define_metric("val/loss", step_metric="trainer/global_step", summary="min")


def _stable_id(file: Path) -> str:
    """The run's id, kept with it, so that a resumed or requeued run is the same one."""
    if not file.exists():
        file.write_text(uuid.uuid4().hex[:12])
    return file.read_text().strip()


def wandb_key_is_configured() -> bool:
    """A key is in the environment, or in the netrc file for W&B's host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(_wandb_url()).hostname or ""
    file = os.environ.get("NETRC") or Path.home() / ".netrc"
    try:
        return netrc.netrc(str(file)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


@rank_zero_only
def log_evaluation(loggers: Sequence[Logger], results: Mapping[str, Any]) -> None:
    """Add an evaluation to W&B: its summary as ``evaluation/…`` and a table of its episodes; what a deadline did, too.

    Args:
        loggers: of the run.
        results: the content of ``results.json``.
    """
    for run in _wandb_runs(loggers):
        import wandb

        rows = [[episode[name] for name in EPISODE_COLUMNS] for episode in results["episodes"]]
        run.log({"evaluation/episodes": wandb.Table(columns=list(EPISODE_COLUMNS), data=rows, allow_mixed_types=True)})
        run.summary.update(dict(_flat("evaluation", results["summary"])))
        run.summary.update(dict(_flat("behavior", results["behavior"])))
        run.summary.update(dict(_flat("deadline", results["deadline"] or {})))


@rank_zero_only
def log_figures(loggers: Sequence[Logger], figures: Sequence[Figure]) -> None:
    """Add figures to W&B's summary, each as ``METHOD/NAME``."""
    for run in _wandb_runs(loggers):
        run.summary.update({f"{figure.method}/{figure.name}": figure.value for figure in figures})


@rank_zero_only
def log_artifacts(
    loggers: Sequence[Logger], checkpoint: Path, dataset: Mapping[str, Any], folders: Sequence[Path] = ()
) -> None:
    """Add the checkpoint, and a description that identifies the data set and says where it lies, as W&B artifacts.

    Args:
        loggers: of the run.
        checkpoint: the file to keep.
        dataset: ids, fingerprint and what else describes the set; the arrays stay where they are.
        folders: of the data set's parts on this machine; those that are there are referred to.
    """
    for run in _wandb_runs(loggers):
        import wandb

        model = wandb.Artifact(f"model-{run.id}", type="model", metadata={"dataset": dict(dataset)})
        model.add_file(str(checkpoint))
        run.log_artifact(model, aliases=["best"])
        data = wandb.Artifact(f"dataset-{dataset['fingerprint'][:12]}", type="dataset", metadata=dict(dataset))
        with data.new_file("dataset.json") as file:
            json.dump(dict(dataset), file, indent=1)
        for index, folder in enumerate(folder for folder in folders if folder.is_dir()):
            # Not checksum=True, which would read gigabytes: the fingerprint says the same.
            data.add_reference(folder.absolute().as_uri(), name=f"data/{index}", checksum=False)
        run.log_artifact(data)


@rank_zero_only
def finish_loggers(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """End the W&B run, so that the next job of a sweep begins its own."""
    for run in _wandb_runs(loggers):
        run.finish(exit_code=exit_code)


def _wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]


def _flat(prefix: str, values: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Nested mappings as ``prefix/key/key``."""
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}/{key}"
        pairs += _flat(name, value) if isinstance(value, Mapping) else [(name, value)]
    return pairs
