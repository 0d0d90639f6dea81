"""Checks made before a run or sweep gets a directory, and the report after a sweep."""

import contextlib
import importlib.util
import itertools
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, ValidationError

from ..building import (
    PACKAGE,
    TYPED_BY_USER,
    build,
    locate,
    require_modules,
    require_options,
    targets_in,
    with_defaults,
)
from ..configuration import EvaluateConfig, LoggerConfig, PlannerConfig, TrainConfig, TuneConfig, require
from ..errors import UserError
from ..files import LOCK, FolderLock, is_first_process, require_file, writable_folder
from ..planning.objectives import Objective, make_objective
from ..training.learner import OPTIONS_OF_RETURNS, make_learner
from . import mistakes, sweep
from .jobs import MODULES, why_taken
from .names import RECORDS, option_names
from .schema import (
    as_typed,
    folder_names,
    planner_overrides,
    require_flags,
    schema_of,
    typed,
    typed_evaluate,
    typed_train,
)
from .tune import with_values
from .workers import SweepSignals

SWEEP_LOCK = ".sweep.lock"  # differs from LOCK, which a job in the same folder may hold
TRACKERS = {"TensorBoardRun": "tensorboard", "MLflowRun": "mlflow", "TrackioRun": "trackio"}  # class -> package, extra
DATABASE = ("sqlalchemy", "alembic")  # packages of the extra mlflow that MLflow needs for its file, not for a server


@dataclass(frozen=True)
class Need:
    """Options, or groups of options, that have an effect only beside others."""

    names: tuple[str, ...]
    has_effect: Callable[[Any], bool]  # of the options of the command
    need: str  # what gives them an effect


WANDB = ("project", "entity", "run_name", "group", "job_type", "tags", "offline", "log_artifacts")
AGENTS = ("name", "objective", "decoder", "precision")  # planner options that any task's agent is built with
SEARCH = tuple(field.name for field in fields(PlannerConfig) if field.name not in AGENTS)
LABELS = Need(tuple(f"logger.{name}" for name in WANDB), lambda options: options.logger.name == "wandb", "logger=wandb")
NEEDS: dict[type, tuple[Need, ...]] = {
    TrainConfig: (
        LABELS,
        Need(
            ("evaluation.every_episodes",), lambda options: options.evaluation.every is not None, "evaluation.every=N"
        ),
        Need(("evaluation.video",), lambda options: options.evaluation.episodes > 0, "evaluation.episodes=N"),
        Need(
            ("evaluation.num_envs", "evaluation.max_episode_steps"),
            lambda options: options.evaluation.episodes > 0 or options.evaluation.every is not None,
            "evaluation.episodes=N",
        ),
        Need(
            tuple(f"evaluation.{name}" for name in ("episodes", "num_envs", "max_episode_steps", "video")),
            lambda options: options.evaluation.episodes == 0 or make_learner(options.learner, TYPED_BY_USER).acts,
            "a learner that acts",
        ),
        Need(
            ("model.numerical_dynamics",),
            lambda options: options.model.numerical_embedding is not None or not options.model.numerical_dynamics,
            "model.numerical_embedding=N",
        ),
        Need(
            ("model.numerical_regression", "model.numerical_pretraining"),
            lambda options: options.model.numerical_embedding is not None or not options.model.wants_regression,
            "model.numerical_embedding=N",
        ),
        Need(
            ("model.numerical_pretraining",),
            lambda options: options.init_from is None or options.model.numerical_pretraining == 0.0,
            "init_from=null",
        ),
        Need(
            ("planner.improvement",),
            lambda options: options.model.action_improvement > 0.0 or not options.planner.improvement,
            "model.action_improvement=N",
        ),
        Need(
            ("model.members",),
            lambda options: options.model.members == 1 or options.planner.uses_members,
            "planner.act=auto (or mean, elite, conditioned; mean with planner.search) and planner.deadline_ms=null",
        ),
    ),
    EvaluateConfig: (
        LABELS,
        Need(("attention",), lambda options: options.task == "attention", "task=attention"),
        Need(("predict",), lambda options: options.task == "predict", "task=predict"),
        Need(
            ("num_envs", "max_episode_steps", *(f"planner.{name}" for name in SEARCH)),
            lambda options: options.task == "plan",
            "task=plan",
        ),
        Need(("episodes", "video"), lambda options: options.task != "attention", "task=plan or task=predict"),
    ),
}


