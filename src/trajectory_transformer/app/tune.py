"""Hyper-parameter search with Optuna, resumable from the file that it keeps in its folder."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration import ParameterConfig, TuneConfig
from ..errors import UserError
from .sweep import report

if TYPE_CHECKING:
    import optuna

JOURNAL = "study.journal"


def search(config: TuneConfig, directory: Path, seed: int, run_trial: Callable[[dict[str, Any], Path], float]) -> float:
    """Try values for the highest score until ``config.trials`` trials are done; print them all and the best.

    A search that was stopped goes on in its folder: trials that it left unfinished first. Several processes may work
    in one folder at the same time only if none was stopped in the middle of a trial before.

    Args:
        config: the options to vary, and how many trials.
        directory: of the search; trial n runs in its folder ``n``.
        seed: of the sampler.
        run_trial: runs one trial with the given option values in the given folder, and returns its score, or NaN
            where it failed.

    Returns:
        The best score.

    Raises:
        UserError: Optuna is not installed, the search space is not the one of the search in ``directory``, or no
            trial succeeded.
    """
    study = _study(directory, seed)
    unfinished = [(trial.number, dict(trial.params)) for trial in study.trials if not trial.state.is_finished()]
    for number, values in unfinished:
        _finish(study, number, run_trial(values, directory / str(number)))
    while len(study.trials) < config.trials:
        trial = study.ask()
        values = {name: _suggest(trial, name, parameter) for name, parameter in config.parameters.items()}
        _finish(study, trial.number, run_trial(values, directory / str(trial.number)))
    report(directory)
    try:
        best = study.best_trial
    except ValueError:
        raise UserError(f"none of the {len(study.trials)} trials in {directory} succeeded") from None
    settings = " ".join(f"{name}={'null' if value is None else value}" for name, value in best.params.items())
    print(f"best of {len(study.trials)} trials: number {best.number} with score {best.value:.6g}: {settings}")
    return float(best.value or 0.0)


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
    # The sampler starts anew in each session; with the same seed it would propose the first session's values again.
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    return study


def _suggest(trial: "optuna.Trial", name: str, parameter: ParameterConfig) -> Any:
    try:
        if parameter.choices is not None:
            return trial.suggest_categorical(name, parameter.choices)
        if isinstance(parameter.low, int) and isinstance(parameter.high, int):
            return trial.suggest_int(name, parameter.low, parameter.high, log=parameter.log)
        return trial.suggest_float(name, float(parameter.low), float(parameter.high), log=parameter.log)
    except ValueError as error:
        raise UserError(f"tune.parameters.{name}: {error}; search other values in another folder") from None


def _finish(study: "optuna.Study", number: int, score: float) -> None:
    from optuna.trial import TrialState

    failed = math.isnan(score)
    study.tell(number, None if failed else score, TrialState.FAIL if failed else TrialState.COMPLETE)
