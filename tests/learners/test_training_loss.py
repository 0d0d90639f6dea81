"""A loss of the user's own in the transformer's training, and parameters of a subclass of its module."""

import math
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.nn import functional as F

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.data.windows import WindowBatch
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.training_loss import NextToken, TrainingLoss, make_loss
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.training.fit import FitReport, fit, make_module
from trajectory_transformer.training.initial import InitialWeights

from ..training.small_run import Rows, small_config, small_datamodule, small_fit, weights
from .test_member import Interruption, config_of


class Auxiliary(TrainingLoss):
    """The default loss, and a head that predicts the next token of each dimension from the model's last state."""

    logged: ClassVar[tuple[str, ...]] = ("auxiliary", "twice")

    def __init__(self, config: TransformerConfig, weight: float = 1.0) -> None:
        super().__init__(config)
        self.weight, self.head = weight, nn.Linear(config.n_embd, config.vocab_size + 1)

    def forward(self, model: Any, batch: WindowBatch) -> Any:
        tokens, targets, mask = batch
        output = model(tokens, targets=targets, attention_mask=mask, output_hidden_states=True, return_dict=True)
        nats = F.cross_entropy(self.head(output.hidden_states[-1]).transpose(1, 2), targets, reduction="none")
        auxiliary = (nats * mask).mean()
        return output.loss + self.weight * auxiliary, output.logits, {"auxiliary": auxiliary, "twice": 2 * output.loss}


def own(weight: float) -> dict[str, Any]:
    return {"_target_": f"{__name__}.Auxiliary", "weight": weight}


def logged_fit(directory: Path, config: TrainConfig) -> tuple[FitReport, Rows]:
    rows = Rows()
    return fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], [], resume=False), rows


def test_one_of_weight_zero_changes_no_bit_of_the_models(tmp_path: Path) -> None:
    """So that a control run differs from the default by what is tested alone."""
    plain = weights(small_fit(tmp_path / "plain", config_of(2)).last)
    control = weights(small_fit(tmp_path / "control", config_of(2, loss=own(0.0))).last)
    further = control.keys() - plain.keys()
    assert further == {f"{begin}loss.head.{name}" for begin in ("", "others.0.") for name in ("weight", "bias")}
    for name, value in plain.items():
        assert torch.equal(control[name], value), name


def test_its_parameters_are_trained_and_saved_but_planning_does_without(tmp_path: Path) -> None:
    config = config_of(2, max_steps=6, loss=own(1.0))
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    report = small_fit(tmp_path, config)
    stored = weights(report.last)
    for name, begun in module.named_parameters():
        if "loss." in name:
            assert not torch.equal(begun, stored[name]), name
    assert not torch.equal(stored["loss.head.weight"], stored["others.0.loss.head.weight"])
    agent = Agent.from_checkpoint(report.best)
    agent.reset(1)
    assert np.isfinite(agent.act(np.zeros((1, 1), dtype=np.float32))).all()


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = weights(small_fit(tmp_path / "whole", config_of(2, loss=own(1.0))).last)
    small_fit(tmp_path / "halves", config_of(2, loss=own(1.0)), [Interruption(9)])
    resumed = weights(small_fit(tmp_path / "halves", config_of(2, loss=own(1.0)), resume=True).last)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


def test_its_further_values_are_logged(tmp_path: Path) -> None:
    _, rows = logged_fit(tmp_path, config_of(2, max_steps=6, loss=own(3.0)))
    assert {step for step, name in rows.rows if name == "train/auxiliary"} == {3, 6}
    assert {step for step, name in rows.rows if name == "val/auxiliary"} == {6}
    for row in ((3, "train"), (6, "train"), (6, "val")):
        loss, twice, auxiliary = (rows.rows[row[0], f"{row[1]}/{name}"] for name in ("loss", "twice", "auxiliary"))
        assert loss == pytest.approx(twice / 2 + 3.0 * auxiliary, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "metrics", "pattern"),
    [
        ("loss", {}, r"^trainer\.loss: the name 'loss' is taken"),
        ("a b", {}, r"^trainer\.loss: the name 'a b' is taken or not a valid identifier"),
        ("mine", {"mine": {"_target_": "tests.training.test_metrics.TopTwo"}}, r"both log 'mine'; rename one$"),
    ],
)
def test_a_name_is_logged_by_one_alone(
    name: str, metrics: dict[str, Any], pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Auxiliary, "logged", (name,))
    config = small_config(loss=own(1.0), metrics=metrics)
    with pytest.raises(UserError, match=pattern):
        make_module(TransformerLearner(), config, small_datamodule(config))


