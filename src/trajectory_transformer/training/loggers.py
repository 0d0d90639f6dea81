"""Loggers of a run: ``metrics.csv`` always, Weights & Biases and other Lightning loggers by options."""

import inspect
import json
import logging
import os
import shlex
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ..building import TYPED_BY_USER, build, locate
from ..checkpoint_file import read_checkpoint
from ..configuration import LoggerConfig
from ..errors import UserError
from ..evaluation.measurements import Measurement
from ..evaluation.results import flat
from ..files import is_first_process
from ..reachability import unreachable, wandb_key_is_configured, wandb_url
from .metrics_file import MetricsFile
from .trackers import log_picture, log_table

log = logging.getLogger(__name__)

LONGEST_NAME = 128  # W&B's limit of a run's name, in characters
EPISODE_COLUMNS = ("seed", "return", "length", "terminated", "success", "normalized_score")


@dataclass(frozen=True)
class RunLabels:
    """Default labels of a run in W&B, where the options set none."""

    group: str | None = None  # name of a group of runs to compare, such as a sweep
    job_type: str = "train"  # or "evaluate"
    tags: tuple[str, ...] = ()  # added to those of the options
    differs: str | None = None  # values that distinguish it from the other jobs of its sweep


def make_loggers(
    config: LoggerConfig, run_directory: Path, resolved_config: Mapping[str, Any], defaults: RunLabels
) -> list[Logger]:
    """Make the loggers of a run, which write to ``run_directory`` and log ``resolved_config`` with its metrics.

    Raises:
        UserError: W&B cannot start, for example online without a key or network, or a logger of ``config.extra`` cannot
            be built.
    """
    extra: list[Logger] = []  # built first: one that cannot be built must not leave another's run begun
    for name, spec in config.extra.items():
        place = f"logger.extra.{name}"
        parameters = inspect.signature(locate(spec["_target_"], Logger, place, TYPED_BY_USER)).parameters
        folder = {"save_dir": str(run_directory)} if "save_dir" in parameters else {}  # the default
        try:
            extra.append(build({**folder, **spec}, Logger, place, TYPED_BY_USER))
        except ImportError as error:  # of a package that the user's own logger needs
            raise UserError(f"{place}: {' '.join(str(error).split())}") from None
    own: list[Logger] = [MetricsFile(run_directory / "metrics.csv")]
    if config.name == "wandb":
        own.append(_wandb_logger(config, run_directory, resolved_config, defaults))
    for logger in extra:
        logger.log_hyperparams(dict(resolved_config))
    return [*own, *extra]


def require_loggers(config: LoggerConfig) -> None:
    """Raise UserError if a class in ``config.extra`` is not a Lightning logger; nothing is built."""
    for name, spec in config.extra.items():
        locate(spec["_target_"], Logger, f"logger.extra.{name}", TYPED_BY_USER)


