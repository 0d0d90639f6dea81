"""environment.modules: the user's options import modules that register environments; a file's do not."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from trajectory_transformer.app.jobs import RunRecord

from .conftest import Runs

MODULE = """
import gymnasium
gymnasium.register("OwnPendulum-v0", "gymnasium.envs.classic_control:PendulumEnv", max_episode_steps=9)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of the user's on Python's path, which has not been imported."""
    (tmp_path / "own_pendulum.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_pendulum"
    gymnasium.registry.pop("OwnPendulum-v0", None)


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Options of a data set whose environment is the module's."""
    arrays = {"observations": np.zeros((3, 3)), "actions": np.zeros((2, 1)), "rewards": np.zeros(2)}
    (tmp_path / "episodes").mkdir()
    np.savez(tmp_path / "episodes" / "a.npz", allow_pickle=False, **arrays, terminated=False)
    return ["data=npz", "data.source.path=episodes", "hydra.run.dir=here"]


def test_a_module_is_imported_before_its_environment_is_looked_for(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], module: str, data: list[str]
) -> None:
    data = [*data, "data.source.env_id=OwnPendulum-v0"]
    assert train(*data) == 1
    assert "add environment.modules=[my_package]" in capsys.readouterr().err
    assert train(*data, f"environment.modules=[{module}]", "hydra.run.dir=there") == 0
    assert len(runs.calls) == 1


def test_an_id_that_names_its_module_is_enough(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], module: str, data: list[str]
) -> None:
    """The module in the run's folder is imported later only if the user allows it again."""
    runs.error = SystemExit(143)
    assert train(*data, f"data.source.env_id={module}:OwnPendulum-v0") == 143
    assert runs.calls[0][0].environment.modules == [module]
    runs.error = None
    del sys.modules[module], gymnasium.registry["OwnPendulum-v0"]
    assert train("resume=here") == 2
    assert f"environment.modules names {module}, and a file must not choose what" in capsys.readouterr().err
    assert module not in sys.modules
    assert train("resume=here", f"allow=[{module}]") == 0
    assert module in sys.modules


@pytest.mark.parametrize(("name", "message"), [("own-pendulum", "is not the name of"), ("nowhere.a", "'nowhere' on")])
def test_a_module_that_is_none_is_named(
    train: Callable[..., int],
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    message: str,
) -> None:
    (tmp_path / "a.ckpt").touch()
    for call in (lambda *words: train(*words), lambda *words: evaluate("checkpoint=a.ckpt", *words)):
        assert call(f"environment.modules=[{name}]") == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "environment.modules" in line
        assert message in line


def test_the_traceback_of_a_module_that_fails_is_the_users(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, module: str
) -> None:
    (tmp_path / "own_pendulum.py").write_text("def broken():\n    return 1 / 0\n\nbroken()\n")
    assert train(f"environment.modules=[{module}]", "hydra.run.dir=here") == 1
    reason = "environment.modules: own_pendulum cannot be imported (ZeroDivisionError: division by zero)"
    shown = capsys.readouterr().err
    assert f"error: {reason}\nTraceback (most recent call last):\n" in shown
    assert "return 1 / 0" in shown
    assert "building.py" not in shown
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert (record.status, record.reason) == ("failed", reason)
