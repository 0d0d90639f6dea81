"""Objects from ``_target_`` options, only from packages that hold nothing but building blocks."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from ..errors import UserError

ALLOWED = ("trajectory_transformer", "torch.optim", "torch.nn", "lightning.pytorch", "torchmetrics")


def check_targets(config: object, place: str) -> None:
    """Refuse any ``_target_`` in ``config``, nested ones too, that lies outside ``ALLOWED``; imports nothing.

    Raises:
        UserError: naming the place and the target.
    """
    if isinstance(config, Mapping):
        if "_target_" in config and not _is_allowed(str(config["_target_"])):
            raise UserError(
                f"{place}._target_={config['_target_']} is refused: a target must lie in one of {', '.join(ALLOWED)}"
            )
        for key, value in config.items():
            check_targets(value, f"{place}.{key}")
    elif isinstance(config, (list, tuple)):
        for index, value in enumerate(config):
            check_targets(value, f"{place}[{index}]")


def instantiate(config: Any, place: str = "config") -> Any:
    """Build ``config``: mappings with a ``_target_`` become that class called with the other keys, innermost first.

    Hydra's own ``instantiate`` only knows what to forbid; this one only knows what to allow, and looks where the
    object is defined as well, since a name below an allowed package can lead to another package's function.

    Args:
        config: plain mappings, lists and values.
        place: name of ``config`` in messages.

    Raises:
        UserError: a target that is not allowed, does not exist, is no class, or does not take the arguments.
    """
    check_targets(config, place)
    return _build(config, place)


def _build(config: Any, place: str) -> Any:
    if isinstance(config, (list, tuple)):
        return [_build(value, f"{place}[{index}]") for index, value in enumerate(config)]
    if not isinstance(config, Mapping):
        return config
    arguments = {str(key): _build(value, f"{place}.{key}") for key, value in config.items() if key != "_target_"}
    if "_target_" not in config:
        return arguments
    target = _locate(str(config["_target_"]), place)
    try:
        inspect.signature(target).bind(**arguments)
    except TypeError as error:
        raise UserError(f"{place}: {config['_target_']}: {error}") from None
    return target(**arguments)


def _locate(path: str, place: str) -> Any:
    """The class at ``path``, which must be defined in an allowed package itself."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise UserError(f"{place}._target_={path}: there is no such class") from None
    if not inspect.isclass(found) or not _is_allowed(f"{found.__module__}."):
        raise UserError(f"{place}._target_={path} is refused: it is no class of {', '.join(ALLOWED)}")
    return found


def _is_allowed(path: str) -> bool:
    return path.startswith(tuple(f"{package}." for package in ALLOWED))
