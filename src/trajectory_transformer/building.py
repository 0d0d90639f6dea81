"""Objects built from ``_target_`` options, and the rules for what may be imported to build them.

- A command line, or a YAML file that the user wrote, may name any importable class.
- A file that is read (a checkpoint, a data set, a run folder) may name only classes of this package and of the
  packages that the user lists in ``allow``.

In both cases the class must be a subclass of the one expected there. No other code turns a name into code.
"""

import difflib
import importlib
import importlib.util
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import UserError, in_one_line

PACKAGE = __name__.partition(".")[0]
ORIGINAL = "trajectory_transformer"  # the package that checkpoints from before `make rename` name
TYPED_BY_USER: None = None  # value of ``allow`` for options that the user gave: they may name anything

Kind = TypeVar("Kind")


class ClassError(UserError):
    """A class that a ``_target_`` names does not exist, is of the wrong kind, or must not be imported."""


def build(spec: object, kind: type[Kind], place: str, allow: Sequence[str] | None) -> Kind:
    """Build the object that ``spec`` describes.

    Args:
        spec: mapping with a class's dotted name under ``_target_`` and its arguments, in which nested mappings of this
            form are built first; arguments of a dataclass are checked against its types. An instance of ``kind`` is
            returned unchanged.
        kind: the expected class; subclasses are accepted.
        place: name of the option, for messages.
        allow: packages besides this one that a ``spec`` read from a file may name; :data:`TYPED_BY_USER` allows any.

    Raises:
        UserError: the class does not exist, is not a ``kind`` or is not allowed, or an argument is unknown or has the
            wrong type.
    """
    if isinstance(spec, kind) and not isinstance(spec, Mapping):
        return spec
    if not isinstance(spec, Mapping) or "_target_" not in spec:
        raise UserError(f"{place} needs a class, as in {place}._target_=my_package.{kind.__name__}")
    found = locate(str(spec["_target_"]), kind, place, allow)
    options = {str(name): value for name, value in spec.items() if name != "_target_"}
    arguments = _build_nested(options, object if allow is None else kind, place, allow)
    _require_parameters(found, arguments, place)
    return cast(Kind, _typed_dataclass(found, arguments, place) if is_dataclass(found) else found(**arguments))


def locate(path: str, kind: type[Kind], place: str, allow: Sequence[str] | None) -> type[Kind]:
    """Return the class named ``path``; arguments and errors are those of :func:`build`."""
    path = _renamed(path)
    _require_allowed(path, path, place, allow)
    module, _, name = path.rpartition(".")
    if not module:
        raise ClassError(f"{place}._target_={path} lacks the module of the class; give both, as in my_module.{path}")
    here = f"{place}._target_={path}"
    try:
        owner = importlib.import_module(module) if all(path.split(".")) else None
    except Exception as error:  # whatever the user's own code raises
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            raise ClassError(f"{here}: there is no module '{error.name}' on Python's path") from None
        message = f"{here}: {module} cannot be imported ({in_one_line(error)})"
        raise ClassError.of_own_code(message, error) from error
    found = getattr(owner, name, None)
    if found is None:
        near = difflib.get_close_matches(name, () if owner is None else vars(owner), n=1)
        raise ClassError(f"{here}: there is no such class" + "".join(f"; did you mean {other}?" for other in near))
    if not inspect.isclass(found) or not issubclass(found, kind):
        raise ClassError(f"{place}._target_={path} is not a {'class' if kind is object else kind.__name__}")
    _require_allowed(f"{found.__module__}.{name}", path, place, allow)  # a name can lead to another package's class
    return found


def require_modules(modules: Sequence[str], place: str, allow: Sequence[str] | None) -> None:
    """Raise UserError for modules that do not exist or, if ``allow`` is given, are outside its packages.

    Nothing is imported.
    """
    for module in modules:
        package = module.partition(".")[0]
        if allow is not None and package not in allow:
            raise UserError(
                f"{place} names {module}, and a file must not choose what is imported; if you trust that package, add "
                f"allow=[{package}]"
            )
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{place}: there is no module '{package}' on Python's path; PYTHONPATH=FOLDER adds a folder"
            )


def import_modules(modules: Sequence[str], place: str) -> None:
    """Import modules that the user named, for their side effects; a failure raises UserError with its traceback."""
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever the user's own code raises
            message = f"{place}: {module} cannot be imported ({in_one_line(error)})"
            raise UserError.of_own_code(message, error) from error


def require_options(spec: Mapping[str, object], place: str, given: Sequence[str] = ()) -> None:
    """Raise UserError for options that the class of ``spec`` does not take, or of types other than it declares.

    ``given`` are names of arguments that the program adds. Nothing is built.
    """
    options = {str(name): value for name, value in spec.items() if name != "_target_"}
    found = locate(str(spec["_target_"]), object, place, TYPED_BY_USER)
    _require_parameters(found, options | dict.fromkeys(given), place)


def with_defaults(spec: Any, place: str) -> Any:
    """Return the user's ``spec``, each of its classes with the plain defaults of the arguments that it leaves out.

    Recorded, it builds the same object after a default was edited. Nothing is built.
    """
    if isinstance(spec, (list, tuple)):
        return [with_defaults(entry, f"{place}[{index}]") for index, entry in enumerate(spec)]
    if not isinstance(spec, Mapping):
        return spec
    given = {name: with_defaults(value, f"{place}.{name}") for name, value in spec.items()}
    found = locate(str(spec["_target_"]), object, place, TYPED_BY_USER) if "_target_" in spec else None
    return given | {name: value for name, value in _defaults(found) if name not in given}


