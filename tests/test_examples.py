"""Each example, copied to another folder, works with the command in its first line."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from trajectory_transformer.app.help import composed

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
    paths = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, str(ROOT / script), *options],
        cwd=folder, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False,
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
    lines = example.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 45
    assert lines[2].startswith("``PYTHONPATH=examples python train.py --config-dir examples/configs ")


def test_what_a_yaml_leaves_out_is_as_in_the_choice_that_it_is_compared_with() -> None:
    """So that the comparison of the two is one of the block, or of the objective, alone."""

    def options(choice: str) -> Any:
        return OmegaConf.to_container(composed("train", [ROOT / "configs", ROOT / "examples/configs"], [choice])[0])

    swiglu, tiny = options("model=swiglu"), options("model=tiny")
    assert swiglu["model"] | {"block": None} == tiny["model"]
    assert swiglu["optimizer"] == tiny["optimizer"]
    plain = options("planner=return")["planner"]
    for name in ("likely_return", "return_and_likelihood"):
        ours = options(f"planner={name}")["planner"]
        assert {key for key in ours if ours[key] != plain[key]} == {"name", "objective", "horizon", "beam_width"}
    ours = options("planner=random_shooting")["planner"]
    assert {key for key in ours if ours[key] != plain[key]} == {"search", "horizon"}


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_search(folder: Path) -> None:
    run = train(folder, "planner=random_shooting", "planner.search.values=0.5")
    results = json.loads((run / "results.json").read_text())
    assert results["planner"]["search"] == {"_target_": "random_shooting.RandomShooting", "values": 0.5}
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    refused = command(folder, "evaluate.py", checkpoint, "hydra.run.dir=refused")
    assert "allow=[random_shooting]" in refused.stderr
    again = command(
        folder, "evaluate.py", checkpoint, "episodes=1", "allow=[random_shooting]", "planner.search.values=0.5",
        "hydra.run.dir=again",
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert json.loads((folder / "again" / "results.json").read_text())["episodes"] == results["episodes"]
    wrong = command(folder, "train.py", *CONFIGS, "planner=random_shooting", "planner.search.valuess=1")
    assert (wrong.returncode, "did you mean 'planner.search.values'?" in wrong.stderr) == (2, True)
    other = command(folder, "evaluate.py", *CONFIGS, checkpoint, "planner.search._target_=top_accuracy.TopAccuracy")
    assert (other.returncode, "top_accuracy.TopAccuracy is not a Search" in other.stderr) == (2, True)


@pytest.mark.slow
def test_a_loss(folder: Path) -> None:
    run = train(folder, "trainer=return_weighted", "trainer.loss.temperature=0.5")
    logged = metrics(run)
    assert min(logged["train/largest_weight"] + logged["val/largest_weight"]) > 1.0
    options = (f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", "episodes=1", "hydra.run.dir=again")
    assert command(folder, "evaluate.py", *options).returncode == 0  # which needs no class of the training
    wrong = command(folder, "train.py", *CONFIGS, "trainer=return_weighted", "trainer.loss.temperatur=1")
    assert (wrong.returncode, "trainer.loss.temperature" in wrong.stderr) == (2, True)
    other = command(folder, "train.py", *CONFIGS, "trainer.loss._target_=top_accuracy.TopAccuracy")
    assert (other.returncode, "top_accuracy.TopAccuracy is not a TrainingLoss" in other.stderr) == (2, True)


@pytest.mark.slow
def test_a_callback(folder: Path) -> None:
    norms = metrics(train(folder, "trainer=watched"))["train/weight_norm"]
    assert len(norms) == 2
    assert min(norms) > 1.0


def test_an_objective(folder: Path) -> None:
    run = train(folder, "planner=likely_return", "planner.objective.penalty=5")
    planner = json.loads((run / "results.json").read_text())["planner"]
    assert (planner["name"], planner["objective"]["penalty"]) == ("likely_return", 5.0)
    checkpoint = f"checkpoint={run / 'checkpoints' / 'best.ckpt'}"
    refused = command(folder, "evaluate.py", checkpoint, "hydra.run.dir=refused")
    assert "allow=[likely_return]" in refused.stderr
    again = command(folder, "evaluate.py", checkpoint, "episodes=1", "allow=[likely_return]", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    combined = ("planner=return_and_likelihood", "episodes=1", "hydra.run.dir=combined")
    done = command(folder, "evaluate.py", *CONFIGS, checkpoint, *combined)
    assert done.returncode == 0, done.stderr
    terms = json.loads((folder / "combined" / "results.json").read_text())["planner"]["objective"]["terms"]
    assert (terms["return"]["weight"], terms["likelihood"]["weight"]) == (1.0, 0.1)


@pytest.mark.slow
def test_a_block_a_metric_and_a_logger(folder: Path) -> None:
    run = train(folder, "model=swiglu", "trainer=top_accuracy", "logger=json_lines")
    logged = metrics(run)
    assert all(0.0 < value < 1.0 for value in logged["train/top_accuracy"] + logged["val/top_accuracy"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/top_accuracy"] for row in lines if "train/top_accuracy" in row] == logged["train/top_accuracy"]
    options = (f"checkpoint={run / 'checkpoints' / 'best.ckpt'}", "episodes=1", "hydra.run.dir=again")
    again = command(folder, "evaluate.py", *options, "allow=[swiglu_block]")
    assert again.returncode == 0, again.stderr
    assert "planning in PyTorch" in again.stderr + again.stdout
    episodes = [json.loads((path / "results.json").read_text())["episodes"] for path in (run, folder / "again")]
    assert episodes[0] == episodes[1]


@pytest.mark.slow
def test_a_source_of_episodes(folder: Path) -> None:
    data, generator = folder / "episodes", np.random.default_rng(0)
    data.mkdir()
    for episode in range(6):
        rows = generator.uniform(-1, 1, size=(13, 5))  # observation (3), action, reward
        np.savetxt(data / f"{episode}.csv", rows, delimiter=",")
    options = ("data=csv_episodes", f"data.source.path={data}", "data.batch_size=8", "data.discretizer.num_bins=8")
    results = json.loads((train(folder, *options) / "results.json").read_text())
    assert (results["env_id"], results["dataset"], results["behavior"]["episodes"]) == ("Pendulum-v1", "episodes", 6)
    missing = command(folder, "train.py", *CONFIGS, "data=csv_episodes", "data.source.path=nowhere")
    assert (missing.returncode, "has no .csv file" in missing.stderr) == (1, True)
