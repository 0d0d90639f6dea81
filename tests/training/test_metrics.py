"""Losses and accuracies of a case worked out by hand."""

import math
from typing import Any

import pytest
import torch
import torchmetrics
from typing_extensions import override

from trajectory_transformer.configuration import TrainConfig, TrainerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.training.metrics import LoggedMetrics, TokenMetrics

LAYOUT = TransitionLayout(2, 1)  # o o a r v; the targets of a window begin at the second o


def logits_for(probability: float, tokens: torch.Tensor, vocabulary: int = 3) -> torch.Tensor:
    """Logits that give the tokens a probability, and the others equal shares of the rest."""
    rest = (1 - probability) / (vocabulary - 1)
    return torch.full((*tokens.shape, vocabulary), rest).scatter(-1, tokens[..., None], probability).log()


def test_by_hand() -> None:
    metrics = TokenMetrics(LAYOUT)
    targets = torch.tensor([[0, 1, 2, 0, 1, 2, 0, 1, 2]])  # o a r v o o a r v
    guesses = torch.tensor([[0, 1, 2, 0, 0, 2, 1, 1, 2]])  # one observation and one action wrong
    mask = torch.tensor([[1.0, 1, 1, 1, 1, 1, 1, 0, 0]])
    metrics.update(torch.tensor(3.0), logits_for(0.5, guesses), targets, mask)
    metrics.update(torch.tensor(4.0), logits_for(0.5, targets), targets, torch.zeros_like(mask))
    values = {name: float(value) for name, value in metrics.compute().items()}
    right, wrong = math.log(2), math.log(4)
    assert values == pytest.approx(
        {
            "loss": 3.5,
            "observation_loss": (2 * right + wrong) / 3,
            "observation_accuracy": 2 / 3,
            "action_loss": (right + wrong) / 2,
            "action_accuracy": 0.5,
            "reward_loss": right,
            "reward_accuracy": 1.0,
            "value_loss": right,
            "value_accuracy": 1.0,
            "perplexity": math.exp((5 * right + 2 * wrong) / 7),
        }
    )


