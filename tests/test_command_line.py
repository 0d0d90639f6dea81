"""Mistakes on the command line and in YAML files, targets, run directories, resuming."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trajectory_transformer import experiment
from trajectory_transformer.command_line import entry_point, instantiate
from trajectory_transformer.command_line.instantiation import check_targets
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.run_record import RunRecord

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "configs"
NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "lightning", "wandb", "minari", "gymnasium", "optuna"):
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from trajectory_transformer.command_line import entry_point
entry_point("train", Path(sys.argv.pop(1)))
"""


class Runs:
    """Stands in for training: notes what it is asked to do."""

    def __init__(self) -> None:
        self.calls: list[tuple[TrainConfig, experiment.RunContext]] = []
        self.error: BaseException | None = None

    def __call__(self, config: TrainConfig, run: experiment.RunContext) -> float:
        self.calls.append((config, run))
        if self.error is not None:
            raise self.error
        return float(config.seed)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    monkeypatch.setattr(experiment, "run_training", stand_in := Runs())
    return stand_in


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Calls train.py's entry point within this process, in an empty working directory; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, configs: Path = CONFIGS) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", *arguments])
        try:
            entry_point("train", configs)
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call


MISTAKES = [
    (["model.n_layr=3"], ["model.n_layr", "'model.n_layer'"]),
    (["planr.horizon=3"], ["planr.horizon", "'planner.horizon'"]),
    (["horizon=3"], ["'planner.horizon'"]),
    (["modle=tiny"], ["modle", "'model'"]),
    (["experimnt=hopper_quick"], ["'experiment'"]),
    (["model=tny"], ["model=tny", "base, large, tiny", "'model=tiny'"]),
    (["model.n_layer=three"], ["model.n_layer", "'three'"]),
    (["seed=1.5"], ["seed", "1.5"]),
    (["model.n_head=3"], ["model.n_embd=64", "model.n_head=3"]),
    (["planner.horizon=60"], ["planner.horizon=60", "data.sequence_length"]),
    (["planner.window=slidng"], ["'sliding'"]),
    (["data=minari"], ["data.dataset_id"]),
    (["+foo=1"], ["foo"]),
    (["+seeed=1"], ["seeed", "'seed'"]),
    (["++model.n_layr=1"], ["'model.n_layer'"]),
    (["hydra.run.dri=x"], ["'hydra.run.dir'"]),
    (["seed=[1"], ["seed=[1"]),
    (["+trainer.callbacks.x._target_=os.system"], ["trainer.callbacks.x", "os.system"]),
    (["-m", "model=tiny,bsae"], ["model=bsae", "'model=base'"]),
    (["-m", "model.n_layr=1,2"], ["'model.n_layer'"]),
    (["-m", "+foo=1,2"], ["foo"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_is_named_and_starts_nothing(
    train: Callable[..., int],
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    assert train(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not runs.calls
    assert not list(tmp_path.rglob("config.yaml"))


YAML_MISTAKES = [
    ("model/tiny.yaml", "n_layer", "n_layr", [], ["tiny.yaml", "model.n_layr", "'model.n_layer'"]),
    ("model/tiny.yaml", "n_layer: 3", "n_layer: three", [], ["tiny.yaml", "model.n_layer", "'three'"]),
    ("model/tiny.yaml", "n_layer: 3", "n_layer 3", [], ["tiny.yaml", "line"]),
    ("experiment/hopper_quick.yaml", "beam_width", "beam_widht", ["experiment=hopper_quick"], ["hopper_quick.yaml"]),
    ("experiment/hopper_quick.yaml", "\ntrainer:", "\ntrainr:", ["experiment=hopper_quick"], ["'trainer'"]),
    ("experiment/hopper_paper.yaml", "model: base", "model: bsae", ["experiment=hopper_paper"], ["hopper_paper.yaml"]),
    (
        "experiment/hopper_paper.yaml",
        "/model:",
        "/modl:",
        ["experiment=hopper_paper"],
        ["hopper_paper.yaml", "'model'"],
    ),
    ("tune/optimizer.yaml", "low: 1.0e-4", "lwo: 1.0e-4", ["tune=optimizer"], ["optimizer.yaml", "lwo"]),
    ("tune/optimizer.yaml", "learning_rate:", "learning_rat:", ["tune=optimizer"], ["'optimizer.learning_rate'"]),
    ("tune/optimizer.yaml", "[0.0, 0.1]", "[0.0, none]", ["tune=optimizer"], ["model.attn_pdrop", "'none'"]),
    ("train.yaml", "- model: tiny", "- modl: tiny", [], ["train.yaml", "modl", "'model'"]),
    ("train.yaml", "- model: tiny", "- model: tinny", [], ["train.yaml", "'model=tiny'"]),
    ("train.yaml", "\nhydra:", "\nsed: 1\nhydra:", [], ["train.yaml", "'seed'"]),
]


@pytest.mark.parametrize(("file", "right", "wrong", "arguments", "words"), YAML_MISTAKES)
def test_a_typo_in_a_yaml_file_is_named_with_its_file(
    train: Callable[..., int],
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    file: str,
    right: str,
    wrong: str,
    arguments: list[str],
    words: list[str],
) -> None:
    configs = tmp_path / "own"
    shutil.copytree(CONFIGS, configs)
    text = (configs / file).read_text()
    assert right in text
    (configs / file).write_text(text.replace(right, wrong, 1))
    assert train(*arguments, configs=configs) == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message
    assert not runs.calls


@pytest.mark.parametrize("arguments", [["model.n_layr=3"], ["seed=a"], ["planner.horizon=0"], ["-m", "model=tiny,bs"]])
def test_a_mistake_stops_within_two_seconds_and_without_torch(tmp_path: Path, arguments: list[str]) -> None:
    begin = time.perf_counter()
    command = [sys.executable, "-c", NO_TORCH, str(CONFIGS), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert time.perf_counter() - begin < 2.0
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, trajectory_transformer; assert 'torch' not in sys.modules; trajectory_transformer.Agent"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_run_gets_its_directory_its_config_and_a_record(
    train: Callable[..., int], runs: Runs, tmp_path: Path
) -> None:
    assert train("seed=3", "model=base", "hydra.run.dir=here") == 0
    (config, run) = runs.calls[0]
    assert run.directory.absolute() == tmp_path / "here"
    assert not run.resume
    saved = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert saved["seed"] == config.seed == 3
    assert saved["model"]["n_embd"] == 128
    assert RunRecord.read(tmp_path / "here") == RunRecord("finished", {"seed": "3", "model": "base"}, 3.0)


def test_runs_are_kept_below_logs(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train() == 0
    assert [path.parts[:3] for path in [runs.calls[0][1].directory.relative_to(tmp_path)]] == [
        ("logs", "train", "runs")
    ]


def test_a_directory_that_holds_a_run_is_not_used_again(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train("hydra.run.dir=here") == 0
    assert train("hydra.run.dir=here") == 2
    assert "resume=here" in capsys.readouterr().err
    assert len(runs.calls) == 1


@pytest.mark.parametrize("argument", ["hydra.run.dir=file/run", "hydra.sweep.dir=file/sweep"])
def test_a_directory_that_cannot_be_written_is_one_sentence(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path, argument: str
) -> None:
    (tmp_path / "file").touch()
    assert train(*(["-m", "seed=0,1"] if "sweep" in argument else []), argument) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message
    assert len(message.strip().splitlines()) == 1
    assert not runs.calls


def test_a_users_mistake_within_a_run_is_one_sentence(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs.error = UserError("the data set is not there")
    assert train("hydra.run.dir=here") == 1
    assert capsys.readouterr().err.strip() == "error: the data set is not there"
    assert RunRecord.read(tmp_path / "here") == RunRecord("failed", {}, None, "the data set is not there")


@pytest.mark.parametrize("code", [130, 143])
def test_an_interruption_keeps_its_exit_code(train: Callable[..., int], runs: Runs, tmp_path: Path, code: int) -> None:
    runs.error = SystemExit(code)
    assert train("hydra.run.dir=here") == code
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert record.status == "interrupted"


def test_the_environment_is_as_before_a_run(train: Callable[..., int], runs: Runs) -> None:
    before = dict(os.environ)
    assert train() == 0
    assert {**os.environ, "HYDRA_FULL_ERROR": "1"} == {**before, "HYDRA_FULL_ERROR": "1"}


class TestResume:
    def test_it_goes_on_in_the_same_folder_with_the_same_options(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path
    ) -> None:
        runs.error = SystemExit(143)
        assert train("seed=5", "hydra.run.dir=here") == 143
        (tmp_path / "here" / "checkpoints").mkdir()
        (tmp_path / "here" / "checkpoints" / "last.ckpt").touch()
        runs.error = None
        assert train("resume=here") == 0
        first, second = runs.calls
        assert second[0] == first[0]
        assert second[1].resume
        assert not (tmp_path / "logs").exists()
        assert RunRecord.read(tmp_path / "here") == RunRecord("finished", {"seed": "5"}, 5.0)

    def test_it_starts_anew_where_nothing_was_saved(self, train: Callable[..., int], runs: Runs) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here")
        runs.error = None
        assert train("resume=here") == 0
        assert not runs.calls[1][1].resume

    def test_a_finished_run_is_left_alone(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        train("hydra.run.dir=here")
        (tmp_path / "here" / "results.json").touch()
        assert train("resume=here") == 0
        assert "finished" in capsys.readouterr().out
        assert len(runs.calls) == 1

    def test_a_missing_evaluation_is_made_up_for(self, train: Callable[..., int], runs: Runs) -> None:
        train("hydra.run.dir=here")
        assert train("resume=here") == 0
        assert len(runs.calls) == 2

    @pytest.mark.parametrize("other", ["seed=1", "hydra.run.dir=there", "-m", "resume=there"])
    def test_it_refuses_other_options_by_name(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], other: str
    ) -> None:
        train("hydra.run.dir=here")
        assert train("resume=here", other) == 1
        assert other in capsys.readouterr().err
        assert len(runs.calls) == 1

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no here/config.yaml"),
            ("seed: [", "cannot be read"),
            ("just text", "not the config"),
            ("checkpoint: a.ckpt", "not the config"),
            ("model: {n_layr: 3}", "'model.n_layer'"),
            ("model: {n_head: 3}", "divisible"),
            ("trainer: {callbacks: {x: {_target_: os.system}}}", "os.system"),
        ],
    )
    def test_a_config_that_is_no_good_is_refused(
        self,
        train: Callable[..., int],
        runs: Runs,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        content: str | None,
        words: str,
    ) -> None:
        (tmp_path / "here").mkdir()
        if content is not None:
            (tmp_path / "here" / "config.yaml").write_text(content)
        assert train("resume=here") == 1
        assert words in capsys.readouterr().err
        assert not runs.calls


def test_a_requeued_slurm_job_goes_on_by_itself(
    train: Callable[..., int], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    runs.error = SystemExit(143)
    assert train("trainer=slurm") == 143
    directory = tmp_path / "logs" / "train" / "runs" / "slurm-4711"
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "last.ckpt").touch()
    runs.error = None
    assert train("trainer=slurm") == 0
    assert [(run.directory.absolute(), run.resume) for _, run in runs.calls] == [(directory, False), (directory, True)]


class TestTargets:
    def test_an_allowed_class_is_built(self) -> None:
        built = instantiate({"stop": {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}})
        assert built["stop"].monitor == "val/loss"

    def test_nested_targets_are_built_first(self) -> None:
        config = {"_target_": "torch.nn.ModuleList", "modules": [{"_target_": "torch.nn.Identity"}]}
        assert type(instantiate(config)[0]).__name__ == "Identity"

    @pytest.mark.parametrize(
        "target",
        [
            "os.system",
            "builtins.eval",
            "torch.load",
            "torch.hub.load",
            "subprocess.Popen",
            "torch.nnx.Linear",
            "lightning.pytorch.trainer.trainer.os.system",
            "torch.nn.modules.module.OrderedDict",
            "torch.nn.functional.relu",
            "lightning.pytorch.callbacks.NoSuchClass",
        ],
    )
    @pytest.mark.parametrize("nested", [False, True])
    def test_anything_else_is_refused(self, target: str, nested: bool) -> None:
        config: object = {"_target_": target}
        if nested:
            config = {"_target_": "torch.nn.ModuleList", "modules": [config]}
        with pytest.raises(UserError, match=target):
            instantiate(config, "trainer.callbacks")

    def test_a_wrong_argument_is_named(self) -> None:
        with pytest.raises(UserError, match="colour"):
            instantiate({"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1, "colour": 2})

    def test_a_check_imports_nothing(self) -> None:
        check_targets({"a": {"_target_": "torchmetrics.no.such.module"}}, "place")
        assert "torchmetrics.no" not in sys.modules