def config_folders(hydra: DictConfig) -> list[Path]:
    """Return the folders of the YAML files in use, including that of ``--config-dir``."""
    return [Path(source.path) for source in hydra.runtime.config_sources if source.schema == "file"]


def validated(config: DictConfig, hydra: DictConfig, own: Sequence[str] | None = None) -> TrainConfig | EvaluateConfig:
    """Return the typed options of either command; raises UserError for a wrong name, type, value or target.

    ``own`` are the command-line options that must have an effect on this run; None: all of them. In a sweep over
    learners, only the options that vary are required to have one.
    """
    schema = schema_of(config)
    mistakes.refuse_absent_local(hydra.runtime.choices.get("local"), config_folders(hydra))
    mistakes.refuse_changed_text(hydra.runtime.choices, config_folders(hydra), schema)
    _require_method_whole(hydra)
    parsed = OverridesParser.create().parse_overrides(words := as_typed(hydra, "task"))
    require_flags(schema, ((override.key_or_group, override.value()) for override in parsed))
    try:
        if schema is EvaluateConfig:
            chosen = hydra.runtime.choices.get("planner") is not None
            evaluation = typed_evaluate(config, words, chosen)
            if chosen:
                make_objective(evaluation.planner)
            # Only its class: its other options may come from the checkpoint.
            _require_classes("planner.objective", evaluation.planner.objective)
            _complete(evaluation, "planner.objective")
            if evaluation.planner.search is not None:
                _check_own_search(evaluation.planner.search)
                _complete(evaluation, "planner.search")
            require_modules(evaluation.environment.modules, MODULES, TYPED_BY_USER)
            require_trackers(evaluation.logger)
            if own is None:
                _require_needs(evaluation, words)
            for checkpoint in filter(None, (evaluation.checkpoint, evaluation.predict.ensemble)):
                require_file(checkpoint)
            return evaluation
        options = typed_train(config)
    except mistakes.EXPECTED as error:
        raise UserError(mistakes.explain(error, schema, config_folders(hydra))) from None
    modules = options.environment.modules
    modules += [module for module in _modules_of_ids(options.data.source) if module not in modules]
    require_modules(modules, MODULES, TYPED_BY_USER)
    require_trackers(options.logger)
    _require_effect(options, hydra)
    _require_use(options, words if own is None else own)
    if own is None:  # a job of a sweep may have one option of which another makes use
        _require_needs(options, words)
    if options.init_from is not None:
        _require_weights(options.init_from)
    if options.planner.search is not None:
        _check_record("planner.search", options)
    if options.model.block is not None:
        _require_subclass("model.block", options.model.block, "torch.nn", "Module")
        _check_record("model.block", options)
    if options.trainer.loss is not None:
        _require_subclass("trainer.loss", options.trainer.loss, f"{PACKAGE}.learners.training_loss", "TrainingLoss")
        _check_record("trainer.loss", options)
    for name, spec in options.trainer.callbacks.items():
        _require_subclass(f"trainer.callbacks.{name}", spec, "lightning.pytorch.callbacks", "Callback")
        require_options(spec, f"trainer.callbacks.{name}")
    for name, spec in options.trainer.metrics.items():
        _require_subclass(f"trainer.metrics.{name}", spec, "torchmetrics", "Metric")
    _check_record("data.source", options)
    if options.data.cache is not None:
        writable_folder("data.cache", options.data.cache)
    if options.tune is not None:
        _check_search(options, options.tune)
    for name in RECORDS:
        _complete(options, name)
    return options


def _require_fixed_records(config: DictConfig) -> None:
    """Raise UserError for options that a class of a sweep does not take, if no group varies, which may choose it."""
    parsed = OverridesParser.create().parse_overrides(as_typed(config.hydra, "task"))
    varied = {override.key_or_group for override in parsed if override.is_sweep_override()}
    if varied & set(config.hydra.runtime.choices):
        return
    for name in RECORDS:
        spec = OmegaConf.select(config, name)
        if isinstance(spec, DictConfig) and "_target_" in spec:
            with contextlib.suppress(InterpolationResolutionError):  # of what only jobs have
                require_options(cast(dict[str, Any], OmegaConf.to_container(spec, resolve=True)), name)


