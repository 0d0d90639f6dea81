"""Mistakes in the code of a user's learner, found on a few transitions before training."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.transition_datamodule import TransitionDataModule
from trajectory_transformer.learners.trial import try_learner
from trajectory_transformer.training import datamodule as datamodule_file
from trajectory_transformer.training.learner import Learner

from ..training.small_run import small_config, small_data

MODULE = """\
from torch import nn

from trajectory_transformer.checkpoint import TrainingRecord
from trajectory_transformer.learners.policy_agent import PolicyAgent
from trajectory_transformer.learners.transition_datamodule import TransitionDataModule
from trajectory_transformer.learners.transition_module import TransitionModule
from trajectory_transformer.training.learner import Learner

ACTIONS = 1


class Own(Learner):
    kind = "own"

    def make_datamodule(self, config):
        return TransitionDataModule(config.data, config.seed)

    def make_module(self, config, datamodule, plan):
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return Regression(nn.Linear(1, ACTIONS), config.optimizer, plan, record)

    def make_agent(self, checkpoint, device, planner, allow=()):
        network = nn.Linear(1, ACTIONS)
        network.load_state_dict(checkpoint.weights("network"))
        return PolicyAgent(network, checkpoint.training.environment, device, self.kind)


class Regression(TransitionModule):
    logged = ("loss",)

    def losses(self, batch):
        error = (self.network(batch.observations) - batch.actions).square()
        loss = error.mean()
        return RESULT
"""


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> TransitionDataModule:
    """Of walks with one observation and one action dimension."""
    monkeypatch.setattr(datamodule_file, "load_offline_data", lambda _: small_data())
    made = TransitionDataModule(small_config().data, 0)
    made.setup()
    return made


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules on Python's path."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def learner(path: Path, result: str, **replaced: str) -> Learner:
    """The learner of a user's module with some text replaced."""
    text = MODULE.replace("RESULT", result)
    for old, new in replaced.items():
        text = text.replace(old, new)
    (path / "own_learner.py").write_text(text)
    made: Any = import_module("own_learner")
    return made.Own()


def test_a_right_one_passes_and_is_left_untrained(path: Path, data: TransitionDataModule) -> None:
    try_learner(learner(path, 'loss, {"loss": loss, "other": loss}'), small_config(), data)


def test_ours_are_not_tried(data: TransitionDataModule) -> None:
    try_learner(BehaviorCloning(), small_config(), data)  # would fail: the data module is not its own


@pytest.mark.parametrize(
    ("result", "replaced", "message"),
    [
        ("loss", {}, "losses must return the loss and a dict of the values to log; it returned a Tensor"),
        ('error, {"loss": loss}', {}, "losses: the loss has shape (8, 1), expected a tensor of shape ()"),
        ('loss, {"loss": loss, "each": error[:, 0]}', {}, "losses: 'each' has shape (8,), expected"),
        ('loss, {"loss": 1.0}', {}, "losses: 'loss' has type float, expected a tensor of shape ()"),
        ('loss.detach(), {"loss": loss}', {}, "losses: the loss does not depend on any weight"),
        ('loss, {"mean": loss}', {}, "losses returns no 'loss' among the values to log, mean"),
        ('loss, {"loss": loss}', {'("loss",)': '("loss", "big")'}, "losses returns no 'big' among"),
        ('loss, {"loss": loss}', {'("loss",)': "()"}, "logged has no 'loss', by which weights are chosen"),
    ],
)
def test_losses_of_a_wrong_shape(
    path: Path, data: TransitionDataModule, result: str, replaced: dict[str, str], message: str
) -> None:
    wanted = re.escape(f"learner own_learner.Own, tried before training: Regression.{message}")
    with pytest.raises(UserError, match=f"^{wanted}"):
        try_learner(learner(path, result, **replaced), small_config(), data)


def test_a_network_of_another_number_of_actions(path: Path, data: TransitionDataModule) -> None:
    """Its loss would broadcast."""
    wrong = learner(path, 'loss, {"loss": loss}', **{"ACTIONS = 1": "ACTIONS = 2"})
    with pytest.raises(UserError, match=r"own_learner\.Own, tried .* actions have shape \(2,\), expected \(1,\)$"):
        try_learner(wrong, small_config(), data)


def test_a_loss_of_torch_that_broadcasts(path: Path, data: TransitionDataModule) -> None:
    wrong = learner(path, "nn.functional.mse_loss(error, error[:, 0]), {}")
    with pytest.raises(UserError, match="fails when it is tried before training: UserWarning: Using a target size"):
        try_learner(wrong, small_config(), data)


def test_an_exception_is_told_with_the_users_lines(path: Path, data: TransitionDataModule) -> None:
    with pytest.raises(UserError, match=r"^learner own_learner\.Own fails .* AttributeError: .*'speed'") as caught:
        try_learner(learner(path, "loss, batch.speed"), small_config(), data)
    place = 'File "{}", line 34, in losses\n    return loss, batch.speed'.format(path / "own_learner.py")
    assert place in caught.value.told
    assert "learners/trial.py" not in caught.value.told
