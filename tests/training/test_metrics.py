"""Losses and accuracies of a case worked out by hand."""

import math

import pytest
import torch

from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.training.metrics import TokenMetrics

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
