"""The README's commands: each composes, and the quick ones run as a new user would type them."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if not line.startswith("#") and "python" in line
]
ENTRY_COMMANDS = [command for command in COMMANDS if re.search(r"(train|evaluate)\.py", command)]


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_the_readme_shows_commands() -> None:
    assert len(ENTRY_COMMANDS) >= 10


@pytest.mark.parametrize("command", ENTRY_COMMANDS)
def test_options_compose(command: str) -> None:
    script, *options = shlex.split(command[command.index("python") :])[1:]
    options = [option for option in options if option != "-m" and not option.startswith("resume=")]
    options = [re.sub(r"^((?!data\.)[\w./]+=[^,\[]*),.*", r"\1", option) for option in options]  # a sweep's first job
    result = run([script, *options, "--cfg", "job"])
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(path: str) -> None:
    assert (ROOT / path).exists()


def test_named_options_exist() -> None:
    for group, options in re.findall(r"^\| `(\w+)` \| (.*) \|$", README, re.MULTILINE):
        for option in re.findall(r"(?<!`)`([a-z_]+)`", options):
            assert (ROOT / "configs" / group / f"{option}.yaml").exists(), (group, option)


def test_collect_train_and_evaluate(tmp_path: Path) -> None:
    """A new user's first minute, on a small simulated set."""
    sets = {"MINARI_DATASETS_PATH": str(tmp_path / "sets")}
    collect = ["-m", "trajectory_transformer.data.collect", "recipe=hopper_mixed", "steps=2000", "processes=1"]
    assert run(collect, **sets).returncode == 0
    directory = tmp_path / "run"
    trained = run(["train.py", "experiment=hopper_quick", f"hydra.run.dir={directory}"], **sets)
    assert trained.returncode == 0, trained.stderr
    results = json.loads((directory / "results.json").read_text())
    assert results["schema"] == 1
    assert results["env_id"] == "Hopper-v5"
    assert results["behavior"]["episodes"] > 0
    assert [episode["seed"] for episode in results["episodes"]] == [0, 1]
    files = {"config.yaml", "metrics.csv", "results.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert all((directory / name).is_file() for name in files)
    assert len(list((directory / "plots").glob("*.png"))) == 3
    again = tmp_path / "again"
    evaluated = run(
        [
            "evaluate.py",
            f"checkpoint={directory / 'checkpoints' / 'best.ckpt'}",
            "episodes=1",
            f"hydra.run.dir={again}",
        ],
        **sets,
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((again / "results.json").read_text())["episodes"] == results["episodes"][:1]
