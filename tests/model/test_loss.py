"""The loss against cases worked out by hand."""

import math

import torch

from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import TrajectoryTransformer
from trajectory_transformer.model.loss import token_weights, weighted_cross_entropy

CONFIG = TransformerConfig(
    vocab_size=3, block_size=11, observation_dim=2, action_dim=1, transition_dim=5,
    action_weight=5, reward_weight=2, value_weight=3, n_layer=1, n_head=1, n_embd=4,
)  # fmt: skip


def test_each_position_weighs_the_token_it_predicts() -> None:
    # Dimensions o o a r v weigh 1 1 5 2 3; position p predicts dimension p + 1.
    assert token_weights(CONFIG, 0, 9).tolist() == [1, 5, 2, 3, 1, 1, 5, 2, 3]
    assert token_weights(CONFIG, 3, 4).tolist() == [3, 1, 1, 5]


def test_loss_by_hand() -> None:
    # Two tokens of a vocabulary of 2: probabilities (3/4, 1/4) and (1/2, 1/2).
    logits = torch.tensor([[[math.log(3.0), 0.0], [0.0, 0.0]]])
    targets, weights = torch.tensor([[0, 1]]), torch.tensor([1.0, 5.0])
    expected = (-math.log(0.75) + 5 * math.log(2)) / 2
    torch.testing.assert_close(weighted_cross_entropy(logits, targets, weights, None), torch.tensor(expected))
    # A masked token contributes nothing but still counts in the divisor.
    mask = torch.tensor([[1.0, 0.0]])
    torch.testing.assert_close(
        weighted_cross_entropy(logits, targets, weights, mask), torch.tensor(-math.log(0.75) / 2)
    )


def test_forward_applies_weights_and_mask() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformer(CONFIG).eval()
    tokens, targets = torch.randint(0, 4, (2, 7)), torch.randint(0, 4, (2, 7))
    mask = torch.randint(0, 2, (2, 7)).float()
    output = model(tokens, targets=targets, attention_mask=mask)
    weights = [1, 5, 2, 3, 1, 1, 5]
    total = 0.0
    for b in range(2):
        for t in range(7):
            nats = -math.log(output.logits[b, t].softmax(0)[targets[b, t]].item())
            total += weights[t] * mask[b, t].item() * nats
    assert abs(output.loss.item() - total / 14) < 1e-5


def test_loss_after_a_past_weighs_by_position() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformer(CONFIG).eval()
    tokens, targets = torch.randint(0, 4, (1, 8)), torch.randint(0, 4, (1, 8))
    past = model(tokens[:, :3], use_cache=True).past_key_values
    continued = model(tokens[:, 3:], past_key_values=past, targets=targets[:, 3:])
    whole = model(tokens, targets=targets, attention_mask=torch.tensor([[0.0] * 3 + [1.0] * 5]))
    torch.testing.assert_close(continued.loss * 5, whole.loss * 8)