def test_it_knows_the_values_of_tokens() -> None:
    config = small_config(loss=own(1.0))
    data = small_datamodule(config)
    module = make_module(TransformerLearner(), config, data)
    assert isinstance(module, TrajectoryModule)
    assert torch.equal(module.loss.centers[:, :-1], data.discretizer.centers)
    assert not module.loss.centers[:, -1].any()


def test_initial_weights_need_none_of_a_loss(tmp_path: Path) -> None:
    """And give it its own, if they have them."""
    for loss in (None, own(1.0)):
        source = small_fit(tmp_path / str(loss is None), small_config(max_steps=2, loss=loss)).best
        config = small_config(loss=own(1.0))
        module = make_module(TransformerLearner(), config, small_datamodule(config))
        begun = module.get_parameter("loss.head.weight").clone()
        InitialWeights.of_checkpoint(str(source)).give_to(module)
        assert torch.equal(module.get_parameter("model.tok_emb.weight"), weights(source)["model.tok_emb.weight"])
        given = module.get_parameter("loss.head.weight")
        assert torch.equal(given, begun if loss is None else weights(source)["loss.head.weight"])


def test_the_example_weighs_windows_by_their_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compared with the weights computed by NumPy in float64; and all are 1 at a very high temperature."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    spec = {"_target_": "return_weighted.ReturnWeighted", "temperature": 0.5}
    config = small_config(loss=spec)
    data = small_datamodule(config)
    module = make_module(TransformerLearner(), config, data).eval()
    assert isinstance(module, TrajectoryModule)
    batch = data.train_examples.gather(torch.arange(20))
    with torch.no_grad():
        found, logits, further = module.loss(module.model, batch)
    wanted = batch.targets.numpy()
    probability = logits.double().softmax(-1).numpy()
    rows, places = np.indices(wanted.shape)
    nats = -np.log(probability[rows, places, wanted]) * batch.mask.numpy()
    returns = data.discretizer.centers[3].double().numpy()[wanted[:, 2]]
    factors = np.exp((returns - returns.mean()) / returns.std() / 0.5)
    factors /= factors.mean()
    assert float(found) == pytest.approx((factors * nats.mean(axis=1)).mean(), rel=1e-4)
    assert float(further["largest_weight"]) == pytest.approx(factors.max(), rel=1e-4)
    alike = make_loss({**spec, "temperature": 1e9}, module.model.config, data.discretizer.centers)
    with torch.no_grad():
        assert float(alike(module.model, batch)[0]) == pytest.approx(nats.mean(), rel=1e-4)


def test_the_default_is_that_of_the_model() -> None:
    config = small_config()
    data = small_datamodule(config)
    module = make_module(TransformerLearner(), config, data).eval()
    assert isinstance(module, TrajectoryModule)
    assert isinstance(module.loss, NextToken)
    batch = data.train_examples.gather(torch.arange(20))
    loss, logits = module.loss(module.model, batch)
    output: Any = module.model(batch.trajectories, targets=batch.targets, attention_mask=batch.mask, return_dict=True)
    assert torch.equal(loss, output.loss)
    assert torch.equal(logits, output.logits)


def test_the_loss_of_the_page_is_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its part of weight 0 changes nothing."""
    page = (Path(__file__).parents[2] / "docs" / "own_loss.md").read_text(encoding="utf-8")
    (tmp_path / "page_losses.py").write_text(page.split("```python")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    config = config_of(1, max_steps=3, loss={"_target_": "page_losses.WithReturn", "weight": 0.0})
    TransformerLearner().check_data(config, small_datamodule(config))
    report, rows = logged_fit(tmp_path / "own", config)
    assert 0.0 < rows.rows[3, "train/return_error"] < math.inf
    plain = weights(small_fit(tmp_path / "plain", config_of(1, max_steps=3)).last)
    control = weights(report.last)
    assert all(torch.equal(control[name], value) for name, value in plain.items())


MODULE = """\
import torch
from torch import nn
from trajectory_transformer.learners.training_loss import TrainingLoss


class Own(TrainingLoss):
    logged = LOGGED

    def __init__(self, config, scale: float = 1.0):
        super().__init__(config)
        self.scale = scale / MADE

    def forward(self, model, batch):
        output = model(batch.trajectories, targets=batch.targets, attention_mask=batch.mask, return_dict=True)
        loss, logits = output.loss, output.logits
        return RESULT
