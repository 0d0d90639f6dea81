"""A run that was killed and resumed is equal, to the bit, to one that was not."""

import functools
import hashlib
import os
import signal
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint
from trajectory_transformer.configuration import MAY_CHANGE, TrainConfig, may_change
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.model import action_improvement
from trajectory_transformer.training.callbacks import KeepCheckpoints
from trajectory_transformer.training.fit import fit
from trajectory_transformer.training.interruption import TrainingInterrupted

from ..specs import spec_of
from .small_run import Rows, finish, small_config, small_data, small_datamodule, small_fit, start, wait_for
from .test_interruption import SignalAt

STEPS = 24  # 9 updates to an epoch


class Killed(BaseException):
    """Simulates SIGKILL: no code of ours handles it."""


class KillAt(Callback):
    """Ends a run in one of an update's hooks."""

    def __init__(self, step: int, hook: str) -> None:
        self.step, self.hook = step, hook

    def _kill(self, trainer: L.Trainer, hook: str) -> None:
        if hook == self.hook and trainer.global_step == self.step:
            raise Killed

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._kill(trainer, "middle")

    @override
    def on_train_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self._kill(trainer, "end")

    @override
    def on_validation_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        torch.rand(1)  # validation may use random numbers as it likes
        self._kill(trainer, "validation")


def digests(directory: Path) -> dict[str, str]:
    """SHA-256 of all weights, optimiser states and the value's explained share, for both checkpoints."""
    found = {}
    for name in ("last", "best"):
        contents = read_checkpoint(directory / "checkpoints" / f"{name}.ckpt")
        states = contents["optimizer_states"][0]["state"]
        digest = hashlib.sha256(f"{contents['global_step']} {contents[SECTION]['value_r2']}".encode())
        for values in [contents["state_dict"], *(states[index] for index in sorted(states))]:
            for key in sorted(values):
                digest.update(key.encode() + values[key].numpy().tobytes())
        found[name] = digest.hexdigest()
    return found


def run(
    directory: Path, every: int, resume: bool = False, callbacks: Any = (), accumulate: int = 1
) -> dict[Any, float]:
    rows = Rows()
    config = small_config(max_steps=STEPS, checkpoint_every=every, accumulate=accumulate)
    fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], callbacks, resume)
    return rows.repeatable()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[Any, float]]:
    directory = tmp_path_factory.mktemp("unbroken")
    rows = run(directory, every=5)
    return digests(directory), rows


@pytest.mark.parametrize(
    ("every", "step", "hook"),
    [
        (5, 8, "end"),
        (5, 16, "middle"),
        (7, 13, "end"),
        (7, 23, "middle"),
        (4, 9, "end"),  # after the last update of an epoch
        (9, 10, "end"),  # the save was at the boundary
        (9, 18, "validation"),
        (6, 12, "validation"),  # save and validation fall together
        (6, 13, "middle"),
    ],
)
def test_resumed_equals_unbroken(
    tmp_path: Path, unbroken: tuple[dict[str, str], dict[Any, float]], every: int, step: int, hook: str
) -> None:
    rows = run_killed(tmp_path, every, step, hook)
    rows |= run(tmp_path, every, resume=True)
    assert digests(tmp_path) == unbroken[0]
    assert rows == pytest.approx(unbroken[1], rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize("hook", ["middle", "end", "validation"])
def test_resumed_equals_unbroken_where_batches_come_in_parts(tmp_path: Path, hook: str) -> None:
    rows = run(tmp_path / "unbroken", every=5, accumulate=3)
    found = run_killed(tmp_path / "killed", 5, 12, hook, accumulate=3)
    found |= run(tmp_path / "killed", 5, resume=True, accumulate=3)
    assert digests(tmp_path / "killed") == digests(tmp_path / "unbroken")
    assert found == pytest.approx(rows, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("every", "step"),
    [
        (1_000, 9),  # an update with a row of its own
        (1_000, 11),
        (1_000, 12),  # a row before a validation
        (9, None),  # SIGKILL as soon as the checkpoint of an update with a row is there
    ],
)
def test_an_interruption_loses_no_row_of_metrics(
    tmp_path: Path,
    unbroken: tuple[dict[str, str], dict[Any, float]],
    every: int,
    step: int | None,
) -> None:
    save = KeepCheckpoints._save

    def killed(keeper: KeepCheckpoints, trainer: L.Trainer, path: Path) -> bool:
        done = save(keeper, trainer, path)
        if trainer.global_step == 9:
            raise Killed
        return done

    rows, config = Rows(), small_config(max_steps=STEPS, checkpoint_every=every)
    callbacks = [] if step is None else [SignalAt(step, signal.SIGTERM)]
    patch = pytest.MonkeyPatch()
    patch.setattr(KeepCheckpoints, "_save", killed if step is None else save)
    with pytest.raises((TrainingInterrupted, Killed)):
        fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [rows], callbacks, resume=False)
    patch.undo()
    found = rows.repeatable() | run(tmp_path, every, resume=True)
    assert digests(tmp_path) == unbroken[0]
    assert found == pytest.approx(unbroken[1], rel=0, abs=0, nan_ok=True)


