"""Each example, copied to a folder of its own, works with the commands as its first line says."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
CONFIGS = ("--config-dir", "configs")
SMALL = (
    "experiment=hopper_quick", "trainer.max_steps=10", "trainer.log_every=5", "trainer.progress_bar=false",
    "evaluation.episodes=1", "evaluation.num_envs=1",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's folder with copies of all examples."""
    return Path(shutil.copytree(ROOT / "examples", tmp_path / "mine"))


def command(folder: Path, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One of the two commands, called from ``folder``, whose modules are on Python's path."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def train(folder: Path, *options: str) -> Path:
    done = command(folder, "train.py", *CONFIGS, *SMALL, *options, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def metrics(run: Path) -> dict[str, list[float]]:
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name]) for row in rows if row[name]] for name in rows[0]}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_it_is_used(example: Path) -> None:
    lines = example.read_text().splitlines()
    assert len(lines) <= 40
    assert "``python train.py " in lines[0]


def test_a_learner(folder: Path) -> None:
    run = train(folder, "learner=linear_policy", "learner.bias=false")
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    results = json.loads((run / "results.json").read_text())
    assert results["planner"]["name"] == "linear_policy"
    refused = command(folder, "evaluate.py", checkpoint, "hydra.run.dir=refused")
    assert refused.returncode == 1
    assert "a file must not choose what is imported" in refused.stderr
    again = command(folder, "evaluate.py", checkpoint, "episodes=1", "allow=[linear_policy]", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "again" / "results.json").read_text())["episodes"] == results["episodes"]
    (run / "results.json").unlink()
    assert "allow=[linear_policy]" in command(folder, "train.py", f"resume={run}").stderr
    assert command(folder, "train.py", f"resume={run}", "allow=[linear_policy]").returncode == 0
    wrong = command(folder, "train.py", *CONFIGS, "learner=linear_policy", "learner.biass=false", "hydra.run.dir=wrong")
    assert (wrong.returncode, "learner.bias" in wrong.stderr) == (2, True)


def test_a_callback(folder: Path) -> None:
    norms = metrics(train(folder, "trainer=watched"))["train/weight_norm"]
    assert len(norms) == 2
    assert min(norms) > 1.0