def _wandb_logger(
    config: LoggerConfig, run_directory: Path, resolved_config: Mapping[str, Any], labels: RunLabels
) -> WandbLogger:
    from wandb.errors import CommError, UsageError  # here, because the import is slow

    folder = (run_directory / "wandb").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "run_id.txt"  # kept with the run, so that a resumed or requeued run is the same W&B run
    is_resumed = id_file.exists()
    if is_first_process() and not is_resumed:
        given = os.environ.get("WANDB_RUN_ID") if labels.differs is None else None  # would be the same for all jobs
        id_file.write_text(given or uuid.uuid4().hex[:12], encoding="utf-8")
    # By default artifacts wait for their upload in the home directory, and are lost if the run is copied elsewhere.
    for name, part in (("WANDB_DIR", ".."), ("WANDB_DATA_DIR", "data"), ("WANDB_CACHE_DIR", "cache")):
        os.environ[name] = os.environ.get(name) or str((folder / part).resolve())
    os.environ.setdefault("WANDB_INIT_TIMEOUT", "20")  # seconds; W&B's default of 90 is long if a host does not exist
    mode, why = _wandb_mode(config)
    variables = {name: os.environ.get(f"WANDB_{name}") for name in ("PROJECT", "NAME", "RUN_GROUP", "JOB_TYPE")}
    tags = config.tags or [tag.strip() for tag in os.environ.get("WANDB_TAGS", "").split(",") if tag.strip()]
    named = [name for name in (config.run_name or variables["NAME"], labels.differs) if name]
    logger = WandbLogger(
        save_dir=os.environ["WANDB_DIR"],
        name=" ".join(named)[:LONGEST_NAME] or run_directory.name,
        id=id_file.read_text(encoding="utf-8").strip() if is_first_process() else None,
        project=config.project or variables["PROJECT"] or "trajectory-transformer",
        mode=mode,  # not Lightning's offline=, which leaves WANDB_MODE set for later runs in this process
        entity=config.entity,
        group=config.group or variables["RUN_GROUP"] or labels.group,
        job_type=config.job_type or variables["JOB_TYPE"] or labels.job_type,
        tags=[*tags, *labels.tags],
        config=dict(resolved_config),
        resume="allow" if mode == "online" else None,
        settings=_quiet_settings() if mode == "offline" else None,
    )
    vars(logger).get("_wandb_init", {}).pop("anonymous", None)  # Lightning gives None, and W&B warns of any value
    if is_first_process():  # start W&B now, so that a missing key is reported before training
        try:
            logger.experiment.define_metric("val/loss", step_metric="trainer/global_step", summary="min")
        except (UsageError, CommError) as error:
            reason = f"W&B cannot start: {error}; log in with `wandb login`, or use logger.offline=true"
            raise UserError(reason) from None
        if mode == "offline":
            place = shlex.quote(str(logger.experiment.settings.sync_dir))
            level = logging.WARNING if why.startswith("it cannot") else logging.INFO
            log.log(level, "W&B: %sthis run is recorded offline; upload it later with: wandb sync %s", why, place)
        if mode == "offline" and is_resumed:
            _repeat_history(logger, run_directory)
    return logger


def _quiet_settings() -> Any:
    """W&B's settings without its notices, summary and plots of an offline run; errors are still printed.

    None if the user has set how much it prints.
    """
    from wandb import Settings

    chosen = any(name in os.environ for name in ("WANDB_SILENT", "WANDB_QUIET"))
    return None if chosen else Settings(silent=True)


def _repeat_history(logger: WandbLogger, run_directory: Path) -> None:
    """Log again all metrics of a run up to its last checkpoint.

    A resumed offline run has a new folder for ``wandb sync``, whose contents replace the run's uploaded metrics.
    """
    last = run_directory / "checkpoints" / "last.ckpt"
    done = read_checkpoint(last)["global_step"] if last.exists() else 0
    for row in MetricsFile(run_directory / "metrics.csv").read():
        if (step := row.pop("step")).isdecimal() and int(step) <= done:
            logger.log_metrics({name: float(value) for name, value in row.items() if value}, int(step))


def _wandb_mode(config: LoggerConfig) -> tuple[str, str]:
    """Return W&B's mode and, as the beginning of a sentence, why it is offline if nobody asked for that."""
    mode = os.environ.get("WANDB_MODE")
    if config.offline is not None:
        mode = "offline" if config.offline else "online"
    if mode == "online" and is_first_process() and (reason := unreachable(wandb_url())) is not None:
        raise UserError(f"W&B cannot be reached ({reason}); use logger.offline=true, and `wandb sync` later")
    if mode:
        return mode, ""
    if not wandb_key_is_configured():
        return "offline", "no key is configured, so "
    if is_first_process() and (reason := unreachable(wandb_url())) is not None:
        return "offline", f"it cannot be reached ({reason}), so "
    return "online", ""