class SignalFirst(Callback):
    """Sends this process SIGTERM before everything else."""

    @override
    def on_fit_start(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_stopped_before_its_first_update_logs_the_same_rows_in_the_same_order(
    tmp_path: Path, unbroken: tuple[dict[str, str], dict[Any, float]]
) -> None:
    config = small_config(max_steps=STEPS, checkpoint_every=1_000)
    with pytest.raises(TrainingInterrupted):
        fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [], [SignalFirst()], resume=False)
    found = run(tmp_path, 1_000, resume=True)
    assert digests(tmp_path) == unbroken[0]
    assert [*found] == [*unbroken[1]]
    assert found == pytest.approx(unbroken[1], rel=0, abs=0, nan_ok=True)


def test_tokens_on_disk_change_nothing_and_a_run_may_go_on_with_them(
    tmp_path: Path, unbroken: tuple[dict[str, str], dict[Any, float]]
) -> None:
    config = small_config(max_steps=STEPS)
    config.data.cache = str(tmp_path)
    small_fit(tmp_path / "from disk", config)
    run_killed(tmp_path / "killed", 5, 13, "end")
    small_fit(tmp_path / "killed", config, resume=True)
    assert digests(tmp_path / "from disk") == digests(tmp_path / "killed") == unbroken[0]
    assert len(list(tmp_path.glob("*.tokens"))) == 2


def run_killed(directory: Path, every: int, step: int, hook: str, accumulate: int = 1) -> dict[Any, float]:
    rows = Rows()
    config = small_config(max_steps=STEPS, checkpoint_every=every, accumulate=accumulate)
    with pytest.raises(Killed):
        fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], [KillAt(step, hook)], False)
    return rows.repeatable()


def test_finished_run_may_be_resumed(tmp_path: Path, unbroken: tuple[dict[str, str], dict[Any, float]]) -> None:
    first = small_fit(tmp_path, small_config(max_steps=STEPS))
    again = small_fit(tmp_path, small_config(max_steps=STEPS), resume=True)
    assert (again.steps, again.best, again.validation_loss) == (STEPS, first.best, first.validation_loss)
    assert digests(tmp_path) == unbroken[0]


def test_a_longer_run_has_the_learning_rates_of_its_new_length_and_is_resumed_exactly(tmp_path: Path) -> None:
    def rates(directory: Path, max_steps: int, resume: bool = True, callbacks: Any = ()) -> dict[int, float]:
        rows, config = Rows(), small_config(max_steps=max_steps, log_every=1)
        fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], callbacks, resume)
        return {step or 0: value for (step, name), value in rows.rows.items() if name == "train/learning_rate"}

    whole = rates(tmp_path / "whole", 30, resume=False)
    for name in ("unbroken", "killed"):
        rates(tmp_path / name, 12, resume=False)
    assert rates(tmp_path / "unbroken", 30) == {step: whole[step] for step in range(13, 31)}
    with pytest.raises(Killed):
        rates(tmp_path / "killed", 30, callbacks=[KillAt(17, "end")])
    rates(tmp_path / "killed", 30)
    assert digests(tmp_path / "killed") == digests(tmp_path / "unbroken")
    assert digests(tmp_path / "whole") != digests(tmp_path / "unbroken")


def test_seeds_differ(tmp_path: Path, unbroken: tuple[dict[str, str], dict[Any, float]]) -> None:
    config = small_config(max_steps=STEPS)
    config.seed = 1
    small_fit(tmp_path, config)
    assert digests(tmp_path)["last"] != unbroken[0]["last"]


def test_resume_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_fit(tmp_path, small_config(max_steps=2))

    def refused(config: Any, data: Any = None) -> str:
        with pytest.raises(UserError) as caught:
            fit(TransformerLearner(), config, tmp_path, small_datamodule(config, data), [], [], True)
        return str(caught.value)

    changed = small_config(max_steps=4)
    changed.model.n_layer = 2
    assert "n_layer=1, but now it would be 2" in refused(changed)
    changed = small_config(max_steps=4)
    changed.data.discretizer.num_bins = 12
    assert "vocab_size=10, but now it would be 12" in refused(changed)
    changed = small_config(max_steps=4)
    changed.data.discretizer.strategy = "quantile"
    assert "discretiser bins" in refused(changed)
    changed = small_config(max_steps=4)
    changed.data.batch_size = 10
    assert "data.batch_size=9, now it is 10" in refused(changed)
    changed = small_config(max_steps=4)
    with monkeypatch.context() as patch:
        patch.setattr(action_improvement, "WIDTH", 5)
        assert "the present code: the tensor 'improvement.layers.0.weight' has shape (256" in refused(changed)
    changed.optimizer.learning_rate = 1e-4  # allowed
    small_fit(tmp_path, changed, resume=True)
    other = small_data()
    object.__setattr__(other, "fingerprint", "1" * 64)
    assert "small/walk-v0, whose contents differ" in refused(small_config(max_steps=4), other)