def _complete(options: TrainConfig | EvaluateConfig, name: str) -> None:
    """Add the defaults of a record's class to it, so that checkpoints and results keep them."""
    group, _, last = name.rpartition(".")
    owner = getattr(options, group) if group else options
    setattr(owner, last, with_defaults(getattr(owner, last), name))


def _require_classes(place: str, spec: object) -> None:
    """Raise UserError for any ``_target_`` in ``spec`` that is not an existing class."""
    for target in targets_in(spec):
        locate(target, object, place, TYPED_BY_USER)


def _check_own_search(spec: Mapping[str, Any]) -> None:
    """Raise UserError unless ``planner.search`` names a class of searches, if it names one, and takes these options.

    Without a class, the options are those of the search that a checkpoint records.
    """
    if "_target_" in spec:
        _require_subclass("planner.search", spec, f"{PACKAGE}.planning.search", "Search")
        require_options(spec, "planner.search")


def _require_subclass(place: str, spec: Mapping[str, Any], module: str, base: str) -> None:
    """Raise UserError unless ``spec`` names a subclass of ``module.base``, and its arguments name existing classes.

    ``module`` is not imported, because that can take seconds: a class that did not import it has no such base class.
    """
    _require_classes(place, spec)
    kind = getattr(sys.modules.get(module), base, None)
    if kind is None:
        raise UserError(f"{place}._target_={spec['_target_']} is not a {base}")
    locate(str(spec["_target_"]), kind, place, TYPED_BY_USER)


def require_trackers(logger: LoggerConfig) -> None:
    """Raise UserError, before any logger starts a run, if one of this project needs a package that is not installed."""
    for name, spec in logger.extra.items():
        extra = TRACKERS.get(str(spec["_target_"]).removeprefix(f"{PACKAGE}.training.trackers."))
        local = DATABASE if extra == "mlflow" and spec.get("tracking_uri") is None else ()
        for package in () if extra is None else (extra, *local):
            require(
                importlib.util.find_spec(package) is not None,
                f"logger.extra.{name} needs the package {package}, which is not installed: pip install "
                f"'trajectory-transformer[{extra}]'",
            )


def _modules_of_ids(source: Any) -> list[str]:
    """Return the modules in sources' ``env_id`` options of Gymnasium's form ``module:Id``."""
    sources = source if isinstance(source, list) else [source]
    ids = [str(spec.get("env_id")) for spec in sources if isinstance(spec, Mapping)]
    return [name.partition(":")[0] for name in ids if ":" in name]


def _require_effect(options: TrainConfig, hydra: DictConfig) -> None:
    """Raise UserError for ``data=NAME`` with an experiment whose own data set would silently override it."""
    given = {override.lstrip("+").partition("=")[0] for override in as_typed(hydra, "task")}
    if "data" not in given or "data.dataset_id" in given:
        return
    name = hydra.runtime.choices["data"]
    file = mistakes.file_of(f"data/{name}", config_folders(hydra))
    chosen = None if file is None else OmegaConf.select(OmegaConf.load(file), "dataset_id")
    ids = [chosen] if isinstance(chosen, str) else list(chosen or [])
    require(
        ids in ([], options.data.dataset_ids),
        f"data={name} has no effect beside experiment={options.experiment_name}, which names its own data; give "
        f"data.dataset_id={ids[0] if len(ids) == 1 else '[' + ','.join(ids) + ']'}",
    )


def _require_method_whole(hydra: DictConfig) -> None:
    """Raise UserError for a learner or planner on the command line other than the one that the method chooses."""
    given = {override.lstrip("+").partition("=")[0] for override in as_typed(hydra, "task")}
    chosen = hydra.runtime.choices
    for group in ("learner", "planner") if chosen.get("method") is not None else ():
        own = mistakes.choice_of(f"method/{chosen.method}", group, config_folders(hydra))
        require(
            group not in given or own in (None, chosen.get(group)),
            f"{group}={chosen.get(group)} contradicts method={chosen.method}, which chooses {group}={own}: leave out "
            "one of them",
        )


