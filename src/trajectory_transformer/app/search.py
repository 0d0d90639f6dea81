"""A hyper-parameter search as one job: its trials are runs in numbered folders."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ..configuration import TrainConfig
from ..errors import UserError
from .jobs import Job, begin, config_text, note, recorded, train
from .tune import search


def run_search(options: TrainConfig, job: Job) -> float:
    """Run the trials of ``options.tune`` in numbered folders of the job's directory; returns the best score."""
    assert options.tune is not None
    if (job.directory / "config.yaml").exists() and not (job.directory / "study.journal").exists():
        raise UserError(f"{job.directory} holds a run that is no search; choose another folder")
    begin(job, config_text(asdict(options)))

    def run_trial(values: dict[str, Any], directory: Path) -> float:
        shown = {name: str(value) for name, value in values.items()}
        trial = Job(directory, shown, sweep=job.directory.name)

        def run() -> float:
            return train(with_values(replace(options, tune=None), values), trial)

        directory.mkdir(exist_ok=True)
        return recorded(trial, run)

    score = search(options.tune, job.directory, options.seed, run_trial)
    note(job, "finished", score=score)
    return score


def with_values(options: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """``options`` with those named replaced.

    Raises:
        UserError: the values do not go together.
        omegaconf.errors.OmegaConfBaseException: a name or a type is wrong.
    """
    config = OmegaConf.structured(options)
    for name, value in values.items():
        OmegaConf.update(config, name, value)
    changed = OmegaConf.to_object(config)
    assert isinstance(changed, TrainConfig)
    return changed