@rank_zero_only
def log_evaluation(loggers: Sequence[Logger], results: Mapping[str, Any], step: int | None = None) -> None:
    """Log the summaries of the evaluation, the data's behaviour and the deadline, and a table of the episodes.

    Args:
        loggers: the run's loggers.
        results: contents of ``results.json``.
        step: number of updates made, if any, because returns during training have the same names.
    """
    rows = [[episode[name] for name in EPISODE_COLUMNS] for episode in results["episodes"]]
    for logger in _extra(loggers):
        log_table(logger, "evaluation/episodes", EPISODE_COLUMNS, rows)
    for run in _wandb_runs(loggers):
        import wandb

        run.log({"evaluation/episodes": wandb.Table(columns=list(EPISODE_COLUMNS), data=rows, allow_mixed_types=True)})
    parts = {"evaluation": results["summary"], "behavior": results["behavior"], "deadline": results["deadline"] or {}}
    _summarize(loggers, flat(parts, "/"), step)


@rank_zero_only
def log_pictures(loggers: Sequence[Logger], run_directory: Path) -> None:
    """Log the plots in a run's folder and, to W&B, the videos."""
    for logger in _extra(loggers):
        for file in sorted(run_directory.glob("plots/*.png")):
            log_picture(logger, f"plots/{file.stem}", file)
    for run in _wandb_runs(loggers):
        import wandb

        plots, videos = sorted(run_directory.glob("plots/*.png")), sorted(run_directory.glob("videos/*.mp4"))
        pictures = {f"plots/{file.stem}": wandb.Image(str(file)) for file in plots}
        films = {f"videos/{file.stem}": wandb.Video(str(file), format="mp4") for file in videos}
        if pictures or films:
            run.log({**pictures, **films})


def log_sweep(config: LoggerConfig, directory: Path, table: Sequence[Sequence[str]]) -> None:
    """Log a sweep's table and plots to W&B, as an additional run in the group of its jobs.

    ``table``'s first row has the names of the columns.

    Raises:
        UserError: W&B cannot start.
    """
    logger = _wandb_logger(config, directory, {}, RunLabels(directory.absolute().name, "sweep"))
    import wandb

    header, *rows = table
    numbers = [[_number(cell) for cell in row] for row in rows]
    run = logger.experiment
    run.log({"sweep/jobs": wandb.Table(columns=list(header), data=numbers, allow_mixed_types=True)})
    for plot in directory.glob("*.png"):
        run.log({f"sweep/{plot.stem}": wandb.Image(str(plot))})
    run.finish()


def _number(cell: str) -> float | str | None:
    try:
        return float(cell)
    except ValueError:
        return cell or None


@rank_zero_only
def log_measurements(loggers: Sequence[Logger], measurements: Sequence[Measurement]) -> None:
    """Log measurements, each as ``METHOD/NAME``."""
    _summarize(loggers, {f"{one.method}/{one.name}": one.value for one in measurements})


def _summarize(loggers: Sequence[Logger], values: Mapping[str, Any], step: int | None = None) -> None:
    """Add ``values`` to the summary of the W&B run, and log the numbers among them to the other loggers."""
    for run in _wandb_runs(loggers):
        run.summary.update(dict(values))
    numbers = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
    for logger in _extra(loggers):
        logger.log_metrics(numbers, step)


@rank_zero_only
def log_artifacts(
    loggers: Sequence[Logger], checkpoint: Path, dataset: Mapping[str, Any], folders: Sequence[Path] = ()
) -> None:
    """Log the checkpoint, and a description of the data set, as W&B artifacts.

    The data are not uploaded; the ``folders`` of the set's parts that exist on this machine are added as references.
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
            # Not checksum=True, which would read gigabytes: the fingerprint identifies the data.
            data.add_reference(folder.absolute().as_uri(), name=f"data/{index}", checksum=False)
        run.log_artifact(data)


@rank_zero_only
def finish_loggers(loggers: Sequence[Logger], exit_code: int = 0) -> None:
    """End the loggers' runs, so that the next job of a sweep begins new ones."""
    for run in _wandb_runs(loggers):
        run.finish(exit_code=exit_code)
    for logger in _extra(loggers):
        logger.finalize("failed" if exit_code else "success")


def _extra(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers of ``logger.extra``."""
    return [logger for logger in loggers if not isinstance(logger, (MetricsFile, WandbLogger))]


def _wandb_runs(loggers: Sequence[Logger]) -> list[Any]:
    return [logger.experiment for logger in loggers if isinstance(logger, WandbLogger)]
