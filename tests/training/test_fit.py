"""Impossible options, and Lightning's messages."""

import inspect
import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.accelerators import CUDAAccelerator, MPSAccelerator
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.profilers import SimpleProfiler
from typing_extensions import override

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import ModelConfig
from trajectory_transformer.configuration.training import LIGHTNING_OPTIONS
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.training.fit import fit, make_trainer, quiet_lightning

from .small_run import NUMBERS, Rows, finish, small_config, small_datamodule, small_fit, start, weights


def test_report(tmp_path: Path) -> None:
    report = small_fit(tmp_path, small_config(max_steps=4))
    assert report.best == tmp_path / "checkpoints" / "best.ckpt"
    assert report.last == tmp_path / "checkpoints" / "last.ckpt"
    assert report.steps == 4
    assert report.tokens_per_second > 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["best.ckpt", "checkpoints", "last.ckpt"]


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_output_directory_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    config = small_config()
    with pytest.raises(UserError, match=r"^the output directory '.*run' cannot be written: .*hydra\.run\.dir=DIR$"):
        fit(TransformerLearner(), config, tmp_path / place, small_datamodule(config), [], [], False)


def test_stray_files_of_killed_writers_go(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".last.ckpt.99.partial").write_bytes(b"half")
    small_fit(tmp_path, small_config(max_steps=1))
    assert not list((tmp_path / "checkpoints").glob(".*"))


class TestSlurm:
    """A batch job of several tasks, with and without srun, by the variables that SLURM sets."""

    @pytest.fixture(autouse=True)
    def batch_script(self, monkeypatch: pytest.MonkeyPatch) -> None:
        names = ("JOB_ID", "NTASKS", "JOB_NAME", "NNODES", "PROCID", "LOCALID", "NODEID", "JOB_NODELIST")
        for name, value in zip(names, ("77", "4", "train", "1", "0", "0", "0", "n1"), strict=True):
            monkeypatch.setenv(f"SLURM_{name}", value)
        for name in ("MASTER_PORT", "MASTER_ADDR", "SLURM_STEP_ID", "SLURM_NTASKS_PER_NODE"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize("tasks_per_node", [None, "4"])
    def test_without_srun_one_process_trains(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks_per_node: str | None
    ) -> None:
        if tasks_per_node is not None:
            monkeypatch.setenv("SLURM_NTASKS_PER_NODE", tasks_per_node)
        trainer = make_trainer(small_config(), tmp_path, [], [])
        assert (trainer.world_size, trainer.global_rank) == (1, 0)

    def test_several_nodes_without_srun_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"trainer\.num_nodes=2 needs a process on each node: use srun python"):
            make_trainer(small_config(num_nodes=2, strategy="ddp"), tmp_path, [], [])

    def test_with_srun_the_tasks_are_the_processes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        with pytest.raises(UserError, match=r"devices=1, .* not possible together here: .*--ntasks-per-node=4"):
            make_trainer(small_config(), tmp_path, [], [])
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
        monkeypatch.setenv("SLURM_PROCID", "3")
        monkeypatch.setenv("SLURM_LOCALID", "3")
        trainer = make_trainer(small_config(devices=4, strategy="ddp"), tmp_path, [], [])
        assert (trainer.world_size, trainer.global_rank) == (4, 3)

    def test_two_steps_of_a_job_meet_at_ports_of_their_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "4")
        ports = []
        for step in ("0", "1", "2"):
            monkeypatch.setenv("SLURM_STEP_ID", step)
            trainer = make_trainer(small_config(devices=4, strategy="ddp"), tmp_path, [], [])
            ports.append(trainer.strategy.cluster_environment.main_port)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
            monkeypatch.delenv("MASTER_PORT", raising=False)
        assert ports == [15077, 15078, 15079]


@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_missing_hardware(tmp_path: Path, accelerator: str) -> None:
    with pytest.raises(
        UserError, match=rf"trainer\.accelerator={accelerator}, .* are not possible together here: "
    ) as caught:
        make_trainer(small_config(accelerator=accelerator, devices=1_000), tmp_path, [], [])
    assert "\n" not in str(caught.value)


def test_nothing_of_lightning_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    small_fit(tmp_path, small_config(max_steps=2))
    small_fit(tmp_path, small_config(max_steps=4), resume=True)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    assert [record.getMessage() for record in caplog.records] == []


def test_an_update_in_parts_is_the_same_update(tmp_path: Path) -> None:
    """Equal up to rounding: weights, logged values and their steps, checkpoints and validations."""
    found = []
    for parts in (1, 3, 9):
        config, rows = small_config(accumulate=parts, max_steps=12), Rows()  # differences grow with every update
        config.model.embd_pdrop = config.model.resid_pdrop = config.model.attn_pdrop = 0.0
        report = fit(TransformerLearner(), config, tmp_path / str(parts), small_datamodule(config), [rows], [], False)
        assert report.steps == 12
        found.append((rows.repeatable(), weights(report.last)))
    for logged, state in found[1:]:
        assert logged == pytest.approx(found[0][0], rel=1e-3, nan_ok=True)
        for name, value in state.items():
            torch.testing.assert_close(value, found[0][1][name], rtol=1e-3, atol=1e-4)


def test_parts_of_other_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"trainer\.accumulate=2 does not divide the 9 windows"):
        small_fit(tmp_path, small_config(accumulate=2))