"""


@pytest.mark.parametrize(
    ("result", "logged", "made", "pattern"),
    [
        ("loss", "()", 1, r"must return the loss and the logits, a tuple of 2; it returned a Tensor \(values to log"),
        ("loss, logits, {'a': loss}", "()", 1, r"a tuple of 2; it returned a tuple of 3 \(values to log need their"),
        ("loss, logits", "('a',)", 1, r"and a dict of the values to log, a tuple of 3; it returned a tuple of 2$"),
        (
            "loss, logits, loss",
            "('a',)",
            1,
            r"and a dict of the values to log, a tuple of 3; it returned a tuple of 3$",
        ),
        ("loss, logits, {'b': loss}", "('a',)", 1, r"returns no 'a' among the values to log, b$"),
        ("loss, logits, {'a': logits}", "('a',)", 1, r"'a' has shape \(8, 11, 11\), expected \(\)$"),
        ("logits, logits", "()", 1, r"the loss has shape \(8, 11, 11\), expected \(\)$"),
        ("1.0, logits", "()", 1, r"the loss has type float, expected \(\)$"),
        ("loss, logits[:, 1:]", "()", 1, r"the tensor of logits has shape \(8, 10, 11\), expected \(8, 11, 11\)$"),
        ("loss.detach(), logits", "()", 1, r"the loss does not depend on any weight of the model$"),
        ("loss / 0, logits", "()", 1, r"Own: the loss is inf for a few windows and an untrained model$"),
        ("(loss, logits, batch.trajectories.zero_())[:2]", "()", 1, r"Own changes the batch, which further losses and"),
        ("loss.missing, logits", "()", 1, r"fails when it is tried before training: AttributeError: .*missing"),
        ("loss, logits", "()", 0, r"^trainer\.loss: own_losses\.Own cannot be made \(ZeroDivisionError: "),
    ],
)
def test_a_mistake_shows_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, result: str, logged: str, made: int, pattern: str
) -> None:
    text = MODULE.replace("RESULT", result).replace("LOGGED", logged).replace("MADE", str(made))
    (tmp_path / "own_losses.py").write_text(text)
    monkeypatch.delitem(sys.modules, "own_losses", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    config, state = small_config(loss={"_target_": "own_losses.Own"}), torch.get_rng_state()
    with pytest.raises(UserError, match=pattern):
        TransformerLearner().check_data(config, small_datamodule(config))
    assert torch.get_rng_state().equal(state)


def test_a_right_one_is_accepted_before_training() -> None:
    config = config_of(2, loss=own(1.0))
    TransformerLearner().check_data(config, small_datamodule(config))


def test_what_cannot_be_combined_with_it_is_refused() -> None:
    config = small_config(loss=own(1.0))
    with pytest.raises(UserError, match=r"^trainer\.loss is for learner=transformer, not bc$"):
        BehaviorCloning().check(config)
    config.trainer.strategy = "fsdp"
    numbers = {"numerical_regression": 0.0, "numerical_pretraining": 0.0, "action_improvement": 0.0}
    config.model = replace(config.model, **numbers)
    config.optimizer = replace(config.optimizer, muon=0.0)
    with pytest.raises(UserError, match=r"^trainer\.loss is not supported with trainer\.strategy=fsdp"):
        TransformerLearner().check(config)


class WithHead(TrajectoryModule):
    """A subclass with a parameter of its own in the loss."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.scale = nn.Parameter(torch.zeros(2, 3))

    def losses(self, *args: Any, **options: Any) -> Any:
        total, *others = super().losses(*args, **options)
        return total + 1e4 * (self.scale - 1.0).square().sum(), *others


def test_parameters_of_a_subclass_are_trained_and_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Apart from the members', whose weights are those of a run without them."""
    norms = list[float]()

    class Norm(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
            norms.append(float(pl_module.scale.grad.norm()))

    plain = weights(small_fit(tmp_path / "plain", small_config(max_steps=6)).last)
    monkeypatch.setattr(
        import_module("trajectory_transformer.learners.transformer_module"), "TrajectoryModule", WithHead
    )
    with_head = weights(small_fit(tmp_path / "head", small_config(max_steps=6), [Norm()]).last)
    assert (with_head.pop("scale") > 0.0).all()
    assert norms == pytest.approx([1.0] * 6)
    assert plain.keys() == with_head.keys()
    assert all(torch.equal(with_head[name], value) for name, value in plain.items())


def test_a_checkpoint_says_what_is_needed_to_plan_with_it(tmp_path: Path) -> None:
    """The class of the loss is not among it."""
    report = small_fit(tmp_path, small_config(max_steps=1, loss=own(1.0)))
    checkpoint = Checkpoint.read(report.best)
    assert not re.search("Auxiliary", str({**checkpoint.training.to_dict(), "model": checkpoint.model}))
