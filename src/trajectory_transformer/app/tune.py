"""Hyper-parameter search with Optuna as one job, resumable from a journal file in its folder."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from omegaconf import OmegaConf

from ..configuration import LoggerConfig, ParameterConfig, TrainConfig, TuneConfig, require
from ..errors import UserError
from ..files import FolderInUseError, FolderLock
from .jobs import Job, begin, config_text, recorded, train
from .sweep import report

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"


def run_search(options: TrainConfig, job: Job) -> float:
    """Run the trials of ``options.tune`` in numbered folders of the job's directory; returns the best score."""
    assert options.tune is not None
    if (job.directory / "config.yaml").exists() and not (job.directory / JOURNAL).exists():
        raise UserError(f"{job.directory} holds a run that is not a search; choose another folder")
    begin(job, config_text(options), options)

    def run_trial(values: dict[str, Any], directory: Path) -> float:
        trial = Job(directory, {name: str(value) for name, value in values.items()}, sweep=job.directory.name)
        return recorded(trial, lambda: train(with_values(replace(options, tune=None), values), trial))

    return search(options.tune, job.directory, options.seed, run_trial, options.logger)


def with_values(options: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """Return ``options`` with the named ones replaced; raises as :func:`.schema.typed`."""
    config = OmegaConf.structured(options)
    for name, value in values.items():
        OmegaConf.update(config, name, value)
    return cast(TrainConfig, OmegaConf.to_object(config))


def search(
    config: TuneConfig,
    directory: Path,
    seed: int,
    run_trial: Callable[[dict[str, Any], Path], float],
    logger: LoggerConfig | None = None,
) -> float:
    """Search for the highest score until ``config.trials`` trials are done; print the table and return the best score.

    A stopped search continues in its folder, beginning with unfinished trials. Several processes may work in one folder
    at the same time, each holding a lock on the folder of its trial. Trial n calls
    ``run_trial(values, directory / "n")``, which returns its score, or NaN for a failure.

    Raises:
        UserError: Optuna is missing, ``directory`` holds a search of other parameters, or no trial succeeded.
    """
    study = _study(directory, seed)
    from optuna.trial import TrialState

    def finish(number: int, values: dict[str, Any]) -> None:
        folder = directory / str(number)
        folder.mkdir(exist_ok=True)
        with contextlib.suppress(FolderInUseError), FolderLock(folder):  # another process runs this trial
            score = run_trial(values, folder)
            failed = math.isnan(score)
            study.tell(number, None if failed else score, TrialState.FAIL if failed else TrialState.COMPLETE)

    for trial in [trial for trial in study.trials if not trial.state.is_finished()]:
        # The file may come from someone else, and options decide what is imported.
        for name, value in trial.params.items():
            require(
                name in config.parameters and _allows(config.parameters[name], value),
                f"{directory / JOURNAL} holds a trial with {name}={value!r}, which tune.parameters does not allow; "
                "search in another folder",
            )
        finish(trial.number, dict(trial.params))
    while len(study.trials) < config.trials:
        trial = study.ask()
        finish(trial.number, {name: _suggest(trial, name, values) for name, values in config.parameters.items()})
    report(directory, logger=logger)
    try:
        best = study.best_trial
    except ValueError:
        raise UserError(f"none of the {len(study.trials)} trials in {directory} succeeded") from None
    settings = " ".join(f"{name}={'null' if value is None else value}" for name, value in best.params.items())
    print(f"best of {len(study.trials)} trials: number {best.number} with score {best.value:.6g}: {settings}")
    return float(best.value or 0.0)


def _allows(parameter: ParameterConfig, value: Any) -> bool:
    if parameter.choices is not None:
        return value in parameter.choices
    return isinstance(value, (int, float)) and float(parameter.low) <= value <= float(parameter.high)


def _study(directory: Path, seed: int) -> "optuna.Study":
    try:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend
    except ImportError:
        raise UserError("tune=… needs Optuna: pip install 'trajectory-transformer[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    # The sampler restarts in each session; with the same seed it would propose the first session's values again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    return study


def _suggest(trial: "optuna.Trial", name: str, parameter: ParameterConfig) -> Any:
    low, high = parameter.low, parameter.high
    try:
        if parameter.choices is not None:
            return trial.suggest_categorical(name, parameter.choices)
        if isinstance(low, int) and isinstance(high, int):
            return trial.suggest_int(name, low, high, log=parameter.log)
        return trial.suggest_float(name, float(low), float(high), log=parameter.log)
    except ValueError as error:
        raise UserError(f"tune.parameters.{name}: {error}; search other values in another folder") from None
