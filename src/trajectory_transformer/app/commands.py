"""Shell commands as a user types them: the present one, and those to continue a run or evaluate its checkpoint."""

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..building import PACKAGE, packages_in
from ..configuration import TrainConfig
from .names import OF_RECORD

_PLAIN = re.compile(r"[\w./-]+", re.ASCII)  # what Hydra takes without quotes


def as_called(words: Sequence[str]) -> str:
    """Return a call of a script of this project, with ``python`` before it, or of an installed command, without."""
    typed = [word.removeprefix("++") if OF_RECORD.match(word, 2) else word for word in words]
    return shlex.join([*(["python"] if words[0].endswith(".py") else []), *typed])


def resume_command(directory: Path, options: TrainConfig) -> str:
    """Return the command that resumes the run of ``options`` in ``directory``."""
    return _command("train", f"resume={shown(directory)}", *_allowed(options, asdict(options)))


def evaluate_command(checkpoint: Path, options: TrainConfig) -> str:
    """Return the command that evaluates a checkpoint of the run of ``options``."""
    modules = options.environment.modules
    named = [f"environment.modules=[{','.join(modules)}]"] if modules else []
    used = {name: value for name, value in asdict(options).items() if name != "trainer"}  # a loss, metrics, callbacks
    return _command("evaluate", f"checkpoint={_quoted(shown(checkpoint))}", *_allowed(options, used), *named)


def sweep_command(directory: Path) -> str:
    """Return the command that continues the present sweep in ``directory``."""
    words = [word for word in sys.argv if not word.startswith("hydra.sweep.dir=")]
    return as_called([*words, f"hydra.sweep.dir={_quoted(shown(directory))}"])


def shown(path: Path) -> Path:
    """Return a path relative to the working directory if it lies below it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _quoted(path: Path) -> str:
    """Return a path as Hydra reads it: in quotes if it holds characters with a meaning."""
    text = str(path)
    return text if _PLAIN.fullmatch(text) else "'{}'".format(text.replace("'", "\\'"))


def _command(name: str, *words: str) -> str:
    """Return a call of the command "train" or "evaluate", which lies beside the present script."""
    script = Path(sys.argv[0])
    script = script.with_name(re.sub("train|evaluate", name, script.name))
    return as_called([str(script), *words])


def _allowed(options: TrainConfig, used: Mapping[str, Any]) -> list[str]:
    """Return ``allow=[…]`` with the packages that options in ``used`` name, if any is needed besides this one."""
    modules = (module.partition(".")[0] for module in options.environment.modules)
    packages = [name for name in dict.fromkeys([*packages_in(used), *modules]) if name != PACKAGE]
    return [f"allow=[{','.join(packages)}]"] if packages else []
