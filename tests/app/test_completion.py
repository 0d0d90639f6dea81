"""Completion in a shell: names, choices and files, without Hydra."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import CONFIGS

CODE = """
import sys
from pathlib import Path
from trajectory_transformer.app import entry_point
sys.argv = ["train.py", "-sc", "query=bash"]
entry_point("train", Path(sys.orig_argv[-1]))
assert not {"hydra", "omegaconf", "torch", "numpy"} & set(sys.modules)
"""


@pytest.fixture
def completed(
    monkeypatch: pytest.MonkeyPatch, train: Callable[..., int], evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> Callable[[str], list[str]]:  # fmt: skip
    def complete(line: str) -> list[str]:
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("COMP_POINT", str(len(line)))
        assert (evaluate if "evaluate" in line else train)("-sc", "query=bash") == 0
        return capsys.readouterr().out.split()

    return complete


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("python train.py model.n_", ["model.n_embd=", "model.n_head=", "model.n_layer="]),
        ("python train.py seed=1 mod", ["model.action_weight=", "model="]),
        ("python train.py model=", ["model=base", "model=large", "model=tiny"]),
        ("python3.11 train.py planner.window=", ["planner.window=growing", "planner.window=sliding"]),
        ("trajectory-transformer-train trainer.compile=t", ["trainer.compile=true"]),
        ("python train.py debug=f", ["debug=fast"]),
        ("python train.py -m hydra/l", ["hydra/launcher="]),
        ("python train.py +mode", ["+model="]),
        ("python evaluate.py pred", ["predict.actions="]),
    ],
)
def test_names_and_choices(completed: Callable[[str], list[str]], line: str, words: list[str]) -> None:
    found = completed(line)
    assert set(words) <= set(found)
    last = line.split()[-1]
    assert all(word.startswith(last) for word in found)


def test_each_command_has_its_own(completed: Callable[[str], list[str]]) -> None:
    assert completed("python evaluate.py mod") == []
    assert "model=" in completed("python train.py ")
    assert completed("python train.py 'open") == []


def test_files(completed: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    assert completed("python evaluate.py checkpoint=./be") == ["checkpoint=./best.ckpt"]


def test_a_folder_of_one_s_own(completed: Callable[[str], list[str]], tmp_path: Path) -> None:
    (tmp_path / "own" / "model").mkdir(parents=True)
    (tmp_path / "own" / "model" / "mine.yaml").touch()
    assert completed("python train.py --config-dir own model=m") == ["model=mine"]


def test_hydra_is_not_imported() -> None:
    done = subprocess.run([sys.executable, "-c", CODE, str(CONFIGS)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "model=" in done.stdout.split()
