"""Names of a command's options and config groups, without importing Hydra, so that completion is fast."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..configuration import EvaluateConfig, TrainConfig

LAUNCHER = "hydra/launcher"
# Options that are a class and its options.
RECORDS = ("learner", "planner.objective", "data.source", "model.block", "planner.search", "trainer.loss")
OF_RECORD = re.compile(rf"({'|'.join(map(re.escape, RECORDS))})\.[^=]*=")
TEXTS = (str, str | None, list[str], list[str] | None)  # types of options of free text
PLAIN = re.compile(r"[\w./:+*%@?|-]+( +[\w./:+*%@?|-]+)*", re.ASCII)  # to Hydra, without quotes
NOT_TEXT = re.compile(r"[\d_.e+-]{1,80}|true|false|nan|[+-]?inf", re.IGNORECASE)  # to Hydra; 1e3 would become 1000.0


def option_names(schema: type) -> Iterator[str]:
    """Return the dotted names of all options of ``schema``, including those that contain further options."""
    return (name for name, _ in options_of(schema))


def as_text(words: Sequence[str], schema: type) -> list[str]:
    """Return words ``option=value`` in which text for free-text options is quoted where Hydra would misread it.

    That is text that looks like a number or flag, or has characters that Hydra's grammar lacks, such as umlauts. Text
    that is quoted already, commas between a sweep's values, and interpolations are left as they are.
    """
    free = {name for name, hint in options_of(schema, with_choices=False) if hint in TEXTS}

    def quoted(found: re.Match[str]) -> str:
        entry = found[0].strip()
        readable = found[0][0] in "'\"" or (PLAIN.fullmatch(entry) and not NOT_TEXT.fullmatch(entry))
        return found[0] if readable or not entry else f"'{entry}'"

    parted = [word.partition("=") for word in words]
    in_quotes = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
    entries = re.compile(rf"{in_quotes}|[^,\[\]'\"]+")
    special = re.compile(r"['\"(){}$\\]")  # quotes, interpolations, functions of sweeps, mappings
    return [
        name
        + equals
        + (
            entries.sub(quoted, value)
            if name.lstrip("+") in free and not special.search(re.sub(in_quotes, "", value))
            else value
        )
        for name, equals, value in parted
    ]


def as_addable(words: Sequence[str], schema: type) -> list[str]:
    """Return words with ``++`` before options of a class, which Hydra otherwise refuses if its YAML leaves them out."""
    known = fields_of(schema)
    return [f"++{word}" if OF_RECORD.match(word) and re.split(r"\W", word)[0] in known else word for word in words]


def options_of(schema: type, prefix: str = "", with_choices: bool = True) -> Iterator[tuple[str, Any]]:
    """Yield the names of :func:`option_names`, each with its type; on demand without those of fixed choices."""
    choices = {field.name for field in dataclasses.fields(schema) if "choices" in field.metadata}
    for name, hint in get_type_hints(schema).items():
        if name in fields_of(schema) and (with_choices or name not in choices):
            yield f"{prefix}{name}", hint
            candidates = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            for nested in candidates:
                if isinstance(nested, type) and dataclasses.is_dataclass(nested):
                    yield from options_of(nested, f"{prefix}{name}.", with_choices)


def group_names(configs: Sequence[Path], schema: type) -> list[str]:
    """Return the config groups of a command: the folders in ``configs`` that apply to it, and Hydra's launcher."""
    foreign = (fields_of(TrainConfig) | fields_of(EvaluateConfig)) - fields_of(schema)
    foreign |= {"callbacks", "debug", "method", "suite"} if schema is EvaluateConfig else set()
    folders = [path for folder in configs for pattern in ("*", LAUNCHER) for path in folder.glob(pattern)]
    found = {LAUNCHER if path.match(LAUNCHER) else path.name for path in folders if path.is_dir()} - {"hydra"}
    return [group for group in sorted(found) if not {group, f"{group}_name"} & foreign]


def fields_of(schema: type) -> set[str]:
    """Return the names of the options at the root."""
    return {field.name for field in dataclasses.fields(schema)}