@pytest.mark.parametrize(
    ("name", "value"),
    [("weight_decay", 3.0), ("beta1", 0.5), ("beta2", 0.6), ("learning_rate", 1e-4), ("gradient_clip_norm", 1e-3)],
)
def test_an_optimiser_s_option_that_was_edited_is_obeyed(tmp_path: Path, name: str, value: float) -> None:
    def go_on(directory: Path, **options: float) -> dict[str, Any]:
        run_killed(directory, 5, 12, "end")
        config = small_config(max_steps=STEPS)
        for option, chosen in options.items():
            setattr(config.optimizer, option, chosen)
        small_fit(directory, config, resume=True)
        return read_checkpoint(directory / "checkpoints" / "last.ckpt")

    as_before, edited = go_on(tmp_path / "before"), go_on(tmp_path / "edited", **{name: value})
    key = "model.head.weight" if "model.head.weight" in edited["state_dict"] else next(iter(edited["state_dict"]))
    assert not edited["state_dict"][key].equal(as_before["state_dict"][key])
    decaying, other, by_muon = edited["optimizer_states"][0]["param_groups"]
    for group in (decaying, by_muon):
        assert group["weight_decay"] == (3.0 if name == "weight_decay" else 0.1)
    assert other["weight_decay"] == 0.0
    assert decaying["betas"] == (0.5 if name == "beta1" else 0.9, 0.6 if name == "beta2" else 0.95)


def test_the_table_says_what_becomes_of_each_option() -> None:
    names = {option.name for option in fields(TrainConfig)} - {"resume"}
    assert {name.partition(".")[0] for name in MAY_CHANGE} == names
    assert may_change("data.download")
    assert not may_change("data.discretizer.num_bins")
    assert may_change("optimizer.weight_decay")


FIXED = {
    "seed": 3, "learner.expectile": 0.5, "model.n_layer": 2, "model.attn_pdrop": 0.0, "model.action_weight": 1.0,
    "model.numerical_regression": 1.0, "model.numerical_pretraining": 1.0, "model.action_improvement": 1.0,
    "data.sequence_length": 4, "data.discount": 0.5, "data.termination_penalty": None, "data.batch_size": 10,
    "data.validation_fraction": 0.4, "data.observation_indices": [0], "data.discretizer.num_bins": 12,
    "data.discretizer.strategy": "quantile", "trainer.accumulate": 3,
    "optimizer.muon": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", FIXED)
def test_what_a_checkpoint_fixes_is_refused_when_it_changed(tmp_path: Path, name: str) -> None:
    assert not may_change(name)

    def fit_with(value: Any = None, resume: bool = False) -> None:
        config, learner = small_config(max_steps=2), TransformerLearner()
        if name.startswith("learner"):
            learner = ImplicitQLearning() if value is None else ImplicitQLearning(expectile=value)
            config.learner = spec_of(learner)
        elif resume:
            *parents, last = name.split(".")
            setattr(functools.reduce(getattr, parents, config), last, value)
        fit(learner, config, tmp_path, small_datamodule(config), [], [], resume)

    fit_with()
    with pytest.raises(UserError, match=r"now it (would be|is)|discretiser bins"):
        fit_with(FIXED[name], resume=True)


def test_resume_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"last\.ckpt' does not exist"):
        small_fit(tmp_path, small_config(), resume=True)


def test_new_run_does_not_overwrite_another(tmp_path: Path) -> None:
    small_fit(tmp_path, small_config(max_steps=2))
    with pytest.raises(UserError, match=f"resume={tmp_path}"):
        small_fit(tmp_path, small_config(max_steps=2))


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.03, 0.1])
def test_sigkill(tmp_path: Path, delay: float) -> None:
    assert finish(start(tmp_path / "unbroken", "run")) == 0
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    process = start(tmp_path / "killed", "run")
    wait_for(last, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert finish(process) == -signal.SIGKILL
    assert read_checkpoint(last)["global_step"] in range(5, 60)
    assert finish(start(tmp_path / "killed", "resume")) == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "unbroken")
    assert not list(last.parent.glob(".*"))
