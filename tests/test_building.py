"""Objects from names: the user may name any class, a file almost none."""

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from trajectory_transformer.building import (
    TYPED_BY_USER,
    build,
    packages_in,
    require_allowed,
    require_options,
    targets_in,
    with_defaults,
)
from trajectory_transformer.configuration import DiscretizerConfig
from trajectory_transformer.errors import UserError

from .specs import spec_of

PACKAGE = """
print("imported")

class Part:
    def __init__(self, size: int = 1, inner: object = None) -> None:
        self.size, self.inner = size, inner

class Other:
    pass
"""


class Part:
    """A base class of this module's package."""


@dataclass
class Options(Part):
    width: int = 3
    rate: float = 0.5
    names: list[str] = field(default_factory=list)


class Odd:
    def __init__(self, needed, /, sizes=(1, 2), kind=Part, limit=math.inf, *, flag=True, **others) -> None: ...


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package of the user's on Python's path, which has not been imported."""
    (tmp_path / "users_package.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    return "users_package"


def test_the_users_words_build_anything_of_the_right_kind(package: str) -> None:
    inner = {"_target_": f"{package}.Part", "size": 2}
    built: Any = build({"_target_": f"{package}.Part", "inner": inner}, object, "place", TYPED_BY_USER)
    assert (built.size, built.inner.size) == (1, 2)


@pytest.mark.parametrize("nested", [False, True])
def test_a_file_imports_nothing_that_is_not_allowed(package: str, nested: bool) -> None:
    spec: dict[str, Any] = {"_target_": f"{package}.Part"}
    if nested:
        spec = {"_target_": "trajectory_transformer.configuration.DiscretizerConfig", "strategy": spec}
    with pytest.raises(UserError, match=r"users_package\.Part, and a file must not .*allow=\[users_package\]$"):
        build(spec, object, "place", ())
    with pytest.raises(UserError, match=r"users_package\.Part"):
        require_allowed({"a": [{"b": spec}]}, "config.yaml", ())
    assert package not in sys.modules
    require_allowed(spec, "config.yaml", (package,))


def test_a_file_builds_this_package_s_classes_and_those_of_packages_that_are_allowed(package: str) -> None:
    built = build(
        {"_target_": "trajectory_transformer.configuration.DiscretizerConfig", "num_bins": 7},
        DiscretizerConfig, "data.discretizer", (),
    )  # fmt: skip
    assert built == DiscretizerConfig(num_bins=7)
    assert type(build({"_target_": f"{package}.Part"}, object, "place", (package,))).__name__ == "Part"


@pytest.mark.parametrize(
    "target",
    [
        "os.system", "builtins.eval", "torch.load", "subprocess.Popen", "trajectory_transformer.errors.os.system",
        "trajectory_transformer.checkpoint_file.Path", "trajectory_transformer.checkpoint_file.write_checkpoint",
        "trajectory_transformerx.Part", "trajectory_transformer",
    ],
)  # fmt: skip
def test_what_a_file_must_not_name(target: str) -> None:
    with pytest.raises(UserError, match=r"^place"):
        build({"_target_": target}, object, "place", ())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("subprocess.Popen", r"^place\._target_=subprocess\.Popen is not a Part$"),
        ("os.system", r"^place\._target_=os\.system is not a Part$"),
        ("no_such_module.Part", r"there is no module 'no_such_module' on Python's path$"),
        ("os.NoSuchClass", r"^place\._target_=os\.NoSuchClass: there is no such class$"),
        ("Part", r"^place\._target_=Part lacks the module of the class; give both, as in my_module\.Part$"),
    ],
)
def test_the_users_words_must_name_a_class_of_the_right_kind(target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build({"_target_": target}, Part, "place", TYPED_BY_USER)


@pytest.mark.parametrize(
    ("text", "name", "message", "line"),
    [
        ("import torch\nACT = torch.nn.Swishh\n", "Part", "cannot be imported (AttributeError: ", "torch.nn.Swishh"),
        ("WIDTH = int('abc')\n", "Part", "cannot be imported (ValueError: ", "int('abc')"),
        ("class Part\n", "Part", "cannot be imported (SyntaxError: ", "class Part"),
        ("import no_such_dependency\n", "Part", "cannot be imported (ModuleNotFoundError: ", "no_such_dependency"),
        ("class Averse: ...\n", "Avers", "there is no such class; did you mean Averse?", ""),
    ],
)
def test_a_mistake_in_a_user_s_module_is_told_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str, message: str, line: str
) -> None:
    (tmp_path / "ideas_with_mistake.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as caught:
        build({"_target_": f"ideas_with_mistake.{name}"}, object, "place", TYPED_BY_USER)
    assert str(caught.value).startswith(f"place._target_=ideas_with_mistake.{name}: ")
    assert message in str(caught.value)
    assert line in caught.value.told


def test_options_are_checked_before_the_object_is_made() -> None:
    target = f"{__name__}.Options"
    built = build({"_target_": target, "width": "4", "names": ["a"]}, Part, "learner", TYPED_BY_USER)
    assert built == Options(4, 0.5, ["a"])
    with pytest.raises(UserError, match=r"^there is no option 'learner\.widht'; did you mean 'learner\.width'\?$"):
        build({"_target_": target, "widht": 4}, Part, "learner", TYPED_BY_USER)
    with pytest.raises(UserError, match=r"^learner\.width: value 'wide' .*Integer$"):
        build({"_target_": target, "width": "wide"}, Part, "learner", TYPED_BY_USER)
    with pytest.raises(UserError, match=r"^place needs a class, as in place\._target_=my_package\.Part$"):
        build({"width": 3}, Part, "place", TYPED_BY_USER)


def test_defaults_are_those_of_every_class_in_a_spec_as_far_as_a_file_can_hold_them(package: str) -> None:
    part, options = f"{package}.Part", f"{__name__}.Options"
    spec = {"_target_": part, "inner": [{"_target_": options, "width": 4}, {"rate": 2}]}
    complete = [{"_target_": options, "width": 4, "rate": 0.5, "names": []}, {"rate": 2}]
    assert with_defaults(spec, "place") == {"_target_": part, "inner": complete, "size": 1}
    assert with_defaults(None, "place") is None
    assert with_defaults({"_target_": f"{__name__}.Odd"}, "place") == {"_target_": f"{__name__}.Odd", "flag": True}
    kept = with_defaults({"_target_": options}, "place")
    kept["names"].append("a")  # belongs to the record
    assert with_defaults({"_target_": options}, "place")["names"] == []


def test_a_class_that_does_not_tell_its_parameters_is_built() -> None:
    spec = {"_target_": "builtins.dict", "a": 1}
    require_options(spec, "place")
    assert with_defaults(spec, "place") == spec
    assert build(spec, dict, "place", TYPED_BY_USER) == {"a": 1}


def test_a_dataclass_and_its_description() -> None:
    options = Options(width=8)
    assert build(options, Part, "place", ()) is options
    spec = spec_of(options)
    assert build(spec, Part, "place", TYPED_BY_USER) == options
    assert targets_in([{"x": spec}, 3]) == [f"{__name__}.Options"]
    assert packages_in({"x": spec}) == (__name__.partition(".")[0],)


def test_a_package_that_hands_on_another_s_class_allows_both(package: str, tmp_path: Path) -> None:
    (tmp_path / "facade_package.py").write_text("from users_package import Part\n")
    spec = {"_target_": "facade_package.Part"}
    assert packages_in(spec) == ("facade_package", package)
    with pytest.raises(UserError, match=r"allow=\[facade_package\]"):
        build(spec, object, "place", (package,))
    assert type(build(spec, object, "place", packages_in(spec))).__name__ == "Part"
