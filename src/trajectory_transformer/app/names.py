"""Names of a command's options and config groups, without importing Hydra, so that completion is fast."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..configuration import EvaluateConfig, TrainConfig

LAUNCHER = "hydra/launcher"


def option_names(schema: type) -> Iterator[str]:
    """Return the dotted names of all options of ``schema``, including those that contain further options."""
    return (name for name, _ in options_of(schema))


def options_of(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the names of :func:`option_names`, each with its type."""
    for name, hint in get_type_hints(schema).items():
        if name in fields_of(schema):
            yield f"{prefix}{name}", hint
            candidates = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
            for nested in candidates:
                if isinstance(nested, type) and dataclasses.is_dataclass(nested):
                    yield from options_of(nested, f"{prefix}{name}.")


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
