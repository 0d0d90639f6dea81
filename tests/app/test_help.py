"""``--help`` names every option with its meaning and every choice of every group, without torch."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trajectory_transformer.app.help import class_sections, comment_of, sections_of
from trajectory_transformer.configuration import EvaluateConfig, TrainConfig
from trajectory_transformer.configuration.documentation import options_of

from .conftest import CONFIGS
from .test_mistakes import NO_TORCH


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def line_of(lines: list[str], start: str) -> str:
    (line,) = (line for line in lines if line.startswith(f"  {start}"))
    return line


def test_every_option_and_every_choice(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--help") == 0
    lines = shown(capsys)
    for option in options_of(TrainConfig):
        if not option.name.startswith(("tune.", "planner.objective", "learner")):
            assert line_of(lines, f"{option.name}=").endswith(f"  {option.meaning}")
    for file in CONFIGS.glob("*/*.yaml"):
        found = [line for line in lines if line[2:].startswith(f"{file.stem} ")]  # data and experiment share names
        assert any(comment_of(file).startswith(line[2:].partition("  ")[2].strip()) for line in found), file
    assert line_of(lines, "model.n_layer=2 ")  # of model=tiny, not the dataclass's
    assert any(line.startswith("* tiny ") for line in lines)


def test_evaluation_has_its_own_groups(evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate("-h") == 0
    lines = shown(capsys)
    assert all(any(line.startswith(f"  {option.name}=") for line in lines) for option in options_of(EvaluateConfig))
    assert "model" not in lines
    assert {"planner", "logger"} <= set(lines)


def test_one_group_with_the_values_that_options_give(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("--help", "learner", "learner=bc", "learner.hidden_width=7") == 0
    lines = shown(capsys)
    assert any(line.startswith("* bc ") for line in lines)
    widths = [line for line in lines if line.startswith("  learner.hidden_width=")]
    assert widths[0].split()[0] == "learner.hidden_width=7"
    assert {line.split()[0] for line in widths[1:]} == {f"learner.hidden_width={width}" for width in (200, 256)}
    assert line_of(lines, "learner.best_fraction=1.0").endswith("(number in (0, 1])")
    assert not any("model.n_layer" in line for line in lines)


def test_a_class_s_needed_option(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--help", "planner") == 0
    assert "Checkpoint of experiment=iql_" in line_of(shown(capsys), "planner.objective.critic=…")


@pytest.mark.parametrize("beside", [(), ("data=npz",)])
def test_an_option_that_a_file_leaves_to_the_user_is_needed(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], beside: tuple[str, ...]
) -> None:
    """Whatever its class takes by default: it is refused where it is not given, null where there is none."""
    assert train("--help", "data.source", *beside) == 0
    assert line_of(shown(capsys), "data.source.env_id=… ").endswith("null is none. (text, or null)")
    assert train("data=npz", "data.source.path=episodes") == 2
    assert "data.source.env_id is required" in capsys.readouterr().err
    assert train("--help", "data.source", "data=npz", "data.source.env_id=null") == 0
    assert line_of(shown(capsys), "data.source.env_id=null ")


@pytest.mark.parametrize(
    ("topic", "options"),
    [
        ("planner.act", ["planner.act"]),
        ("seed", ["seed"]),
        ("data.discretizer", ["data.discretizer.strategy", "data.discretizer.num_bins"]),
        ("planner.objective.critic", ["planner.objective.critic"]),  # of one choice's class
        ("learner.expectile", ["learner.expectile"]),
    ],
)
def test_one_option_or_those_below_a_name(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], topic: str, options: list[str]
) -> None:
    assert train("--help", topic) == 0
    lines = [line for line in shown(capsys) if line.startswith("  ")]
    assert [line.split()[0].partition("=")[0] for line in lines] == options
    assert all(line.endswith(")") for line in lines)  # with their values


def test_an_evaluation_s_planner_options_are_the_checkpoint_s_unless_given(
    evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--help", "planner.beam_width=3") == 0
    lines = shown(capsys)
    assert line_of(lines, "planner.beam_width=3 ")
    for name in ("act", "n_expand", "objective"):
        assert line_of(lines, f"planner.{name}=(checkpoint's) ")
    assert evaluate("--help", "planner.act", "planner=return") == 0
    assert line_of(shown(capsys), "planner.act=auto ")


def test_a_group_without_a_file_says_where_one_is_looked_for(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shutil.copytree(CONFIGS, tmp_path / "configs", ignore=shutil.ignore_patterns("default.yaml"))
    assert train("--help", "local", configs=tmp_path / "configs") == 0
    assert line_of(shown(capsys), "No file yet; local=NAME takes local/NAME.yaml").endswith("is read by every command")


def test_a_folder_of_one_s_own(train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "own" / "model" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\n# A model of my own,\n# in two lines. More.\nmodel: {n_embd: 16}\n")
    assert train("--config-dir", "own", "--help", "model", "model=mine") == 0
    lines = shown(capsys)
    assert any(line.startswith("* mine   A model of my own, in two lines. More.") for line in lines)
    assert line_of(lines, "model.n_embd=16 ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["moddel"], "--help moddel: there is no such group or option; did you mean 'model'?"),
        (["act"], "--help act: there is no such group or option; did you mean 'planner.act'"),
        (["planner.ac"], "--help planner.ac: there is no such group or option; did you mean 'planner."),
        (["model.n_layr=3"], "there is no option 'model.n_layr'; did you mean 'model.n_layer'"),
    ],
)
def test_mistakes(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train("--help", *words) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_torch_is_not_imported(tmp_path: Path, command: str) -> None:
    call = [sys.executable, "-c", NO_TORCH, command, str(CONFIGS), "--help"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_hydra_s_own_flags_are_still_there(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--hydra-help") == 0
    assert "--multirun" in capsys.readouterr().out


def test_each_section_has_a_meaning() -> None:
    for schema in (TrainConfig, EvaluateConfig):
        base = sections_of(schema)
        sections = base + [one for section in base for one in class_sections(section.title, [CONFIGS])]
        assert all(section.meaning.endswith(".") for section in sections)
        assert len({section.title for section in sections}) == len(sections)
        assert {"planner=critic", "planner=goal"} <= {one.title for one in sections}


def test_a_reader_may_stop_early() -> None:
    """As with ``python train.py --help | head``."""
    command = f"{sys.executable} {CONFIGS.parent / 'train.py'} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1] == "0"
