"""The command line: Hydra composes a run or sweep; ``resume=DIR`` and later ranks read only ``config.yaml``."""

import contextlib
import difflib
import json
import logging
import math
import os
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from ..building import TYPED_BY_USER, import_modules, require_allowed, require_modules
from ..configuration import EvaluateConfig, TrainConfig, current_record, require, require_module_names
from ..ending import EXITS_BY_SIGNAL
from ..errors import UserError, in_one_line
from ..files import FolderLock, is_first_process
from . import jobs, mistakes
from .checks import RunChecks, leave, require_trackers, validated
from .commands import sweep_command
from .help import FLAGS, show_help
from .names import as_addable, as_text
from .schema import as_typed, planner_overrides, typed
from .sweep import report
from .tune import run_search
from .workers import signals_only_within


def run_command(name: str, configs: Path) -> None:
    """Run the command "train" or "evaluate", with ``configs/NAME.yaml`` as its root config, on ``sys.argv``.

    Raises:
        SystemExit: 2 after a mistake in the options, 1 after a failed run or sweep; 130, 143 or 129 after SIGINT,
            SIGTERM or SIGHUP.
    """
    code, schema, folders = 1, TrainConfig if name == "train" else EvaluateConfig, [configs]
    try:
        if name == "train" and jobs.RANK_RUN in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0:
            run_rank()
            return
        code = 2  # mistakes within a run are handled in jobs.recorded
        require(_is_there(), "the working directory was deleted; change to another")
        own, words = _own_folders(sys.argv[1:])
        folders += own
        if set(sys.argv[1:]) & set(FLAGS):
            show_help(name, schema, folders, words)
        elif name == "train" and (asked := _resumed(sys.argv[1:])) is not None:
            resume(*asked)
        else:
            sys.argv[1:] = as_text(sys.argv[1:], schema)
            mistakes.refuse_unreadable(sys.argv[1:], folders, schema)
            mistakes.refuse_flags(sys.argv[1:])
            sys.argv[1:] = as_addable(sys.argv[1:], schema)
            os.environ["HYDRA_FULL_ERROR"] = "1"  # errors are raised, without Hydra's own advice
            hydra.main(version_base="1.3", config_path=str(configs.absolute()), config_name=name)(hydra_job)()
    except UserError as error:
        leave(error.told, code)
    except mistakes.EXPECTED as error:
        leave(mistakes.explain(error, schema, folders), 2)
    except (KeyboardInterrupt, SystemExit) as exit:
        status = 130 if isinstance(exit, KeyboardInterrupt) else exit.code
        if RunChecks.sweep is not None and status in EXITS_BY_SIGNAL and is_first_process():
            print(f"the sweep was interrupted; continue with: {sweep_command(RunChecks.sweep[0])}", file=sys.stderr)
        sys.exit(status)
    except BrokenPipeError:  # the reader of --help, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:  # of a launcher, in a sweep: jobs record their own errors
        reason = in_one_line(error)
        if RunChecks.sweep is None:
            if given := [word for word in sys.argv[1:] if mistakes.is_hydras_own(word)]:
                leave(f"Hydra cannot use {' '.join(given)[:200]} ({reason}): leave it out", 2)
            raise
        print(f"error: the sweep stopped: {reason}", file=sys.stderr)
        if is_first_process():
            report(*RunChecks.sweep)
        leave(f"not all jobs ran; continue with the same command and hydra.sweep.dir={RunChecks.sweep[0]}", 1)
    finally:
        RunChecks.end()


def hydra_job(config: DictConfig) -> float:
    """Carry out one run, alone or in a sweep; returns its score, or NaN after a failure within a sweep."""
    node = cast(DictConfig, HydraConfig.get())
    directory = Path(node.runtime.output_dir)
    overrides = as_typed(node, "task")
    sweep = Path(node.sweep.dir).absolute().name if node.mode == RunMode.MULTIRUN else None
    job = jobs.Job(directory, jobs.parameters_of(overrides), sweep)

    def run() -> float:
        varied = (jobs.what_differs(job) or "").split()
        several = any(word.startswith(("learner=", "experiment=", "method=")) for word in varied)  # learners
        options = validated(config, node, varied if several else overrides)
        if isinstance(options, TrainConfig):
            return jobs.train(options, job) if options.tune is None else run_search(options, job)
        chosen = node.runtime.choices.get("planner") is not None
        planner = planner_overrides(overrides, vars(options.planner), chosen)
        # A job of a sweep may have one option of which another makes use.
        given = planner_overrides(overrides if sweep is None else (), vars(options.planner), False)
        return jobs.evaluate(options, job, planner, given)

    def run_alone() -> float:
        with FolderLock(directory):
            return run()

    with signals_only_within():
        return jobs.recorded(job, run if sweep is None or not is_first_process() else run_alone)