def _require_use(options: TrainConfig, typed: Sequence[str]) -> None:
    """Raise UserError for options on the command line (``typed``) or in a search that the learner ignores."""
    learner = make_learner(options.learner, TYPED_BY_USER)
    varied = () if options.tune is None else options.tune.parameters
    for name in (*(word.lstrip("+~").partition("=")[0] for word in typed), *varied):
        if any(f"{name}.".startswith(f"{ignored}.") for ignored in learner.ignores):
            raise UserError(f"{name} has no effect on learner={learner.kind}: leave it out, or choose another learner")
        require(  # a search may vary what makes a learner use rewards
            name not in OPTIONS_OF_RETURNS or bool(varied) or learner.uses_rewards(options),
            f"{name} has no effect on learner={learner.kind}, which uses no rewards with these options: leave it out",
        )


def _require_needs(options: TrainConfig | EvaluateConfig, typed: Sequence[str]) -> None:
    """Raise UserError for options on the command line that have no effect beside the others.

    ``evaluate.py`` without ``planner=NAME`` checks its planner options once it has read the checkpoint's.
    """
    names = [word.lstrip("+").partition("=")[0] for word in typed]
    for name, need in itertools.product(names, NEEDS[type(options)]):
        require(
            not any(f"{name}.".startswith(f"{listed}.") for listed in need.names) or need.has_effect(options),
            f"{name} has no effect without {need.need}: add it, or leave out {name}",
        )
    searched = options.tune.parameters if isinstance(options, TrainConfig) and options.tune is not None else {}
    for name in names:  # an option of a class may be required
        own = name.startswith(tuple(f"{record}." for record in RECORDS))
        require(name not in searched or own, f"{name} has no effect on a search that varies it: leave it out")
    given = planner_overrides([*typed, *searched], vars(options.planner), False)
    if given and (isinstance(options, TrainConfig) or "planner" in names):
        by_token = make_objective(options.planner).by_token
        if by_token or "planner.act" not in searched:  # a search that varies it may have use for the others
            options.planner.require_used(given, by_token)


def _require_weights(path: str) -> None:
    """Raise UserError unless ``init_from`` names a readable file, or a directory with weights."""
    require(path.strip() != "", "init_from= names no file: give a .ckpt file or a directory of converted weights")
    if not Path(path).is_dir():
        return require_file(path)
    best = Path(path, "checkpoints", "best.ckpt")
    hint = f"; did you mean init_from={best}?" if best.exists() else ""
    there = any(file for pattern in ("*.safetensors", "*.bin") for file in Path(path).glob(pattern))
    require(there, f"init_from={path} is a directory without weights (model.safetensors){hint}")


def _check_search(options: TrainConfig, tune: TuneConfig) -> None:
    """Raise UserError before the first trial of a search over an unknown option or with a value of a wrong type."""
    names = [name for name in option_names(TrainConfig) if not name.startswith(("tune", "resume", "extend"))]
    for name, parameter in tune.parameters.items():
        record = next((record for record in RECORDS if name.startswith(f"{record}.")), None)
        if record is None and name not in names:
            raise UserError(f"tune.parameters: there is no option '{name}'{mistakes.did_you_mean(name, names)}")
        for value in parameter.choices or (parameter.low, parameter.high):
            try:
                if record is not None:
                    _check_record(record, with_values(options, {name: value}))
                else:  # only the type: whether values are compatible depends on the trial
                    OmegaConf.update(OmegaConf.structured(options), name, value)
            except (ValidationError, UserError) as error:
                raise UserError(f"tune.parameters.{name}: {str(error).splitlines()[0]}") from None


def _check_record(place: str, options: TrainConfig) -> None:
    """Raise UserError for wrong options of a learner, objective, source (built), block or loss (by its signature)."""
    if place == "learner":
        make_learner(options.learner, TYPED_BY_USER)
    elif place == "planner.objective":
        build(options.planner.objective_spec, Objective, place, TYPED_BY_USER)
    elif place == "planner.search":
        _check_own_search(options.planner.search)
    elif place in ("model.block", "trainer.loss"):
        spec = options.model.block if place == "model.block" else options.trainer.loss
        require_options(spec, place, ("config",))
    elif options.data.source is not None:
        from ..data.sources import sources_of  # imported here because it takes half a second

        sources_of(options.data)