def test_the_explained_share_of_returns_to_go_by_hand() -> None:
    """Over several batches; masked values and stop tokens do not count."""
    returns = torch.tensor([10.0, 20.0, 40.0])
    metrics = TokenMetrics(LAYOUT, returns)
    logits = torch.randn(5, 9, 4, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(5, 9, dtype=torch.long)
    targets[:, 3], targets[:, 8] = torch.tensor([0, 2, 1, 2, 3]), torch.tensor([1, 1, 0, 2, 3])
    mask = torch.ones(5, 9)
    mask[3, 8] = 0.0
    metrics.update(torch.tensor(0.0), logits[:2], targets[:2], mask[:2])
    metrics.update(torch.tensor(0.0), logits[2:], targets[2:], mask[2:])
    actual, expected = [], []
    for window, position in ((0, 3), (1, 3), (2, 3), (3, 3), (0, 8), (1, 8), (2, 8)):
        weights = logits[window, position].exp()
        expected.append(float((weights[:3] * (returns - returns.mean())).sum() / weights.sum() + returns.mean()))
        actual.append(float(returns[targets[window, position]]))
    mean = sum(actual) / 7
    errors = sum((a - e) ** 2 for a, e in zip(actual, expected, strict=True))
    found = float(metrics.compute()["value_r2"])
    assert found == pytest.approx(1 - errors / sum((a - mean) ** 2 for a in actual), abs=1e-5)


def test_loss_counts_windows() -> None:
    metrics = TokenMetrics(LAYOUT)
    for size, loss in [(3, 1.0), (1, 5.0)]:
        targets = torch.zeros(size, 4, dtype=torch.long)
        metrics.update(torch.tensor(loss), torch.zeros(size, 4, 3), targets, torch.ones(size, 4))
    assert float(metrics.compute()["loss"]) == pytest.approx(2.0)


def test_sums_keep_their_precision_in_a_model_of_less() -> None:
    metrics = TokenMetrics(LAYOUT)
    torch.nn.ModuleList([metrics]).to(torch.bfloat16)
    targets = torch.zeros(1, 4, dtype=torch.long)
    for _ in range(300):
        metrics.update(torch.tensor(1.0), torch.zeros(1, 4, 3), targets, torch.ones(1, 4))
    assert metrics.windows.dtype == metrics.nats.dtype == torch.float32
    assert float(metrics.windows) == 300.0
    assert metrics.kinds.dtype == torch.long


def test_reset() -> None:
    metrics = TokenMetrics(LAYOUT)
    targets = torch.zeros(1, 4, dtype=torch.long)
    metrics.update(torch.tensor(1.0), torch.zeros(1, 4, 3), targets, torch.ones(1, 4))
    metrics.compute()
    metrics.reset()
    metrics.update(torch.tensor(7.0), torch.zeros(1, 4, 3), targets, torch.ones(1, 4))
    assert float(metrics.compute()["loss"]) == 7.0
    assert float(metrics.compute()["perplexity"]) == pytest.approx(3.0)


class TopTwo(torchmetrics.Metric):
    """Share of the unmasked targets that are among the two likeliest tokens, scaled."""

    hits: torch.Tensor
    count: torch.Tensor

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        for name in ("hits", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    @override
    def update(self, logits: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor) -> None:
        found = (logits.topk(2).indices == targets.unsqueeze(-1)).any(-1)
        self.hits += (found * mask).sum()
        self.count += mask.sum()

    @override
    def compute(self) -> torch.Tensor:
        return self.scale * self.hits / self.count


class EveryToken(TopTwo):
    """More than one number."""

    @override
    def compute(self) -> torch.Tensor:
        return torch.zeros(3)


TOP_TWO = {"_target_": f"{__name__}.TopTwo"}


def test_own_metrics_beside_ours() -> None:
    metrics = LoggedMetrics(LAYOUT, {"top_two": TOP_TWO, "percent": TOP_TWO | {"scale": 100}})
    logits = torch.tensor([[[0.0, 1, 2], [0.0, 1, 2], [2.0, 0, 1], [0.0, 2, 1]]])
    targets = torch.tensor([[0, 1, 2, 0]])  # missed, hit, hit, missed
    metrics.update(torch.tensor(2.0), logits, targets, torch.tensor([[1.0, 1, 1, 0]]))
    metrics.update(torch.tensor(4.0), logits, targets, torch.tensor([[0.0, 1, 0, 0]]))
    values = metrics.compute()
    assert float(values["loss"]) == 3.0
    assert float(values["top_two"]) == pytest.approx(3 / 4)
    assert float(values["percent"]) == pytest.approx(75.0)
    assert len(values) == 12
    metrics.reset()
    metrics.update(torch.tensor(2.0), logits, targets, torch.tensor([[1.0, 0, 0, 0]]))
    assert float(metrics.compute()["top_two"]) == 0.0


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("x", {"_target_": "torch.nn.Linear"}, r"trainer\.metrics\.x\._target_=torch\.nn\.Linear is not a Metric"),
        ("x", {"_target_": "torchmetrics.MeanMetric"}, r"MeanMetric must take logits, targets and mask"),
        ("x", TOP_TWO | {"scael": 2}, r"there is no option 'trainer\.metrics\.x\.scael'; did you mean"),
        ("x", {"_target_": "torchmetrics.Nothing"}, "there is no such class"),
        ("loss", TOP_TWO, r"trainer\.metrics\.loss: the name 'loss' is taken"),
        ("action_accuracy", TOP_TWO, "the name 'action_accuracy' is taken"),
    ],
)
def test_what_is_no_metric_is_refused(name: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        LoggedMetrics(LAYOUT, {name: spec})


def test_a_metric_of_several_numbers_is_refused() -> None:
    metrics = LoggedMetrics(LAYOUT, {"x": {"_target_": f"{__name__}.EveryToken"}})
    metrics.update(torch.tensor(1.0), torch.zeros(1, 4, 3), torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4))
    with pytest.raises(UserError, match=r"trainer\.metrics\.x: compute\(\) must return a tensor of one number"):
        metrics.compute()


def test_options_that_name_no_metric() -> None:
    with pytest.raises(UserError, match=r"trainer\.metrics\.x='TopTwo' is not a mapping with a _target_"):
        TrainerConfig(metrics={"x": "TopTwo"})
    with pytest.raises(UserError, match=r"trainer\.metrics are for learner=transformer, not iql"):
        ImplicitQLearning().check(TrainConfig(trainer=TrainerConfig(metrics={"x": TOP_TWO})))
