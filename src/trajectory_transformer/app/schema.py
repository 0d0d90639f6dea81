"""Registration of the dataclass schemas with Hydra, and conversion of a composed config back to a dataclass."""

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from ..building import TYPED_BY_USER
from ..configuration import EvaluateConfig, TrainConfig, require, validate_value
from ..errors import UserError
from ..files import slurm_step
from ..training.learner import make_learner
from .names import options_of

OPEN_OPTIONS = (  # mappings with arbitrary keys
    "data.source", "learner", "logger.extra", "model.block", "planner.objective", "planner.search", "trainer.callbacks",
    "trainer.loss", "trainer.metrics", "trainer.options",
)  # fmt: skip


def shared_name(requeued: bool) -> str | None:
    """Return the name of a run directory shared by the processes of a SLURM step or torchrun session, else None."""
    job, step = os.environ.get("SLURM_JOB_ID"), slurm_step()
    if job and (requeued or (step is not None and int(os.environ.get("SLURM_NTASKS", "1")) > 1)):
        return f"slurm-{job}" if step in (None, "0") else f"slurm-{job}.{step}"
    session = os.environ.get("TORCHELASTIC_RUN_ID")
    if session and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # torchrun names every session "none" by default; its ranks on one node share a parent process.
        return f"torchrun-{os.getppid() if session == 'none' else session}"
    return None


def run_name(requeued: bool) -> str:
    """Return the name of a run directory: that shared by its processes, else the time."""
    return shared_name(requeued) or time.strftime("%Y-%m-%d_%H-%M-%S")


def as_typed(hydra: DictConfig, kind: str) -> list[str]:
    """Return the overrides of kind "task" or "hydra", unresolved: some interpolations can be resolved only in a job."""
    return cast(list[str], OmegaConf.to_container(hydra.overrides[kind], resolve=False))


def folder_names(config: DictConfig, key: str) -> Iterator[Path]:
    """Yield the folder of option ``key`` and, if it is named after the time, numbered ones, also set in ``config``."""
    yield (named := Path(OmegaConf.select(config, key)))
    # The resolver's cached results, which a sweep's jobs use, too. No other process shares names after the time.
    names = OmegaConf.get_cache(config).get("run_name", {})
    first = {asked: name for asked, name in names.items() if name[0].isdecimal()}
    for number in itertools.count(2):
        names.update({asked: f"{name}-{number}" for asked, name in first.items()})
        if (other := Path(OmegaConf.select(config, key))) == named:
            return
        yield other


# At import, because the joblib launcher's processes only import this module; repeating it is harmless.
ConfigStore.instance().store(name="train_schema", node=TrainConfig)
ConfigStore.instance().store(name="evaluate_schema", node=EvaluateConfig)
OmegaConf.register_new_resolver("run_name", run_name, use_cache=True, replace=True)


def schema_of(config: DictConfig) -> type[TrainConfig] | type[EvaluateConfig]:
    """Return the root dataclass from which ``config`` was composed."""
    return EvaluateConfig if OmegaConf.get_type(config) is EvaluateConfig else TrainConfig


def plain_options(config: DictConfig) -> dict[str, Any]:
    """Return all options except Hydra's own, resolved, as plain values; UserError for a reference to nothing."""
    options = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    try:
        return cast(dict[str, Any], OmegaConf.to_container(options, resolve=True, throw_on_missing=True))
    except InterpolationResolutionError as error:  # it does not say where
        raw = cast(dict[str, Any], OmegaConf.to_container(options, resolve=False))
        places = [name for name, value in _by_name(raw) if not isinstance(value, Mapping) and "${" in str(value)]
        raise UserError(f"{' or '.join(places)}: {' '.join(str(error).splitlines()[:1])}") from None


def typed(schema: type, options: dict[str, Any]) -> Any:
    """Return ``options`` as a validated instance of ``schema``.

    Raises:
        UserError: a value is out of range.
        omegaconf.errors.OmegaConfBaseException: a name or a type is wrong.
    """
    given = list(_by_name(options))
    for name, value in given:
        require(value != MISSING, f"{name}={MISSING} is no value")
    require_flags(schema, given)
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), options))


def require_flags(schema: type, given: Iterable[tuple[str, object]]) -> None:
    """Raise UserError if a boolean option in ``given`` (dotted name, value) is a number, which OmegaConf accepts."""
    flags = {name: hint for name, hint in options_of(schema) if hint in (bool, bool | None)}
    for name, value in given:
        if name in flags and isinstance(value, int):
            validate_value(name, value, flags[name])


def _by_name(options: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in options.items():
        yield f"{prefix}{name}", value
        if isinstance(value, Mapping):
            yield from _by_name(value, f"{prefix}{name}.")


def typed_train(config: DictConfig) -> TrainConfig:
    """Return the validated options of ``train.py``, including the learner's; raises as :func:`typed`."""
    options: TrainConfig = typed(TrainConfig, plain_options(config))
    require(not options.extended, f"extended={options.extended} is recorded by resume=RUN extend=true; do not set it")
    make_learner(options.learner, TYPED_BY_USER).check(options)
    return options


def typed_evaluate(config: DictConfig, overrides: Sequence[str], planner_chosen: bool) -> EvaluateConfig:
    """Return the validated options of ``evaluate.py``; arguments as in :func:`planner_overrides`, raises as typed."""
    options = plain_options(config)
    planner = options["planner"]
    if not planner_chosen and "horizon" not in planner_overrides(overrides, planner, False):
        planner["horizon"] = max(planner["horizon"], planner["plan_freq"])  # the checkpoint's horizon is checked later
    return typed(EvaluateConfig, options)


def planner_overrides(overrides: Sequence[str], planner: dict[str, Any], planner_chosen: bool) -> dict[str, Any]:
    """Return the planner options that replace a checkpoint's: all with ``planner=NAME``, else those overridden."""
    if planner_chosen:
        return dict(planner)
    names = [override.lstrip("+~").split("=", 1)[0] for override in overrides]
    named = [name.split(".")[1] for name in names if name.startswith("planner.")]
    return {name: planner[name] for name in named if name in planner}