def _is_there() -> bool:
    """Return True if the working directory has a name; a deleted one has none."""
    try:
        return Path.cwd().exists()
    except FileNotFoundError:
        return False


def _own_folders(arguments: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Return the folder of ``--config-dir``, if given, and the other arguments."""
    parser = mistakes.without_usage(ArgumentParser(add_help=False))
    parser.add_argument("--config-dir", "-cd", type=Path)
    known, others = parser.parse_known_args(arguments)
    return [] if known.config_dir is None else [known.config_dir], others


def _resumed(arguments: Sequence[str]) -> tuple[Path, list[str], int | None] | None:
    """Return the run directory of ``resume=DIR``, the packages of ``allow=``, and the updates for ``extend=true``."""
    given = next((a for a in arguments if a.lstrip("+").startswith("resume=")), None)
    if given is None or given.endswith("=null"):
        return None
    require(given.partition("=")[2].strip("'\" ") != "", f"{given} names no run: give resume=DIR")
    allowed = [a for a in arguments if a.lstrip("+").startswith("allow=")]
    longer = [a for a in arguments if a.lstrip("+").startswith("trainer.max_steps=")]
    extend = [a for a in arguments if a.lstrip("+").lower() == "extend=true"]
    if others := [a for a in arguments if a not in (given, *allowed[:1], *extend[:1], *(longer[:1] if extend else []))]:
        hint = ", or give trainer.max_steps=N extend=true to train a finished run further" if longer else ""
        raise UserError(
            f"{given} continues a run with its recorded options and accepts no option but allow=[PACKAGE]; remove "
            f"{', '.join(others)}{hint}"
        )
    steps = "".join(longer).partition("=")[2]
    if extend and not (steps.isdecimal() and len(steps) < 19):
        raise UserError("extend=true needs trainer.max_steps=N, the number of updates of the whole run")
    packages = [name.strip() for text in allowed for name in text.partition("=")[2].strip("[]'\"").split(",")]
    require_module_names("allow", packages := [name for name in packages if name])
    return Path(given.partition("=")[2].strip("'\" ")), packages, int(steps) if extend else None


def resume(directory: Path, allow: Sequence[str], max_steps: int | None = None) -> None:
    """Continue the run in ``directory``, whose ``config.yaml`` may name classes of the packages in ``allow``.

    A finished run is trained further, up to ``max_steps`` updates in total; None takes the number in ``config.yaml``.
    """
    options = read_config(directory, allow)
    if options.tune is None and is_first_process():
        try:
            RunChecks.hold(directory)
        except OSError as error:
            raise UserError(f"resume={directory}: the folder cannot be written: {error.strerror}") from None
    record = jobs.RunRecord.read(directory)
    text = (directory / "config.yaml").read_text(encoding="utf-8")
    if max_steps is None and record is not None and record.status == "finished" and _is_edited(directory, options):
        max_steps = options.trainer.max_steps
    if max_steps is not None:
        extend(directory, options, record, max_steps)
        text = jobs.config_text(options)
    has_checkpoint = (directory / "checkpoints" / "last.ckpt").exists()
    sweep = directory.absolute().parent.name if (directory.parent / "multirun.yaml").exists() else None
    job = jobs.Job(directory, record.parameters if record else {}, sweep, claimed=True)
    if options.tune is None and record is not None and record.status == "finished" and max_steps is None:
        if options.evaluation.episodes == 0 or (directory / "results.json").exists():
            print(
                f"{directory} is finished; nothing to do (trainer.max_steps=N extend=true trains it further; delete "
                "its results.json to evaluate it again with the options of its config.yaml)"
            )
            return
        print(f"{directory} is trained; only its evaluation remains")
    elif options.tune is None and not has_checkpoint:
        print(f"{directory} holds no checkpoint yet; starting from the beginning")
    if options.tune is None and record is not None and record.status == "running":  # but its folder was not locked
        print(f"{directory}: the last process to run there was killed")
    require_trackers(options.logger)
    from ..data.sources import require_available

    import_modules(options.environment.modules, jobs.MODULES)
    require_available(options.data, allow)

    def run() -> float:
        return run_search(options, job) if options.tune is not None else jobs.fit_in(options, job, text, has_checkpoint)

    with _logging_to(directory / "train.log"):
        score = jobs.recorded(job, run)
    after = jobs.RunRecord.read(directory)
    if math.isnan(score) and after is not None and after.status == "failed":
        raise SystemExit(1)


@contextlib.contextmanager
def _logging_to(file: Path) -> Iterator[None]:
    """Log to the terminal and append to ``file``, as Hydra does in a run that it starts."""
    root, level = logging.getLogger(), logging.getLogger().level
    handlers = [logging.StreamHandler(sys.stdout)]
    with contextlib.suppress(OSError):  # a full disk is reported elsewhere
        handlers += [logging.FileHandler(file, encoding="utf-8")] if is_first_process() else []
    for handler in handlers:
        handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.setLevel(level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def extend(directory: Path, options: TrainConfig, record: jobs.RunRecord | None, max_steps: int) -> None:
    """Set a finished run's ``options`` to ``max_steps`` updates in total, or raise UserError."""
    status = "unknown" if record is None else record.status
    status = "its process was killed" if status == "running" else status  # the folder is not locked
    if options.tune is not None or (status != "finished" and is_first_process()):
        what = "a search" if options.tune is not None else f"not finished ({status})"
        raise UserError(
            f"extend=true is for a finished run, and {directory} is {what}; continue it with resume={directory}"
        )
    done = _updates_made(directory)
    if max_steps <= done:
        raise UserError(
            f"trainer.max_steps={max_steps}: {directory} has already made {done} updates; give a larger number"
        )
    options.trainer.max_steps = max_steps
    options.extended.append(done)
    print(
        f"{directory} is trained further, from update {done} to {max_steps}, with the learning rates of a run of "
        f"{max_steps} updates from here on; the result differs from that of such a run"
    )


def _is_edited(directory: Path, options: TrainConfig) -> bool:
    """Return True if a finished run has fewer updates than its options ask for, not because of a user's callback."""
    may_tell = options.tune is None and not options.trainer.callbacks and (directory / "checkpoints/last.ckpt").exists()
    return may_tell and _updates_made(directory) < options.trainer.max_steps


def _updates_made(directory: Path) -> int:
    from ..checkpoint import fitting_parts  # imported here so that an option is refused without loading torch
    from ..checkpoint_file import read_checkpoint

    last = directory / "checkpoints" / "last.ckpt"
    with fitting_parts(str(last)):
        return int(read_checkpoint(last)["global_step"])


def run_rank() -> None:
    """Train in a further process that Lightning started, with the first one's run directory and options."""
    run = json.loads(os.environ[jobs.RANK_RUN])
    job = jobs.Job(Path(run["directory"]))
    options = read_config(job.directory, TYPED_BY_USER)  # written by this command
    import_modules(options.environment.modules, jobs.MODULES)
    from .experiment import run_training

    run_training(options, jobs.context(job, options.trainer.callbacks, run["resume"]))


def _load_plain(text: str) -> object:
    """Load YAML without aliases, because nested aliases can expand to more values than fit into memory."""
    for event in yaml.parse(text):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(
                f"line {event.start_mark.line + 1} is an alias, *{event.anchor}, which this program never writes"
            )
    return yaml.safe_load(text)


def read_config(directory: Path, allow: Sequence[str] | None) -> TrainConfig:
    """Return the options of the run of ``train.py`` in ``directory``; raises UserError if they are missing or wrong."""
    file = directory / "config.yaml"
    try:
        options = _load_plain(file.read_text(encoding="utf-8"))
    except OSError:
        files = sorted(directory.parent.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime)
        beside = {path.parent.name: path.parent for path in files}
        near = difflib.get_close_matches(directory.name, beside, n=1, cutoff=0.8)
        hint = f"; the latest run beside it is {files[-1].parent}" if files else ""
        hint = f"; did you mean {beside[near[0]]}?" if near else hint
        if above := next((folder for folder in directory.parents[:2] if (folder / "config.yaml").is_file()), None):
            hint = f"; give the run's folder, resume={above}"
        raise UserError(f"resume={directory}: there is no {file}, so no run to continue{hint}") from None
    except Exception as error:  # text of a wrong form makes YAML's constructors raise any exception
        told = isinstance(error, (yaml.YAMLError, ValueError))
        reason = " ".join(str(error).split()) if told else in_one_line(error)
        raise UserError(f"{file} cannot be read: {reason}") from None
    if not isinstance(options, dict) or "checkpoint" in options:
        raise UserError(f"{file} is not the config of a run of train.py")
    if isinstance(options.get("planner"), dict):
        options["planner"] = current_record(options["planner"])
    try:
        config: TrainConfig = typed(TrainConfig, options)
    except mistakes.EXPECTED as error:
        raise UserError(f"{file}: {mistakes.explain(error, TrainConfig, [])}") from None
    except RecursionError:
        raise UserError(f"{file}: its values are nested too deeply") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if allow is not None:
        require_allowed(options, str(file), allow)
        require_modules(config.environment.modules, f"{file}: {jobs.MODULES}", allow)
    return config
