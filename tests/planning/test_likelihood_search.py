"""The search by likelihood, against enumeration and against a search without cache or batches."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.planning.decoders import TRANSITIONS, VOCABULARY, WIDTH, MakeDecoder, both_decoders, full_logits, small_model
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.planning.beam_search import SearchResult, require_finite_scores
from trajectory_transformer.planning.likelihood_search import likelihood_search, most_likely

TOKENS = VOCABULARY + 1


@pytest.fixture(scope="module")
def model() -> TrajectoryTransformerModel:
    return small_model(spread=0.3)


def search(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder, prefix: Tensor, **options: object
) -> SearchResult:
    settings = PlannerConfig(name="imitation", **options)  # type: ignore[arg-type]
    sliding = settings.window == "sliding"
    decoder = make_decoder(model, settings.context if sliding else TRANSITIONS, sliding)
    return likelihood_search(decoder, prefix, model.layout, settings)


def log_likelihoods(model: TrajectoryTransformerModel, sequences: Tensor, given: int) -> Tensor:
    """Log-likelihoods (sequence,) of the tokens after the first ``given``; whole sequences fit into the model."""
    with torch.no_grad():
        logits = model(sequences[:, :-1], use_cache=False).logits.log_softmax(-1)
    return logits.gather(2, sequences[:, 1:, None])[:, given - 1 :, 0].sum(1)


@both_decoders
def test_an_exhaustive_beam_finds_the_most_likely_action(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder
) -> None:
    """Behaviour cloning: two action tokens of ten values each, all pairs enumerated."""
    prefix = torch.tensor([[1, 2], [7, 0], [3, 3]])
    found = search(model, make_decoder, prefix, horizon=1, beam_width=TOKENS**2)
    for environment, given in enumerate(prefix.tolist()):
        sequences = torch.tensor([[*given, *pair] for pair in itertools.product(range(TOKENS), repeat=2)])
        best, index = log_likelihoods(model, sequences, 2).max(0)
        assert found.score[environment].item() == pytest.approx(best.item(), abs=1e-5)
        assert found.tokens[environment].tolist() == [[*sequences[index].tolist(), VOCABULARY, VOCABULARY]]
    assert found.rewards.isnan().all()
    assert found.value.isnan().all()


@both_decoders
def test_densities_are_probabilities_over_widths(model: TrajectoryTransformerModel, make_decoder: MakeDecoder) -> None:
    """All pairs of action tokens enumerated; each dimension has widths of its own."""
    log_widths = torch.randn(WIDTH, TOKENS, generator=torch.Generator().manual_seed(0))
    prefix = torch.tensor([[1, 2], [7, 0]])
    settings = PlannerConfig(name="imitation", horizon=1, beam_width=TOKENS**2)
    decoder = make_decoder(model, TRANSITIONS, False)
    found = likelihood_search(decoder, prefix, model.layout, settings, log_widths=log_widths)
    for environment, given in enumerate(prefix.tolist()):
        sequences = torch.tensor([[*given, *pair] for pair in itertools.product(range(TOKENS), repeat=2)])
        widths = log_widths[2, sequences[:, 2]] + log_widths[3, sequences[:, 3]]
        best, index = (log_likelihoods(model, sequences, 2) - widths).max(0)
        assert found.score[environment].item() == pytest.approx(best.item(), abs=1e-5)
        assert found.tokens[environment, 0, :4].tolist() == sequences[index].tolist()


def reference(model: TrajectoryTransformerModel, given: list[int], steps: int, width: int, limit: int) -> list:
    """(log-likelihood, tokens) of the beams, best first; every window is computed anew for every token."""
    beams = [(0.0, given)]
    for _ in range(steps):
        logits = full_logits(model, torch.tensor([[tokens for _, tokens in beams]]), limit)[0].log_softmax(-1)
        longer = [
            (score + float(logits[row, token]), [*tokens, token])
            for row, (score, tokens) in enumerate(beams)
            for token in range(TOKENS)
        ]
        beams = sorted(longer, key=lambda beam: -beam[0])[:width]
    return beams


@both_decoders
@pytest.mark.parametrize(
    "options",
    [
        {"horizon": 3, "beam_width": 4, "context": 2},
        {"horizon": 1, "beam_width": 1, "context": 5},
        {"horizon": 4, "beam_width": 7, "context": 2, "window": "sliding"},
    ],
)
def test_it_equals_a_search_without_cache(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder, options: dict
) -> None:
    context = options["context"]
    generator = torch.Generator().manual_seed(1)
    prefix = torch.randint(0, VOCABULARY, (3, (context - 1) * WIDTH + 2), generator=generator)
    found = search(model, make_decoder, prefix, **options)
    limit = context * WIDTH - 1 if "window" in options else TRANSITIONS * WIDTH - 1
    for environment, given in enumerate(prefix.tolist()):
        best = reference(model, given, (options["horizon"] - 1) * WIDTH + 2, options["beam_width"], limit)[0]
        assert found.score[environment].item() == pytest.approx(best[0], abs=1e-4)
        planned = found.tokens[environment].flatten().tolist()
        assert planned == [*best[1][(context - 1) * WIDTH :], VOCABULARY, VOCABULARY]


def test_candidates_that_are_not_finite_come_last() -> None:
    logits = torch.tensor([[[0.0, 1.0, -torch.inf], [torch.nan, 0.0, 0.0]]])
    scores, rows, tokens = most_likely(torch.tensor([[-1.0, 0.0]]), logits, 3)
    assert (rows[0, :2].tolist(), tokens[0, :2].tolist()) == ([0, 0], [1, 0])
    expected = torch.tensor([0.0, 1.0]).log_softmax(0).flip(0) - 1.0
    torch.testing.assert_close(scores[0, :2], expected)
    assert scores[0, 2] == -torch.inf


@both_decoders
def test_a_model_without_finite_predictions_is_refused(make_decoder: MakeDecoder) -> None:
    broken = small_model(spread=0.0)
    broken.head.weight.data[:] = torch.nan
    found = search(broken, make_decoder, torch.tensor([[1, 2]]), horizon=1, beam_width=2)
    with pytest.raises(UserError, match=r"no prediction of the model is finite in environment \[0\]"):
        require_finite_scores(found.score)
