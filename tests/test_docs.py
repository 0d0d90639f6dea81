"""README and documentation: commands compose, code runs, links are valid, and the quick commands run."""

import itertools
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import hydra
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.app import schema

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
SETTINGS = re.compile(r"^(?:[A-Z_]+=\S+ )+")  # PYTHONPATH=examples python …
NOT_COMPOSED = re.compile(r"^(resume|extend|init_from|hydra\.\w+(\.\w+)*|hydra/\w+)=")  # these act before composing


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    whole = (re.sub(r" *\\\n *", " ", block) for block in blocks(page, "bash"))  # lines that end in a backslash go on
    lines = itertools.chain.from_iterable(block.splitlines() for block in whole)
    return [line.split(" #")[0].strip() for line in lines if re.search(r"\b(train|evaluate)\.py\b", line)]


COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False
    )


def test_pages_show_commands() -> None:
    assert len(COMMANDS) >= 50


@pytest.mark.parametrize("command", COMMANDS)
def test_options_compose(command: str) -> None:
    """Each command's options, of a sweep its first job's, make valid typed options."""
    words = shlex.split(SETTINGS.sub("", command.removeprefix("srun ")))
    script, *options = words[1:]
    folder = options.pop(options.index("--config-dir") + 1) if "--config-dir" in options else None
    options = [option for option in options if not option.startswith("-") and not NOT_COMPOSED.match(option)]
    if "-m" in words:
        options = [re.sub(r"^((?!data\.)[\w./]+=[^,\[]*),.*", r"\1", option) for option in options]
    extra = [] if folder is None else [f"hydra.searchpath=[file://{ROOT / folder}]"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose(Path(script).stem, [*options, *extra])
    try:
        if script == "train.py":
            schema.typed_train(config)
        else:
            schema.typed_evaluate(config, options, any(option.startswith("planner=") for option in options))
    except Exception as error:
        pytest.fail(f"{command}: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    for path in re.findall(r"\]\((?!\w+:)([^)#\s]+)", text):
        assert ((ROOT / name).parent / path).exists(), path


def test_named_options_exist() -> None:
    for name in NAMES:
        for group, choices in re.findall(r"^\| `(\w+)=` \| (.*?) \|", (ROOT / name).read_text(), re.MULTILINE):
            for choice in re.findall(r"`([a-z_0-9]+)`", choices):
                assert (ROOT / "configs" / group / f"{choice}.yaml").exists(), (name, group, choice)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small simulated set."""
    folder = str(tmp_path_factory.mktemp("sets"))
    collect = ["-m", "trajectory_transformer.data.collect", "recipe=hopper_mixed", "steps=2000", "processes=1"]
    assert run(collect, MINARI_DATASETS_PATH=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def trained(sets: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a quick run."""
    directory = tmp_path_factory.mktemp("quick") / "run"
    done = run(["train.py", "experiment=hopper_quick", f"hydra.run.dir={directory}"], MINARI_DATASETS_PATH=sets)
    assert done.returncode == 0, done.stderr
    return directory


def test_a_new_users_first_minute(trained: Path, sets: str, tmp_path: Path) -> None:
    results = json.loads((trained / "results.json").read_text())
    assert results["schema"] == 1
    assert results["env_id"] == "Hopper-v5"
    assert results["behavior"]["episodes"] > 0
    assert [episode["seed"] for episode in results["episodes"]] == [0, 1]
    files = {"config.yaml", "metrics.csv", "results.json", "checkpoints/last.ckpt", "checkpoints/best.ckpt"}
    assert all((trained / name).is_file() for name in files)
    assert len(list((trained / "plots").glob("*.png"))) == 3
    checkpoint = f"checkpoint={trained / 'checkpoints' / 'best.ckpt'}"
    evaluated = run(
        ["evaluate.py", checkpoint, "episodes=1", f"hydra.run.dir={tmp_path / 'again'}"], MINARI_DATASETS_PATH=sets
    )
    assert evaluated.returncode == 0, evaluated.stderr
    assert json.loads((tmp_path / "again" / "results.json").read_text())["episodes"] == results["episodes"][:1]


RUNNABLE = [name for name, page in zip(NAMES, PAGES, strict=True) if blocks(page, "python")]
LEARNERS = {  # pages whose code needs checkpoints of other learners
    "docs/learners.md": {
        "critic.ckpt": ["experiment=iql_hopper", "trainer.max_steps=2"],
        "ensemble.ckpt": ["experiment=ensemble_hopper", "trainer.max_steps=2"],
    },
    "docs/goal_reaching.md": {
        "best.ckpt": ["experiment=goal_umaze", "trainer.max_steps=2", "data.batch_size=4", "planner.beam_width=2"]
    },
}


@pytest.mark.filterwarnings("ignore:.* is set to None")  # Minari, of what is optional in a set
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LEARNERS else []) for name in RUNNABLE]
)
def test_code_runs(name: str, trained: Path, sets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All code of a page, one block after the other, in a folder with the checkpoints that it names."""
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "best.ckpt").write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    for checkpoint, options in LEARNERS.get(name, {}).items():
        folder = tmp_path / f"run_{checkpoint}"
        done = run(
            ["train.py", *options, "evaluation.episodes=0", f"hydra.run.dir={folder}"], MINARI_DATASETS_PATH=sets
        )
        assert done.returncode == 0, done.stderr
        (tmp_path / checkpoint).write_bytes((folder / "checkpoints" / "last.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    published = TrajectoryTransformerConfig(n_layer=1, n_embd=8, n_head=2, block_size=49)
    TrajectoryTransformerModel(published).save_pretrained("CarlCochet/trajectory-transformer-halfcheetah-medium-v2")
    generator = np.random.default_rng(0)
    maze = name == "docs/goal_reaching.md"
    namespace = {
        "observations": generator.normal(size=(8, 2 if maze else 11)).astype(np.float32),
        "actions": generator.uniform(-1, 1, (8, 3)).astype(np.float32),
        "goals": np.zeros((8, 2), np.float32),
        "rewards": np.zeros(8),
        "terminated": np.zeros(8, bool),
        "truncated": np.zeros(8, bool),
        "members": torch.zeros(8, dtype=torch.long),
        "tokens": torch.zeros(1, 48, dtype=torch.long),
        "targets": torch.zeros(1, 48, dtype=torch.long),
        "mask": torch.ones(1, 48),
        "__name__": name,
    }
    if name == "docs/learners.md":
        namespace |= {key: torch.from_numpy(namespace[key]) for key in ("observations", "actions")}
    page = ROOT / name
    for block in blocks(page, "python"):
        exec(compile(block, name, "exec"), namespace)
    gymnasium.registry.pop("Line-v0", None)  # which docs/own_data.md registers


OWN = re.compile(r"# (my_\w+/[\w/]+\.(?:py|yaml))\b")  # the first line of a block that is a file of the reader's


@pytest.mark.parametrize(
    "name", [name for name, page in zip(NAMES, PAGES, strict=True) if "# my_configs/" in page.read_text()]
)
def test_own_files_make_valid_options(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's YAML files, each with the classes that it names, make valid typed options of train.py."""
    for block in blocks(ROOT / name, "python") + blocks(ROOT / name, "yaml"):
        if named := OWN.match(block):
            file = tmp_path / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    files = list((tmp_path / "my_configs").rglob("*.yaml"))
    assert files
    for file in files:
        options = [f"{file.parent.name}={file.stem}", f"hydra.searchpath=[file://{tmp_path / 'my_configs'}]"]
        with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
            schema.typed_train(compose("train", options))
        classes = re.findall(r"_target_: (\S+)", file.read_text())
        assert all(hydra.utils.get_class(path) for path in classes)


TOUR = [
    cell
    for cell in json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    if cell["cell_type"] == "code"
]


def test_the_tour_without_a_checkpoint_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="No checkpoint: start Jupyter in the project's folder"):
        exec("".join(TOUR[0]["source"]), {})


def test_the_tour_runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best.ckpt").write_bytes((trained / "checkpoints" / "best.ckpt").read_bytes())
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for cell in TOUR:
        assert cell["outputs"]  # the site shows them
        exec("".join(cell["source"]), namespace)
    assert (namespace["total"] > 0).all()
    namespace["plt"].close("all")
