"""The training of an ensemble: several models in one run."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import PlannerConfig, TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.native import proof
from trajectory_transformer.training.fit import FitReport, fit, make_module
from trajectory_transformer.training.initial import InitialWeights
from trajectory_transformer.training.optimization import make_optimizer

from ..training.small_run import Rows, small_config, small_datamodule, small_fit, weights


def config_of(members: int, act: str = "conditioned", **trainer: Any) -> TrainConfig:
    """A small run of as many models, without dropout, whose random numbers members would share."""
    config = small_config(**trainer)
    dropout = {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
    config.model = replace(config.model, members=members, **dropout)
    config.planner = PlannerConfig(horizon=2, context=2, act=act)
    return config


def logged_fit(directory: Path, config: TrainConfig) -> tuple[FitReport, Rows]:
    rows = Rows()
    return fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], [], resume=False), rows


def of_member(stored: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    """A member's weights, under the names that they have in a run of one model."""
    if index == 0:
        return {name: value for name, value in stored.items() if not name.startswith("others.")}
    begin = f"others.{index - 1}."
    return {name.removeprefix(begin): value for name, value in stored.items() if name.startswith(begin)}


def test_each_member_is_trained_as_if_it_were_alone(tmp_path: Path) -> None:
    """The first of three has the weights of the only one; each of the others those of a run that begins with its."""
    together = weights(small_fit(tmp_path / "three", config_of(3)).last)
    alone = weights(small_fit(tmp_path / "one", config_of(1)).last)
    first = of_member(together, 0)
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], value), name
    trained = [name for name in alone if name.endswith("weight") and alone[name].ndim > 1]
    for index in (1, 2):
        other = of_member(together, index)
        assert other.keys() == first.keys()
        assert all(not torch.equal(other[name], first[name]) for name in trained)
        assert other["improvement.fitted"] == other["readout.pretrained"] == 1.0

    class Begin(Callback):
        """Gives the only model what the second of three has before the first update."""

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            pl_module.load_state_dict(of_member(begun, 1))

    class Stop(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            begun.update({name: value.clone() for name, value in pl_module.state_dict().items()})

    begun: dict[str, torch.Tensor] = {}
    small_fit(tmp_path / "begun", config_of(3), [Stop()])
    second = weights(small_fit(tmp_path / "second", config_of(1), [Begin()]).last)
    for name, value in second.items():
        torch.testing.assert_close(of_member(together, 1)[name], value, rtol=0, atol=0, msg=name)


def test_metrics_are_means_over_the_members(tmp_path: Path) -> None:
    report, rows = logged_fit(tmp_path / "two", config_of(2, max_steps=6))
    assert report.validation_loss == pytest.approx(rows.rows[6, "val/loss"])
    stored, losses, shares, nats = weights(report.last), list[float](), list[float](), list[float]()
    for index in range(2):
        config = config_of(1, max_steps=1)
        module = make_module(TransformerLearner(), config, small_datamodule(config))
        module.load_state_dict(of_member(stored, index))
        assert isinstance(module, TrajectoryModule)
        module.eval()
        examples = small_datamodule(config).validation_examples
        batch = examples.gather(torch.arange(len(examples)))
        with torch.no_grad():
            _, loss, logits = module.losses(*batch)
        module.validation_metrics.update(loss, logits, batch.targets, batch.mask)
        found = module.validation_metrics.compute()
        losses.append(float(found["loss"]))
        shares.append(float(found["value_r2"]))
        nats.append(math.log(float(found["perplexity"])))
    assert losses[0] != losses[1]
    assert rows.rows[6, "val/loss"] == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert rows.rows[6, "val/value_r2"] == pytest.approx(sum(shares) / 2, rel=1e-4)
    assert math.log(rows.rows[6, "val/perplexity"]) == pytest.approx(sum(nats) / 2, rel=1e-5)


def test_the_logged_norm_is_the_largest(tmp_path: Path) -> None:
    """So that a member whose gradient is not finite is noticed."""
    norms = [logged_fit(tmp_path / f"{members}", config_of(members, max_steps=3))[1] for members in (1, 4)]
    alone, largest = (rows.rows[3, "train/gradient_norm"] for rows in norms)
    assert largest > alone


def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = weights(small_fit(tmp_path / "whole", config_of(2)).last)
    small_fit(tmp_path / "halves", config_of(2, max_steps=24), [Interruption(9)])
    resumed = weights(small_fit(tmp_path / "halves", config_of(2), resume=True).last)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


class Interruption(Callback):
    """Ends the training after an update, as if it had been stopped."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.step


def test_the_number_of_members_is_fixed_for_a_run(tmp_path: Path) -> None:
    small_fit(tmp_path, config_of(2, max_steps=2))
    with pytest.raises(UserError, match=r"has model\.members=2, but now it would be 1"):
        small_fit(tmp_path, config_of(1, max_steps=3), resume=True)


@pytest.mark.parametrize(
    ("changed", "members"),
    [
        ({}, 2),
        ({"act": "mean"}, 2),
        ({"act": "best"}, 1),
        ({"act": "mean", "deadline_ms": 9.0}, 1),
        ({"name": "imitation", "act": "best"}, 1),
    ],
)
def test_one_model_is_trained_where_the_planner_uses_one(changed: dict[str, Any], members: int) -> None:
    config = config_of(2)
    config.planner = replace(config.planner, **changed)
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    assert isinstance(module, TrajectoryModule)
    assert len(module.members) == module.model_options()["members"] == members
    assert all(parameter.requires_grad for member in module.members for parameter in member.model.parameters())


def test_initial_weights_need_as_many_members(tmp_path: Path) -> None:
    source = small_fit(tmp_path / "two", config_of(2, max_steps=2)).best
    given = InitialWeights.of_checkpoint(str(source))
    config = config_of(2)
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    given.give_to(module)
    stored = weights(source)
    for name, parameter in module.named_parameters():
        assert torch.equal(parameter, stored[name]) != ("improvement." in name), name
    config = config_of(1)
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    with pytest.raises(UserError, match=r"model\.members=2, but this run has 1: give model\.members=2$"):
        given.give_to(module)


def test_a_checkpoint_from_before_ensembles_has_one_member(tmp_path: Path) -> None:
    given = Checkpoint.read(small_fit(tmp_path, config_of(1, max_steps=2)).best)
    section = {**given.training.to_dict(), "model": {k: v for k, v in given.model.items() if k != "members"}}
    older = Checkpoint.from_contents({"trajectory_transformer": section, "state_dict": given.state_dict})
    assert older.model["members"] == 1
    assert Agent.of(older)._others == ()


def test_the_agent_of_a_run_has_all_its_members(tmp_path: Path) -> None:
    """Their weights are those of the checkpoint."""
    report = small_fit(tmp_path, config_of(3, max_steps=2))
    stored, agent = weights(report.best), Agent.from_checkpoint(report.best)
    planners = agent._planner, *agent._others
    assert len(planners) == len(agent._improvements) == 3
    for index, (planner, improvement) in enumerate(zip(planners, agent._improvements, strict=True)):
        own = of_member(stored, index)
        for name, value in planner.model.state_dict().items():
            assert torch.equal(own[f"model.{name}"], value)
        for name, value in improvement.state_dict().items():
            assert torch.equal(own[f"improvement.{name}"], value)
    assert Agent.from_checkpoint(report.best, act="best")._others == ()
    assert Agent.from_checkpoint(report.best, deadline_ms=1000.0)._others == ()


def test_a_warning_about_all_members_is_given_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = small_fit(tmp_path, config_of(3, max_steps=1))
    monkeypatch.setattr(proof, "unavailable_reason", lambda model: "of a test")
    caplog.clear()
    Agent.from_checkpoint(report.best)
    [record] = caplog.records
    assert record.message.endswith("the native kernel cannot be used, because of a test")


def test_muon_trains_each_weight_of_an_edited_block_once() -> None:
    """With two layers that share a weight, and one whose weight is computed from two parameters (weight norm)."""

    config = config_of(1)
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    assert isinstance(module, TrajectoryModule)
    block: Any = module.model.blocks[0]
    block.attn.key.weight = block.attn.query.weight
    torch.nn.utils.parametrizations.weight_norm(block.attn.value)
    decayed, others, by_muon = (group["params"] for group in module.parameter_groups())
    expected = [layer.weight for layer in (block.attn.query, block.attn.proj, block.l1, block.l2)]
    assert sorted(map(id, by_muon)) == sorted(map(id, expected))
    everything = [id(parameter) for parameter in (*decayed, *others, *by_muon)]
    assert len(everything) == len(set(everything))
    assert {id(parameter) for parameter in block.parameters()} <= set(everything)
    make_optimizer(module.parameter_groups(), config.optimizer, fused=True)  # refuses what is not a parameter
