"""Free-running samples against the enumeration of all outcomes of a small model."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.planning.decoders import MakeDecoder, both_decoders, make_eager, make_model
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.analysis.continuations import Continuations, FreeRunning, continue_freely
from trajectory_transformer.planning.sampling import Choice

BINS, TRANSITIONS, HORIZON, SAMPLES = 2, 3, 3, 4000


def history_model(observation_dim: int) -> TrajectoryTransformerModel:
    """A model with one action dimension and weights so large that the history matters."""
    return make_model(observation_dim, 1, TRANSITIONS, BINS, spread=0.4, seed=3, n_layer=1, n_embd=8)


def start_of(model: TrajectoryTransformerModel) -> Tensor:
    return torch.tensor([1, 0][: model.layout.observation_dim])


def sample(
    model: TrajectoryTransformerModel,
    make_decoder: MakeDecoder,
    actions: Tensor | None,
    settings: FreeRunning,
    seed: int = 0,
    start: Tensor | None = None,
) -> Continuations:
    decoder = make_decoder(model, TRANSITIONS, False)
    start = start_of(model) if start is None else start
    generator = torch.Generator().manual_seed(seed)
    return continue_freely(decoder, model.layout, start, actions, settings, generator)


def enumerate_all(
    model: TrajectoryTransformerModel, start: Tensor, actions: Tensor | None, context: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """Every sequence of HORIZON transitions (n, HORIZON, width) as action, reward, value, observation; its probability.

    By full forward passes over windows of whole transitions, without the stop token.
    """
    layout = model.layout
    width, kept = layout.transition_dim, (context - 1) * layout.transition_dim + layout.observation_dim
    every = torch.tensor(list(itertools.product(range(BINS), repeat=width)))
    sequences, probabilities = start.unsqueeze(0), torch.ones(1, dtype=torch.float64)
    for t in range(HORIZON):
        possible = every if actions is None else every[every[:, 0] == actions[t, 0]]
        before = sequences.repeat_interleave(len(possible), dim=0)
        probabilities = probabilities.repeat_interleave(len(possible))
        sequences = torch.cat([before, possible.repeat(len(sequences), 1)], dim=1)
        seen = before[:, -kept:].shape[1]
        with torch.no_grad():
            logits = model(sequences[:, -seen - width : -1], use_cache=False).logits[:, -width:, :BINS]
        chances = (logits.double() / temperature).softmax(dim=-1)
        chances = chances.gather(2, sequences[:, -width:].unsqueeze(2)).squeeze(2)
        probabilities = probabilities * chances[:, 0 if actions is None else 1 :].prod(dim=1)
    return sequences[:, len(start) :].view(-1, HORIZON, width), probabilities


def outcome(actions: Tensor, observations: Tensor) -> Tensor:
    """One number for each sequence of actions and observations."""
    bits = torch.cat([actions.flatten(1), observations.flatten(1)], dim=1)
    return (bits * 2 ** torch.arange(bits.shape[1])).sum(dim=1)


CASES = {
    "recorded actions, Markovian": (2, torch.tensor([[1], [0], [1]]), 1, 1.0),
    "recorded actions, two transitions": (2, torch.tensor([[1], [0], [1]]), 2, 1.0),
    "own actions, Markovian": (1, None, 1, 1.0),
    "own actions, two transitions, colder": (1, None, 2, 0.5),
}


@both_decoders
@pytest.mark.parametrize(("observation_dim", "actions", "context", "temperature"), CASES.values(), ids=CASES.keys())
def test_samples_follow_the_enumerated_distribution(
    make_decoder: MakeDecoder, observation_dim: int, actions: Tensor | None, context: int, temperature: float
) -> None:
    model, choice = history_model(observation_dim), Choice(temperature=temperature)
    every, probabilities = enumerate_all(model, start_of(model), actions, context, temperature)
    assert probabilities.sum().item() == pytest.approx(1.0)
    settings = FreeRunning(SAMPLES, HORIZON, context, choice, choice)
    drawn = sample(model, make_decoder, actions, settings)

    numbers = outcome(every[..., :1], every[..., 3:])
    size = int(numbers.max()) + 1
    expected = torch.zeros(size, dtype=torch.float64).index_add_(0, numbers, probabilities)
    counts = torch.bincount(outcome(drawn.actions, drawn.observations), minlength=size)
    deviation = (expected * (1 - expected) / SAMPLES).sqrt()
    rare = 2 / SAMPLES  # where a single count is beyond any multiple of the deviation
    assert ((counts / SAMPLES - expected).abs() <= 5 * deviation + rare).all()

    ones = torch.einsum("n,nto->to", probabilities, every[..., 3:].double())
    torch.testing.assert_close(drawn.probabilities.sum(dim=-1), torch.ones_like(ones))
    error = (drawn.probabilities[..., 1] - ones).abs()
    assert (error <= 5 * (ones * (1 - ones) / SAMPLES).sqrt()).all()


def test_the_enumerated_cases_would_tell_contexts_apart() -> None:
    model, actions = history_model(2), torch.tensor([[1], [0], [1]])
    marginals = []
    for context in (1, 2):
        every, probabilities = enumerate_all(model, start_of(model), actions, context, 1.0)
        marginals.append(torch.einsum("n,nto->to", probabilities, every[..., 3:].double()))
    assert (marginals[0] - marginals[1]).abs().max() > 10 * (0.25 / SAMPLES) ** 0.5
    torch.testing.assert_close(marginals[0][0], marginals[1][0])  # there is only one transition to see


@both_decoders
def test_averaged_distributions_scatter_less_than_counts(make_decoder: MakeDecoder) -> None:
    model, actions = history_model(2), torch.tensor([[1], [0], [1]])
    every, probabilities = enumerate_all(model, start_of(model), actions, 1, 1.0)
    ones = torch.einsum("n,nto->to", probabilities, every[..., 3:].double())
    squares = torch.zeros(2, dtype=torch.float64)
    for seed in range(20):
        drawn = sample(model, make_decoder, actions, FreeRunning(100, HORIZON, 1), seed)
        for index, estimate in enumerate((drawn.probabilities[..., 1], drawn.observations.double().mean(dim=0))):
            squares[index] += (estimate - ones).square().mean()
    assert squares[0] < 0.7 * squares[1]


@both_decoders
def test_recorded_actions_are_taken_by_every_sample(make_decoder: MakeDecoder) -> None:
    model, actions = history_model(2), torch.tensor([[1], [0], [1]])
    drawn = sample(model, make_decoder, actions, FreeRunning(300, HORIZON, 2))
    assert drawn.actions.shape == (300, HORIZON, 1)
    assert drawn.observations.shape == (300, HORIZON, 2)
    assert (drawn.actions == actions).all()
    assert len(sample(model, make_decoder, None, FreeRunning(300, HORIZON, 2)).actions.unique(dim=0)) > 1


@both_decoders
def test_one_token_kept_is_the_most_likely_one(make_decoder: MakeDecoder) -> None:
    settings = FreeRunning(20, HORIZON, 2, observations=Choice(k=1), others=Choice(k=1))
    drawn = sample(history_model(2), make_decoder, torch.tensor([[1], [0], [1]]), settings)
    assert len(drawn.observations.unique(dim=0)) == 1
    hot = torch.nn.functional.one_hot(drawn.observations[0], BINS).double()
    torch.testing.assert_close(drawn.probabilities, hot)


@both_decoders
def test_a_start_may_have_a_past(make_decoder: MakeDecoder) -> None:
    """Transitions older than the context have no effect; those within it do."""
    model, actions = history_model(1), torch.tensor([[0], [1], [1]])
    past, other = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([1, 1, 1, 0, 1])

    def probabilities(start: Tensor, context: int) -> Tensor:
        return sample(model, make_decoder, actions, FreeRunning(50, HORIZON, context), start=start).probabilities

    torch.testing.assert_close(probabilities(past, 1), probabilities(past[-1:], 1))
    assert (probabilities(past, 2)[0] - probabilities(other, 2)[0]).abs().max() > 1e-3


def test_the_same_seed_draws_the_same_and_progress_counts_transitions() -> None:
    model, done = history_model(1), []
    runs = [sample(model, make_eager, None, FreeRunning(260, HORIZON, 1), seed) for seed in (0, 0, 1)]
    assert torch.equal(runs[0].observations, runs[1].observations)
    assert not torch.equal(runs[0].observations, runs[2].observations)
    decoder, generator = make_eager(model, TRANSITIONS, False), torch.Generator().manual_seed(0)
    continue_freely(decoder, model.layout, start_of(model), None, FreeRunning(260, 2, 1), generator, done.append)
    assert sum(done) == 260 * 2