def targets_in(spec: object) -> list[str]:
    """Return all values of ``_target_`` in nested mappings and lists, in order."""
    own = [str(spec["_target_"])] if isinstance(spec, Mapping) and "_target_" in spec else []
    inner = spec.values() if isinstance(spec, Mapping) else spec if isinstance(spec, (list, tuple)) else ()
    return own + [target for value in inner for target in targets_in(value)]


def packages_in(spec: object) -> tuple[str, ...]:
    """Return the packages that a file made from the user's ``spec`` may name: those named or defining its classes."""
    found = {path: locate(path, object, "_target_", TYPED_BY_USER).__module__ for path in targets_in(spec)}
    return tuple(dict.fromkeys(name.partition(".")[0] for pair in found.items() for name in pair))


def require_allowed(spec: object, place: str, allow: Sequence[str]) -> None:
    """Raise UserError if ``spec``, read from a file, names a class outside this package and ``allow``."""
    for target in targets_in(spec):
        _require_allowed(_renamed(target), target, place, allow)


def _renamed(path: str) -> str:
    """Return the name of a class of the original package as one of this package, which may have another name."""
    return f"{PACKAGE}{path.removeprefix(ORIGINAL)}" if path.startswith(f"{ORIGINAL}.") else path


def _require_allowed(path: str, named: str, place: str, allow: Sequence[str] | None) -> None:
    if allow is not None and not path.startswith(tuple(f"{package}." for package in (PACKAGE, *allow))):
        package = path.partition(".")[0]
        raise ClassError(
            f"{place} names the class {named}, and a file must not choose what is imported; if you trust that package, "
            f"add allow=[{package}]"
        )


def _build_nested(value: Any, kind: type, place: str, allow: Sequence[str] | None) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return build(value, kind, place, allow)
        return {key: _build_nested(entry, kind, f"{place}.{key}", allow) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_build_nested(entry, kind, f"{place}[{index}]", allow) for index, entry in enumerate(value)]
    return value


def _require_parameters(found: type, arguments: Mapping[str, object], place: str) -> None:
    try:
        signature = inspect.signature(found)
    except ValueError:  # some classes of compiled code do not tell their parameters
        return
    known = list(signature.parameters)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    if unknown := [] if takes_any else [name for name in arguments if name not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean '{place}.{near[0]}'?" if near else f"it has {', '.join(known) or 'no options'}"
        raise UserError(f"there is no option '{place}.{unknown[0]}'; {hint}")
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise UserError(f"{place}: {found.__module__}.{found.__qualname__}: {error}") from None
    if not is_dataclass(found):
        _require_types(found, arguments, place)


def _require_types(found: type, arguments: Mapping[str, object], place: str) -> None:
    """Raise UserError for a plain argument that a class declares as another plain type, such as a text for an int."""
    from pydantic import TypeAdapter, ValidationError  # imported here because most commands do not need it

    try:
        hints = get_type_hints(found.__init__)
    except (NameError, TypeError, AttributeError):  # names that only a type checker sees
        return
    parameters = inspect.signature(found).parameters
    for name, value in arguments.items():
        typed = name in hints and name in parameters and _is_plain_type(hints[name])
        if typed and parameters[name].default != value and _is_plain(value) and not targets_in(value):
            try:
                TypeAdapter(hints[name]).validate_python(value, strict=True)
            except ValidationError as error:
                reason = "; or ".join(dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors()))
                raise UserError(f"{place}.{name}={repr(value)[:80]}: {reason}") from None


def _is_plain_type(hint: Any) -> bool:
    if get_origin(hint) in (Union, UnionType, list, dict):
        return all(map(_is_plain_type, get_args(hint)))
    return get_origin(hint) is Literal or hint in (int, float, bool, str, NoneType, list, dict)


def _typed_dataclass(found: type, arguments: Mapping[str, object], place: str) -> object:
    """Build a dataclass, with its plain options converted to the types of its fields as on the command line."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException, ValidationError

    plain = {name: value for name, value in arguments.items() if OmegaConf.is_config(value) or _is_plain(value)}
    try:
        schema = OmegaConf.structured(found)
    except (OmegaConfBaseException, ValueError):  # some fields are not plain options
        return found(**arguments)
    try:
        typed = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.merge(schema, plain)))
    except ValidationError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{place}.{error.full_key}: {reason[0].lower()}{reason[1:]}") from None
    return found(**{name: typed[name] if name in plain else value for name, value in arguments.items()})


def _defaults(found: type | None) -> Iterator[tuple[str, Any]]:
    """Yield the defaults of a class's arguments that YAML can hold; it would turn a tuple into a list."""
    made = {f.name: f.default_factory for f in fields(found)} if found and is_dataclass(found) else {}
    try:
        parameters = {} if found is None else inspect.signature(found).parameters
    except ValueError:  # some classes of compiled code do not tell their parameters
        return
    for name, parameter in parameters.items():
        factory = made.get(name, MISSING)
        value = parameter.default if factory is MISSING else factory()
        if parameter.kind != parameter.POSITIONAL_ONLY and _is_yaml(value):
            yield name, deepcopy(value)


def _is_yaml(value: Any) -> bool:
    if type(value) in (list, dict):
        return all(map(_is_yaml, value.values() if type(value) is dict else value))
    return type(value) in (NoneType, bool, int, str) or (type(value) is float and math.isfinite(value))


def _is_plain(value: object) -> bool:
    if isinstance(value, (Mapping, list, tuple)):
        return all(map(_is_plain, value.values() if isinstance(value, Mapping) else value))
    return value is None or isinstance(value, (bool, int, float, str))
