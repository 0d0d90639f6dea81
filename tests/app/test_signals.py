"""Signals to real commands: what is saved, what is printed, and that no process is left."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import pytest

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.checkpoint_file import read_checkpoint

from ..minari_sets import random_episode, write_dataset
from .conftest import CONFIGS

DATASET = "tests/pendulum-v0"
ENDLESS = (
    "data=minari", f"data.dataset_id={DATASET}", "data.sequence_length=4", "data.batch_size=8", "planner.horizon=2",
    "planner.context=2", "model.numerical_pretraining=0", "model.action_improvement=0", "trainer.max_steps=1000000",
    "trainer.validate_every=1000000", "trainer.log_every=1", "trainer.checkpoint_every=1000000",
    "trainer.progress_bar=false", "trainer.threads=1", "seed=0,1,2",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with train.py and a Minari root with random pendulum episodes."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "sets"))
    with gym.make("Pendulum-v1", max_episode_steps=4) as environment:
        write_dataset(DATASET, [random_episode(12, seed, action_dim=1) for seed in range(6)], env=environment)
    (tmp_path / "train.py").symlink_to(CONFIGS.parent / "train.py")
    (tmp_path / "configs").symlink_to(CONFIGS)
    return tmp_path


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """The command train.py with these words, in a process group of its own as in a terminal."""
    return subprocess.Popen(
        [sys.executable, "train.py", *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def wait_for(process: subprocess.Popen[str], *logs: Path, longer_than: int = 0) -> None:
    """Wait until runs have written so many bytes to their metrics."""
    while not all(log.exists() and log.stat().st_size > longer_than for log in logs):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def require_gone(group: int) -> None:
    """Fail unless all processes of the group end within some seconds."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    pytest.fail("some processes were left")


@pytest.mark.slow
def test_control_c_tells_the_command_that_resumes(folder: Path) -> None:
    process = start(folder, *ENDLESS[:-1], "hydra.run.dir=run")
    last, metrics, size, steps = folder / "run" / "checkpoints" / "last.ckpt", folder / "run" / "metrics.csv", 0, [0]
    for _ in range(2):
        wait_for(process, metrics, longer_than=size)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 130, errors
        assert "Traceback" not in errors
        first, second = errors.strip().splitlines()[-2:]
        assert first == "SIGINT: saving at the end of this update; a second Ctrl-C quits at once, without saving"
        assert second == "saved; continue with: python train.py resume=run"
        steps.append(read_checkpoint(last)["global_step"])
        size = metrics.stat().st_size
        process = start(folder, *shlex.split(second.partition(": ")[2])[2:])
    process.kill()
    process.communicate()
    assert 0 < steps[1] < steps[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "to_all", "status"),
    [(signal.SIGTERM, False, 143), (signal.SIGINT, False, 130), (signal.SIGINT, True, 130)],
)
def test_a_sweep_s_workers_stop_with_it(folder: Path, number: signal.Signals, to_all: bool, status: int) -> None:
    """Their runs are saved and recorded; a terminal's Ctrl-C goes to them, too."""
    words = ("-m", *ENDLESS, "hydra/launcher=processes", "hydra.sweep.dir=sweep")
    process = start(folder, *words)
    runs = [folder / "sweep" / name for name in "01"]
    wait_for(process, *(run / "metrics.csv" for run in runs))
    (os.killpg if to_all else os.kill)(process.pid, number)
    _, errors = process.communicate(timeout=120)
    require_gone(process.pid)
    assert process.returncode == status, errors
    assert "Traceback" not in errors
    assert "leaked" not in errors
    for run in runs:
        record = RunRecord.read(run)
        assert record is not None
        assert record.status == "interrupted"
        assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] > 0
    command = shlex.join(["python", "train.py", *words])
    assert errors.strip().splitlines()[-1] == f"the sweep was interrupted; continue with: {command}"


@pytest.mark.slow
def test_a_second_control_c_ends_a_sweep_s_workers_at_once(folder: Path) -> None:
    process = start(folder, "-m", *ENDLESS, "hydra/launcher=processes", "hydra.sweep.dir=sweep")
    wait_for(process, *(folder / "sweep" / name / "metrics.csv" for name in "01"))
    workers = [int((folder / "sweep" / name / ".lock").read_text().split()[1]) for name in "01"]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)  # so that they cannot save
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
    require_gone(process.pid)
    assert not list((folder / "sweep").rglob("last.ckpt"))


@pytest.mark.slow
def test_a_killed_sweep_s_workers_save_and_end(folder: Path) -> None:
    """SIGKILL tells the workers nothing: they notice that their parent is gone, and begin no further job."""
    process = start(folder, "-m", *ENDLESS, "hydra/launcher=processes", "hydra.sweep.dir=sweep")
    runs = [folder / "sweep" / name for name in "01"]
    wait_for(process, *(run / "metrics.csv" for run in runs))
    process.kill()
    process.communicate(timeout=120)  # until the last process has closed its output
    require_gone(process.pid)
    for run in runs:
        record = RunRecord.read(run)
        assert record is not None
        assert record.status == "interrupted"
        assert read_checkpoint(run / "checkpoints" / "last.ckpt")["global_step"] > 0
    assert not (folder / "sweep" / "2" / "config.yaml").exists()
