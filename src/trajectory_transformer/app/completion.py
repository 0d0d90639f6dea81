"""Completion of the command line in a shell, without importing Hydra, which would be too slow for a key press.

``eval "$(python train.py -sc install=bash)"`` installs Hydra's shell script, which calls this module.
"""

import glob
import itertools
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..configuration import EvaluateConfig, TrainConfig
from ..configuration.documentation import options_of
from .names import group_names

QUERY = re.compile(r"query=\w+")
PROGRAM = re.compile(r"\s*(\S*python[\d.]*\s+)?\S+\s")  # "python train.py ", or the name of an installed command


def is_query(words: Sequence[str]) -> bool:
    """True if the shell asks for completions."""
    return bool({"-sc", "--shell-completion"} & set(words)) and any(map(QUERY.fullmatch, words))


def answer(command: str, configs: Path) -> list[str]:
    """Completions of the last word of COMP_LINE up to COMP_POINT, which Hydra's scripts for shells set."""
    line = os.environ.get("COMP_LINE", "")
    line = PROGRAM.sub("", line[: int(os.environ.get("COMP_POINT", len(line)))], count=1)
    try:
        words = shlex.split(line)
    except ValueError:  # a quote that is still open
        return []
    word = words[-1] if words and not line.endswith(" ") else ""
    given = [Path(folder) for flag, folder in itertools.pairwise(words) if flag in ("--config-dir", "-cd")]
    return sorted(set(_matches(word, TrainConfig if command == "train" else EvaluateConfig, [configs, *given])))


def _matches(word: str, schema: type, configs: Sequence[Path]) -> Iterator[str]:
    key, equals, value = word.partition("=")
    prefix = key[: len(key) - len(key.lstrip("+~"))]
    name = key.removeprefix(prefix)
    groups, options = group_names(configs, schema), {option.name: option for option in options_of(schema)}
    if not equals:
        yield from (f"{prefix}{one}=" for one in (*groups, *options) if one.startswith(name))
    elif value.startswith((".", "/", "~")):
        yield from (f"{key}={path}" for path in glob.glob(f"{glob.escape(os.path.expanduser(value))}*"))
    elif name in groups:
        files = (file.stem for folder in configs for file in (folder / name).glob("*.yaml"))
        yield from (f"{key}={choice}" for choice in files if choice.startswith(value))
    elif name in options:
        known = ("true", "false") if options[name].kind is bool else options[name].choices
        yield from (f"{key}={choice}" for choice in known if choice.startswith(value))
