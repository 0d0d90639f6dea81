"""The learning rate by hand, and the parameters with weight decay."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import ModelConfig, OptimizerConfig
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.training.optimization import (
    CosineSchedule,
    TrainingPlan,
    make_optimizer,
    make_schedule,
    set_learning_rate,
)


def test_schedule_by_hand() -> None:
    schedule = CosineSchedule(peak=1.0, warmup_tokens=100, total_tokens=1_100, final_fraction=0.1)
    assert schedule.at(10) == pytest.approx(0.1)
    assert schedule.at(100) == pytest.approx(1.0)
    assert schedule.at(350) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5)))
    assert schedule.at(600) == pytest.approx(0.55)
    assert schedule.at(1_100) == pytest.approx(0.1)


def test_schedule_never_climbs_again() -> None:
    schedule = CosineSchedule(peak=6e-4, warmup_tokens=1_000, total_tokens=50_000, final_fraction=0.1)
    rates = [schedule.at(tokens) for tokens in range(1_000, 200_000, 500)]
    assert all(after <= before for before, after in pairwise(rates))
    assert rates[-1] == pytest.approx(6e-5)


@pytest.mark.parametrize(
    ("warmup_tokens", "steps_per_epoch", "expected"),
    [(None, 5, 500), (None, 50, 1_000), (0, 5, 0), (70_000, 5, 70_000)],
)
def test_warmup_length(warmup_tokens: int | None, steps_per_epoch: int, expected: int) -> None:
    config = OptimizerConfig(warmup_tokens=warmup_tokens)
    plan = TrainingPlan(seed=0, max_steps=100, steps_per_epoch=steps_per_epoch, tokens_per_step=100, log_every=1)
    schedule = make_schedule(config, plan)
    assert schedule.warmup_tokens == expected
    assert schedule.total_tokens == 10_000
    assert 0 < schedule.at(100) <= config.learning_rate
    assert schedule.at(10_000) <= config.learning_rate


def test_optimizer_decays_matrices_only() -> None:
    model = TrajectoryTransformerModel(TransformerConfig.for_data(ModelConfig(n_embd=8), TransitionLayout(3, 2), 10, 4))
    config = OptimizerConfig(weight_decay=0.3, beta1=0.8, beta2=0.7)
    optimizer = make_optimizer(model.decay_parameter_groups(config.weight_decay), config, fused=True)
    by_parameter = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(by_parameter) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        embedding_or_norm = name in ("tok_emb.weight", "pos_emb") or ".ln" in name or name.startswith("ln_f")
        assert by_parameter[id(parameter)] == (0.0 if embedding_or_norm or name.endswith("bias") else 0.3), name
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.7)


def test_set_learning_rate() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias]}])
    set_learning_rate([optimizer], 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_model_config_follows_data_and_options() -> None:
    config = TransformerConfig.for_data(ModelConfig(n_layer=2, resid_pdrop=0.3), TransitionLayout(100, 20), 50, 10)
    assert (config.observation_dim, config.action_dim, config.transition_dim) == (100, 20, 122)
    assert (config.block_size, config.vocab_size, config.n_layer, config.resid_pdrop) == (1_219, 50, 2, 0.3)