def test_threads(tmp_path: Path) -> None:
    """The number is the run's alone: it is restored for the next job of a sweep in the same process."""

    class Note(Callback):
        @override
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            seen.append(torch.get_num_threads())

    seen: list[int] = []
    before = torch.get_num_threads()
    small_fit(tmp_path, small_config(max_steps=1, threads=before + 2), [Note()])
    assert seen == [before + 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("32-true", torch.float32), ("bf16-mixed", torch.float32), ("bf16-true", torch.bfloat16)],
)
def test_every_precision_of_a_cpu(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    """Including logged updates and validation; bins stay exact, and the checkpoint can be resumed."""
    rows = Rows()
    config = small_config(max_steps=3, log_every=1, precision=precision)
    datamodule = small_datamodule(config)
    edges = datamodule.discretizer.edges.clone()
    report = fit(TransformerLearner(), config, tmp_path, datamodule, [rows], [], False)
    assert {value.dtype for value in weights(report.last).values()} == {dtype}
    kept = read_checkpoint(report.last)["trajectory_transformer"]["discretizer"]["edges"]
    assert kept.dtype == edges.dtype == torch.float32
    assert torch.equal(kept, edges)
    assert rows.rows[3, "train/learning_rate"] == pytest.approx(1e-2 * config.optimizer.final_learning_rate_fraction)
    assert 0.0 < rows.rows[3, "val/loss"] < 10.0
    assert small_fit(tmp_path, small_config(max_steps=4, precision=precision), resume=True).steps == 4


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    for absent in (CUDAAccelerator, MPSAccelerator):
        monkeypatch.setattr(absent, "is_available", lambda: False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.warns(UserWarning, match="needs a C\\+\\+ compiler"):
        assert small_fit(tmp_path, small_config(max_steps=1, compile=True, accelerator=accelerator)).steps == 1


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    """Both have the same weights, of both members, and together use the same examples as one process."""
    process = start(tmp_path / "two", "ddp")
    assert finish(process) == 0
    ranks = [torch.load(tmp_path / "two" / f"rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["batches"] != ranks[1]["batches"]
    config = small_config(max_steps=6)
    config.data.batch_size = 8
    order = small_datamodule(config).train_order()
    for step in range(6):
        assert sorted(ranks[0]["batches"][step] + ranks[1]["batches"][step]) == sorted(order.indices(step).tolist())
    for name, value in weights(tmp_path / "two" / "checkpoints" / "last.ckpt").items():
        assert torch.equal(ranks[0]["weights"][name], value)
        assert torch.equal(ranks[1]["weights"][name], value)
    dropout: dict[str, Any] = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    config.model = ModelConfig(n_layer=1, n_head=1, n_embd=8, **dropout, **NUMBERS, members=2)
    config.planner.act = "mean"
    alone = weights(small_fit(tmp_path / "one", config).last)
    for name, value in weights(tmp_path / "two" / "checkpoints" / "last.ckpt").items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch itself
def test_compiled(tmp_path: Path) -> None:
    """The same weights under the same names, up to rounding."""
    trained = []
    for compiled in (False, True):
        config = small_config(max_steps=3, compile=compiled)
        dropout: dict[str, Any] = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
        config.model = ModelConfig(n_layer=1, n_head=1, n_embd=8, **dropout, members=2)
        config.planner.act = "mean"
        trained.append(weights(small_fit(tmp_path / str(compiled), config).last))
    torch.testing.assert_close(trained[1], trained[0], rtol=1e-3, atol=1e-4)


def test_what_lightning_says_of_a_gpu_is_dropped_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    said = {
        "lightning.pytorch.utilities.rank_zero": "Using bfloat16 Automatic Mixed Precision (AMP)",
        "lightning.fabric.utilities.rank_zero": "You are using a CUDA device ('NVIDIA H100') that has Tensor Cores.",
        "lightning.pytorch.accelerators.cuda": "LOCAL_RANK: 0 - CUDA_VISIBLE_DEVICES: [0]",
    }
    with caplog.at_level(logging.INFO), quiet_lightning():
        for name, message in said.items():
            logging.getLogger(name).warning(message)
            logging.getLogger(name).warning("something new")
    assert [record.getMessage() for record in caplog.records] == ["something new"] * 3


def test_each_message_of_lightning_appears_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its package has a handler of its own, beside those of Hydra or a user, here pytest's."""
    package, handlers = logging.getLogger("lightning"), [*logging.getLogger("lightning").handlers]
    assert handlers
    for handler in handlers:
        package.removeHandler(handler)
    package.addHandler(caplog.handler)  # as many records as handlers of the package and the root
    try:
        with caplog.at_level(logging.INFO), quiet_lightning():
            logging.getLogger("lightning.some_module").info("once")
        assert [record.getMessage() for record in caplog.records] == ["once"]
        assert package.handlers == [caplog.handler]
    finally:
        package.handlers[:] = handlers


def test_other_options_of_lightnings_trainer(tmp_path: Path) -> None:
    trainer = make_trainer(small_config(options={"detect_anomaly": True, "profiler": "simple"}), tmp_path, [], [])
    assert torch.is_anomaly_enabled() or trainer._detect_anomaly
    assert isinstance(trainer.profiler, SimpleProfiler)  # type: ignore[attr-defined] # Lightning sets it
    with pytest.raises(UserError, match=r"trainer\.profiler=fast are not possible together here"):
        make_trainer(small_config(options={"profiler": "fast"}), tmp_path, [], [])


def test_every_option_of_lightnings_trainer_is_taken_or_refused_for_a_reason() -> None:
    for name in inspect.signature(L.Trainer.__init__).parameters:
        if name == "self" or name in LIGHTNING_OPTIONS:
            continue
        with pytest.raises(UserError, match=rf"trainer\.options\.{name} cannot be set: ") as caught:
            small_config(options={name: 1})
        assert "Lightning has no such option" not in str(caught.value)
