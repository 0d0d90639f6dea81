"""Scores of plans of increasing length, against full passes of the model."""

import pytest
import torch
from torch import Tensor

from tests.evaluation.scripted import environment_spec
from tests.planning.decoders import VOCABULARY, WIDTH, small_model
from tools.look_ahead import scores
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.planning.sampling import draw
from trajectory_transformer.planning.trained_transformer import TrainedTransformer

OBSERVED, REWARD, DISCOUNT = 2, 4, 0.9  # the model's columns: two observations, two actions, reward, value


@pytest.fixture
def trained() -> TrainedTransformer:
    columns = torch.arange(1.0, WIDTH + 1)
    discretizer = UniformDiscretizer(VOCABULARY).fit(torch.stack([-columns, columns]))
    return TrainedTransformer(small_model(spread=0.3), discretizer, environment_spec("Hopper-v5"))


def by_full_passes(trained: TrainedTransformer, transitions: Tensor, horizon: int) -> list[Tensor]:
    """The same scores without a cache: every token after a pass over all tokens before it."""
    discretizer, generator = trained.discretizer, torch.Generator().manual_seed(1)
    given = discretizer.encode(transitions)
    tokens, rewards, found = given[:, :OBSERVED], torch.zeros(len(given)), []
    while len(found) < horizon:
        step, column = divmod(tokens.shape[1], WIDTH)
        logits = trained.model(tokens).logits[:, -1]
        bins = logits.softmax(dim=-1)[:, :-1]
        if column == REWARD:
            rewards = rewards + DISCOUNT**step * (bins * discretizer.centers[column]).sum(dim=1)
        if column == REWARD + 1:
            found.append(rewards + DISCOUNT ** (step + 1) * (bins * discretizer.centers[column]).sum(dim=1))
        drawn = draw(logits[:, :-1], torch.rand(len(given), generator=generator))
        recorded = step == 0 and column < REWARD
        tokens = torch.cat([tokens, (given[:, column] if recorded else drawn).unsqueeze(1)], dim=1)
    return found


def test_scores_are_expected_rewards_and_the_value_after_them(trained: TrainedTransformer) -> None:
    transitions = torch.rand(6, WIDTH, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = by_full_passes(trained, transitions, 3)
    found = scores(trained, transitions, 3, DISCOUNT, torch.Generator().manual_seed(1))
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=1e-4)
    assert found.std(dim=1).min() > 0.01  # the scores depend on what is drawn
