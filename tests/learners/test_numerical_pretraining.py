"""The numerical embedding's training before the transformer's first update."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch.nn import functional as F
from typing_extensions import override

from trajectory_transformer.learners.numerical_pretraining import TRANSITIONS, pretrain
from trajectory_transformer.learners.pretraining import PEAK
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.model.numerical_embedding import NumericalEmbedding, NumericalReadout
from trajectory_transformer.progress import WorkProgress
from trajectory_transformer.training.batches import PRETRAINING, random_stream
from trajectory_transformer.training.fit import fit, make_module
from trajectory_transformer.training.interruption import SignalWatch

from ..training.small_run import small_config, small_datamodule, small_fit, weights

UPDATES = 6  # a quarter of those of the training


def parts(seed: int = 0) -> tuple[NumericalEmbedding, NumericalReadout, Any]:
    config = small_config()
    config.seed = seed
    datamodule = small_datamodule(config)
    module = make_module(TransformerLearner(), config, datamodule)
    numbers, readout = module.get_submodule("model.numbers"), module.get_submodule("readout")
    assert isinstance(numbers, NumericalEmbedding)
    assert isinstance(readout, NumericalReadout)
    return numbers, readout, datamodule.train_windows


def silent() -> WorkProgress:
    return WorkProgress("", shown=False)


def test_the_updates_are_those_of_adam_on_the_drawn_transitions() -> None:
    """Beside a loop of its own: two MLPs that predict what follows, a cosine, and no more."""
    numbers, readout, windows = parts()
    assert pretrain(numbers, readout, windows, UPDATES, torch.Generator().manual_seed(3), lambda: False, silent())
    embedding, linear, _ = parts()
    tokens = windows.transitions(torch.arange(len(windows)))
    values = torch.stack([embedding.values[i, tokens[:, i]] for i in range(tokens.shape[1])], dim=1)  # o, a, r, R
    drawn = torch.randint(len(windows), (64 * TRANSITIONS,), generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam([*embedding.parameters(), *linear.parameters()], lr=PEAK)
    for update, batch in enumerate(values[drawn].split(TRANSITIONS)[:UPDATES]):
        optimizer.param_groups[0]["lr"] = PEAK * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * update / UPDATES)).item())
        action = linear.action(embedding.observation(batch[:, :1]))
        outcome = linear.outcome(embedding.transition(batch[:, :2]))
        optimizer.zero_grad()
        (F.mse_loss(action, batch[:, 1:2]) + F.mse_loss(outcome, batch[:, 2:])).backward()
        optimizer.step()
    for part, expected in ((numbers, embedding), (readout, linear)):
        for name, value in expected.named_parameters():
            torch.testing.assert_close(part.get_parameter(name), value, rtol=1e-4, atol=1e-6)


def test_stopped_it_leaves_no_trace() -> None:
    numbers, readout, windows = parts()
    before = {name: value.clone() for name, value in numbers.state_dict().items()}
    asked = iter([False, False, True])
    assert not pretrain(numbers, readout, windows, UPDATES, torch.Generator(), lambda: next(asked), silent())
    assert all(torch.equal(value, before[name]) for name, value in numbers.state_dict().items())


class Signal(Callback):
    """A signal that arrives before the pretraining."""

    def __init__(self, watches: list[SignalWatch]) -> None:
        self.watches = watches

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (watch,) = self.watches
        watch.received = 15


def test_a_run_stopped_meanwhile_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And says that this phase is lost."""
    whole = small_fit(tmp_path / "whole", small_config())
    watches: list[SignalWatch] = []
    with monkeypatch.context() as patch:
        patch.setattr(SignalWatch, "__enter__", lambda self: watches.append(self) or self)
        with pytest.raises(SystemExit, match="143"):
            small_fit(tmp_path / "stopped", small_config(), [Signal(watches)])
    [message] = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert message == "interrupted before the first update: continued, the run begins this first phase anew"
    caplog.clear()
    state = weights(tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert state["readout.pretrained"] == 0.0
    resumed = small_fit(tmp_path / "stopped", small_config(), resume=True)
    assert resumed.steps == whole.steps
    for name, value in weights(whole.last).items():
        assert torch.equal(value, weights(resumed.last)[name])
    assert weights(whole.last)["readout.pretrained"] == 1.0
    assert caplog.records == []


def test_it_acts_before_the_first_update_and_only_if_asked_for(tmp_path: Path) -> None:
    """With a learning rate of almost 0, the embedding is that of the pretraining, or the initial one."""
    for share in (0.25, 0.0):
        config = small_config(max_steps=24)
        config.optimizer.learning_rate, config.optimizer.weight_decay = 1e-12, 0.0
        config.model.numerical_pretraining = share
        report = fit(TransformerLearner(), config, tmp_path / str(share), small_datamodule(config), [], [], False)
        numbers, readout, windows = parts()
        if share:
            stream = random_stream(config.seed, PRETRAINING)
            pretrain(numbers, readout, windows, UPDATES, stream, lambda: False, silent())
        kept = weights(report.last)
        for name, value in numbers.named_parameters():
            torch.testing.assert_close(kept[f"model.numbers.{name}"], value, rtol=0, atol=1e-7)