def _logger_of_table(config: DictConfig) -> LoggerConfig | None:
    """Return the options of W&B, to log the table of a sweep, or None without it or if they refer to a single job."""
    if config.logger.get("name") != "wandb":
        return None
    try:
        options = OmegaConf.to_container(config.logger, resolve=True)
    except InterpolationResolutionError as error:
        print(f"the table was not logged: {str(error).splitlines()[0]}")
        return None
    return typed(LoggerConfig, cast(dict[str, Any], options))


@contextlib.contextmanager
def _ending_the_command(config: DictConfig) -> Iterator[None]:
    """Exit with code 2 after a mistake and 1 after any other error, which Hydra would turn into a warning."""
    try:
        yield
    except UserError as error:
        leave(error.told, 2)
    except mistakes.EXPECTED as error:
        leave(mistakes.explain(error, schema_of(config), config_folders(config.hydra)), 2)
    except Exception:
        traceback.print_exc()
        raise SystemExit(1) from None


class RunChecks(Callback):
    """Hydra callback with the checks; it exits the process, as Hydra turns exceptions of callbacks into warnings."""

    sweep: ClassVar[tuple[Path, list[dict[str, str]]] | None] = None  # this process's: its folder and planned jobs
    _lock: ClassVar[FolderLock | None] = None  # lock on the folder of this process's run or sweep
    _signals: ClassVar[SweepSignals | None] = None  # handles signals to a sweep

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending_the_command(config):
            mistakes.refuse_idle(as_typed(config.hydra, "hydra"), is_sweep=False)
            self._refuse_additions(config)
            options = validated(config, config.hydra)
            if is_first_process():
                self._take_folder(config, "hydra.run.dir", options)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with _ending_the_command(config):  # jobs check their own options
            mistakes.refuse_idle(as_typed(config.hydra, "hydra"), is_sweep=True)
            self._refuse_additions(config)
            _require_fixed_records(config)
            planned = sweep.planned_jobs(config)
            if is_first_process():
                self._take_folder(config, "hydra.sweep.dir", None)
                sweep.require_same_jobs(Path(config.hydra.sweep.dir), planned)
            RunChecks.sweep = Path(config.hydra.sweep.dir), planned
        if threading.current_thread() is threading.main_thread():
            RunChecks._signals = SweepSignals(RunChecks.sweep[0])

    def _refuse_additions(self, config: DictConfig) -> None:
        words = as_typed(config.hydra, "task") + as_typed(config.hydra, "hydra")
        mistakes.refuse_additions(words, schema_of(config), config_folders(config.hydra))

    def _take_folder(self, config: DictConfig, key: str, options: TrainConfig | EvaluateConfig | None) -> None:
        """Make and lock the run's or sweep's folder, or raise UserError."""
        is_search = isinstance(options, TrainConfig) and options.tune is not None  # processes may share its trials
        goes_on = is_search or (isinstance(options, TrainConfig) and options.trainer.requeue)
        directory = Path()
        try:
            for directory in folder_names(config, key):
                with contextlib.suppress(FileExistsError):
                    directory.mkdir(parents=True)
                    break
            directory.mkdir(parents=True, exist_ok=True)
            if options and not goes_on and (taken := why_taken(directory, isinstance(options, EvaluateConfig))):
                raise UserError(taken)
            tempfile.TemporaryFile(dir=directory).close()
            if not is_search:
                self.hold(directory, LOCK if options else SWEEP_LOCK)
        except OSError as error:
            raise UserError(
                f"the output directory '{directory}' cannot be written ({error.strerror}); choose another with "
                "hydra.run.dir=DIR, or hydra.sweep.dir=DIR for a sweep"
            ) from None

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        assert self.sweep is not None
        if not is_first_process():
            return
        with _ending_the_command(config):
            if any(job.status != "finished" for job in sweep.report(*self.sweep, _logger_of_table(config))):
                sys.exit(1)

    @classmethod
    def hold(cls, directory: Path, file: str = LOCK) -> None:
        """Lock a folder for this process until :meth:`end`; raises as :class:`FolderLock`."""
        cls._lock = FolderLock(directory, file)

    @classmethod
    def end(cls) -> None:
        """Release the lock and signals after the run or sweep, successful or not."""
        if cls._signals is not None:
            cls._signals.restore()
        if cls._lock is not None:
            cls._lock.release()
        cls.sweep = cls._lock = cls._signals = None


def leave(message: str, code: int) -> NoReturn:
    """Print an error message and exit."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)
