"""A renamed project passes its checks and tests."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools.rename import renamed

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from trajectory_transformer.data import fetch", "from mine.data import fetch"),
        ("import trajectory_transformer\n", "import mine\n"),
        ("python -m trajectory_transformer.benchmark", "python -m mine.benchmark"),
        ("src/trajectory_transformer/app", "src/mine/app"),
        ('"trajectory_transformer.app.main"', '"mine.app.main"'),
        ('SECTION = "trajectory_transformer"', 'SECTION = "trajectory_transformer"'),
        ("pip install 'trajectory-transformer[tune]'", "pip install 'mine[tune]'"),
        ("jannerm/trajectory-transformer (8834a6e)", "jannerm/trajectory-transformer (8834a6e)"),
        ("b'trajectory-transformer sha256:'", "b'trajectory-transformer sha256:'"),
        ("trajectory_transformer/PairMaze_Large-v0", "trajectory_transformer/PairMaze_Large-v0"),
        ("'trajectory_transformer' section", "'trajectory_transformer' section"),
        ("cache/trajectory_transformer cannot be written", "cache/trajectory_transformer cannot be written"),
        ("CarlCochet/trajectory-transformer-hopper-v2", "CarlCochet/trajectory-transformer-hopper-v2"),
    ],
)
def test_names_change_and_file_formats_do_not(text: str, expected: str) -> None:
    assert renamed(text, "mine", every=False) == expected


@pytest.mark.slow
def test_a_renamed_project_passes_its_checks_and_tests(tmp_path: Path) -> None:
    project = tmp_path / "project"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(project)], check=True)
    subprocess.run([sys.executable, "tools/rename.py", "my_project"], cwd=project, check=True)
    assert "trajectory_transformer" not in (project / "pyproject.toml").read_text()
    bin_folder = Path(sys.executable).parent
    (project / ".venv").symlink_to(bin_folder.parent)
    environment = os.environ | {"PYTHONPATH": str(project / "src"), "OMP_NUM_THREADS": "1"}
    for command in (
        [str(bin_folder / "ruff"), "format", "--quiet", "."],  # names of another length wrap elsewhere
        [str(bin_folder / "ruff"), "check", "--fix", "--quiet", "."],
        [str(bin_folder / "lint-imports")],
        [sys.executable, "-m", "pytest", "--quiet", "-n", "2", "--dist", "loadfile"],
    ):
        done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
