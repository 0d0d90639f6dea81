"""The installed commands, from a wheel and in an empty folder, with their packaged configs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel installs it."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    without = shutil.ignore_patterns("*.egg-info", "__pycache__")
    for part in ("src", "configs"):  # a copy, as building leaves files beside it
        shutil.copytree(ROOT / part, source / part, symlinks=True, ignore=without)
    for part in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / part, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True)
    return folder


def call(site: Path, folder: Path, command: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "MINARI_DATASETS_PATH": str(folder.parent / "sets")}
    program = [command] if command.startswith("-m") else [str(site / "bin" / f"trajectory-transformer-{command}")]
    return subprocess.run(
        [sys.executable, *program, *options], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_an_empty_folder_is_enough(site: Path, tmp_path: Path) -> None:
    package = site / "trajectory_transformer"
    files = {path.relative_to(ROOT / "configs") for path in (ROOT / "configs").rglob("*.yaml")}
    assert {path.relative_to(package / "configs") for path in (package / "configs").rglob("*.yaml")} == files
    folder = tmp_path / "empty"
    (folder / "own" / "model").mkdir(parents=True)
    (folder / "own" / "model" / "mine.yaml").write_text("# Mine.\nn_embd: 16\n", encoding="utf-8")
    assert "usage: trajectory-transformer-train " in call(site, folder, "train", "--help").stdout
    collect = ("recipe=hopper_mixed", "steps=2000", "processes=1")
    assert call(site, folder, "-mtrajectory_transformer.data.collect", *collect).returncode == 0
    quick = ("experiment=hopper_quick", "trainer.max_steps=2", "evaluation.episodes=1", "hydra.run.dir=run")
    done = call(site, folder, "train", "--config-dir", "own", "model=mine", *quick)
    assert done.returncode == 0, done.stderr
    again = call(site, folder, "evaluate", "checkpoint=run/checkpoints/best.ckpt", "episodes=1", "hydra.run.dir=again")
    assert again.returncode == 0, again.stderr
    results = [json.loads((folder / name / "results.json").read_text())["episodes"] for name in ("run", "again")]
    assert results[0] == results[1]
    assert {path.name for path in folder.iterdir()} <= {"own", "run", "again", "MUJOCO_LOG.TXT"}
