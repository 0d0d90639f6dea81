"""The learning rate by hand, and the parameters with weight decay."""

import copy
import math
from itertools import pairwise
from typing import Any

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
    orthogonalized,
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


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (1, 4)])
def test_orthogonalized_matrices_have_the_singular_vectors_of_their_own(shape: tuple[int, int]) -> None:
    """And singular values near 1; the zero matrix stays zero, whatever else is in the batch."""
    matrices = (
        torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
        * torch.tensor([1e-3, 1, 1e3, 0])[:, None, None]
    )
    found = orthogonalized(matrices)
    u, _, vh = torch.linalg.svd(matrices[:3], full_matrices=False)
    inner = u.mT @ found[:3] @ vh.mT
    values = inner.diagonal(dim1=1, dim2=2)
    assert bool(((values > 0.6) & (values < 1.3)).all())
    torch.testing.assert_close(inner, torch.diag_embed(values), rtol=0, atol=1e-4)
    torch.testing.assert_close(found[:3], u @ torch.diag_embed(values) @ vh, rtol=0, atol=1e-4)
    assert not bool(found[3].any())


def two_optimizers(decay: float) -> tuple[list[nn.Parameter], torch.optim.Optimizer, list[nn.Parameter], list[Any]]:
    """Matrices and a vector trained by ours, and copies of them trained by torch's Muon and AdamW."""
    shapes = (16, 16), (16, 64), (64, 16), (16, 16)
    generator = torch.Generator().manual_seed(0)
    ours = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in (*shapes, (16,))]
    theirs = [nn.Parameter(parameter.detach().clone()) for parameter in ours]
    config = OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.7)
    groups = [
        {"params": ours[4:], "weight_decay": 0.0},
        {"params": ours[:4], "weight_decay": decay, "muon": 3.0},
    ]
    muon = torch.optim.Muon(theirs[:4], lr=0.03, weight_decay=decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(theirs[4:], lr=0.01, betas=(0.8, 0.7), weight_decay=0.0)
    return ours, make_optimizer(groups, config, fused=True), theirs, [muon, adamw]


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_muon_is_that_of_torch(decay: float) -> None:
    """Up to the precision of bfloat16, in which torch's iterates; the group without ``muon`` is AdamW's."""
    ours, optimizer, theirs, others = two_optimizers(decay)
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        before = [parameter.detach().clone() for parameter in theirs]
        for own, their in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            their.grad = own.grad.clone()
        for one in (optimizer, *others):
            one.step()
        for own, their, was in zip(ours[:4], theirs[:4], before[:4], strict=True):
            with torch.no_grad():
                assert float((own - their).norm()) < 0.05 * float((their - was).norm())
            own.data.copy_(their)
        torch.testing.assert_close(ours[4], theirs[4])


def test_muon_resumes_from_its_state_to_the_bit() -> None:
    ours, optimizer, theirs, _ = two_optimizers(0.1)
    generator = torch.Generator().manual_seed(3)
    gradients = [[torch.randn(p.shape, generator=generator) for p in ours] for _ in range(6)]

    def train(parameters: list[nn.Parameter], one: torch.optim.Optimizer, updates: slice) -> None:
        for of_update in gradients[updates]:
            for parameter, gradient in zip(parameters, of_update, strict=True):
                parameter.grad = gradient.clone()
            one.step()

    train(ours, optimizer, slice(3))
    state = copy.deepcopy(optimizer.state_dict())
    for own, their in zip(ours, theirs, strict=True):
        their.data.copy_(own)
    train(ours, optimizer, slice(3, 6))
    groups = [{"params": theirs[4:], "weight_decay": 0.0}, {"params": theirs[:4], "weight_decay": 0.1, "muon": 3.0}]
    resumed = make_optimizer(groups, OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.7), fused=True)
    resumed.load_state_dict(state)
    train(theirs, resumed, slice(3, 6))
    for own, their in zip(ours, theirs, strict=True):
        assert torch.equal(own, their)


def test_muon_makes_no_update_after_a_failure_on_the_device() -> None:
    """Neither of weights nor of its average, although the gradient is NaN; the next one is as if it had not been."""
    ours, optimizer, theirs, _ = two_optimizers(0.1)
    groups = [{"params": theirs[4:], "weight_decay": 0.0}, {"params": theirs[:4], "weight_decay": 0.1, "muon": 3.0}]
    undisturbed = make_optimizer(groups, OptimizerConfig(learning_rate=0.01, beta1=0.8, beta2=0.7), fused=True)
    generator = torch.Generator().manual_seed(4)
    for failed in (0.0, 1.0, 0.0):
        vars(optimizer)["found_inf"] = torch.tensor(failed)
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for own, their, gradient in zip(ours, theirs, gradients, strict=True):
            own.grad = gradient * (math.nan if failed else 1.0)
            their.grad = gradient.clone()
        optimizer.step()
        if not failed:
            undisturbed.step()
        for own, their in zip(ours[:4], theirs[:4], strict=True):
            torch.testing.assert_close(own, their, rtol=0, atol=1e-7)


def test_set_learning_rate() -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW([{"params": [layer.weight]}, {"params": [layer.bias]}])
    set_learning_rate([optimizer], 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def test_model_config_follows_data_and_options() -> None:
    config = TransformerConfig.for_data(ModelConfig(n_layer=2, resid_pdrop=0.3), TransitionLayout(100, 20), 50, 10)
    assert (config.observation_dim, config.action_dim, config.transition_dim) == (100, 20, 122)
    assert (config.block_size, config.vocab_size, config.n_layer, config.resid_pdrop) == (1_219, 50, 2, 0.3)
