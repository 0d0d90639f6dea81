"""Options with their meanings, read from the docstrings below the fields of the dataclasses that declare them."""

import ast
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from .validation import Range


@dataclass(frozen=True)
class Option:
    """An option of a command, or of a class named by a ``_target_``."""

    name: str
    """Dotted name."""
    kind: Any
    """Annotated type."""
    default: Any
    """Default value; ``dataclasses.MISSING`` for a required option."""
    limits: Range | None
    """Range of a number; None: any."""
    choices: tuple[str, ...]
    """Permitted texts; empty: any."""
    meaning: str
    """Meaning in one phrase or sentence; empty if undocumented."""

    @property
    def values(self) -> str:
        """Return the permitted values in words, such as "whole number in [1, 1000]" or "gelu, relu"; empty: any."""
        kinds = get_args(self.kind) if get_origin(self.kind) in (Union, UnionType) else (self.kind,)
        words = [_KINDS.get(get_origin(kind) or kind, "") for kind in kinds if kind is not NoneType]
        text = ", ".join(self.choices) or f"{' or '.join(words)} {self.limits or ''}".strip()
        return f"{text}, or null" if NoneType in kinds else text


_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "mapping"}


def options_of(record: type, prefix: str = "") -> Iterator[Option]:
    """Yield the options of a dataclass, nested dataclasses flattened; names begin with ``prefix``."""
    hints, meanings = get_type_hints(record), meanings_of(record)
    for field in dataclasses.fields(record):
        if not field.init:
            continue
        name, kind = f"{prefix}{field.name}", hints[field.name]
        nested = next((one for one in (kind, *get_args(kind)) if _is_record(one)), None)
        if nested is not None and get_origin(kind) is not dict:
            yield from options_of(nested, f"{name}.")
            continue
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        limits, choices = field.metadata.get("range"), field.metadata.get("choices", ())
        yield Option(name, kind, default, limits, choices, meanings.get(field.name, ""))


def meanings_of(record: type) -> dict[str, str]:
    """Return the docstrings of a class's fields, inherited ones included, each in one line."""
    found: dict[str, str] = {}
    for parent in reversed(record.__mro__):
        if dataclasses.is_dataclass(parent):
            found |= _docstrings(inspect.getsourcefile(parent) or "").get(parent.__qualname__, {})
    return found


@functools.cache
def _docstrings(file: str) -> dict[str, dict[str, str]]:
    """Return, for each top-level class of a source file, the texts below its annotated names."""
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: dict(_field_docstrings(node.body)) for node in classes}


def _field_docstrings(body: list[ast.stmt]) -> Iterator[tuple[str, str]]:
    for field, text in itertools.pairwise(body):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words))):
                yield name, " ".join(words.split())


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)
