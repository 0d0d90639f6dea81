"""Both decoders against full forward passes of the same model."""

import pytest
import torch

from tests.planning.decoders import (
    TRANSITIONS,
    VOCABULARY,
    WIDTH,
    MakeDecoder,
    both_decoders,
    full_logits,
    small_model,
)
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.planning.decoder import gather_rows
from trajectory_transformer.planning.sampling import Choice


@pytest.fixture(scope="module", params=[(None, False), (12, False), (12, True)], ids=["tokens", "numbers", "dynamics"])
def model(request: pytest.FixtureRequest) -> TrajectoryTransformerModel:
    numbers, dynamics = request.param
    return small_model(spread=0.2, numbers=numbers, numerical_dynamics=dynamics)


@both_decoders
@pytest.mark.parametrize(("sliding", "window", "transitions"), [(False, TRANSITIONS, 5), (True, 3, 6), (True, 2, 4)])
def test_cached_logits_equal_a_full_forward_pass(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder, sliding: bool, window: int, transitions: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    limit = window * WIDTH - 1 if sliding else model.config.block_size
    decoder = make_decoder(model, window, sliding)
    prefix = torch.randint(0, VOCABULARY + 1, (3, min(window - 1, 2) * WIDTH + 2), generator=generator)
    decoder.prefill(prefix)
    sequences = prefix.unsqueeze(1)
    torch.testing.assert_close(decoder.logits, full_logits(model, sequences, limit), atol=1e-5, rtol=0)
    rows = 1
    while sequences.shape[2] < transitions * WIDTH - 1:
        dimension = sequences.shape[2] % WIDTH
        if dimension == 2:  # actions begin
            decoder.expand(8 // rows)
            sequences, rows = sequences.repeat_interleave(8 // rows, dim=1), 8
        tokens = torch.randint(0, VOCABULARY + 1, (3, rows), generator=generator)
        if dimension == WIDTH - 1:  # after the reward; a row may be kept twice
            index, rows = torch.randint(0, rows, (3, 4), generator=generator), 4
            decoder.keep(index)
            sequences, tokens = gather_rows(sequences, index), gather_rows(tokens, index)
        sequences = torch.cat([sequences, tokens.unsqueeze(2)], dim=2)
        decoder.step(tokens)
        torch.testing.assert_close(decoder.logits, full_logits(model, sequences, limit), atol=1e-5, rtol=0)


@both_decoders
def test_prefill_crops_a_long_prefix_by_whole_transitions(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder
) -> None:
    prefix = torch.randint(0, VOCABULARY, (2, 4 * WIDTH + 2), generator=torch.Generator().manual_seed(2))
    decoder = make_decoder(model, 3, True)
    decoder.prefill(prefix)
    torch.testing.assert_close(
        decoder.logits, full_logits(model, prefix.unsqueeze(1), 3 * WIDTH - 1), atol=1e-5, rtol=0
    )


@both_decoders
@pytest.mark.parametrize("choice", [Choice(), Choice(k=1), Choice(k=4, cdf=0.3, temperature=2.0)], ids=str)
@pytest.mark.parametrize(("sliding", "window"), [(False, TRANSITIONS), (True, 2), (True, 3)])
@pytest.mark.parametrize("given", [False, True])
def test_log_likelihoods_are_those_of_full_forward_passes(
    model: TrajectoryTransformerModel,
    make_decoder: MakeDecoder,
    sliding: bool,
    window: int,
    choice: Choice,
    given: bool,
) -> None:
    """They are of the sampled tokens, without filters or temperature; several candidates share a sequence at first."""
    generator = torch.Generator().manual_seed(3)
    limit = window * WIDTH - 1 if sliding else model.config.block_size
    decoder = make_decoder(model, window, sliding)
    prefix = torch.randint(0, VOCABULARY, (3, WIDTH + 2), generator=generator)
    decoder.prefill(prefix)
    decoder.expand(8)
    found = torch.randn(3, 8, generator=generator)
    sequences, wanted = prefix.unsqueeze(1).expand(-1, 8, -1), found.clone()
    before = torch.randint(0, VOCABULARY, (3, 8), generator=generator) if given else None
    drawn = decoder.extend(torch.rand(3, WIDTH, 8, generator=generator), choice, before, found)
    if before is not None:
        sequences = torch.cat([sequences, before.unsqueeze(2)], dim=2)
    for tokens in drawn.unbind(2):
        logarithms = full_logits(model, sequences, limit).log_softmax(dim=-1)
        wanted += logarithms.gather(2, tokens.unsqueeze(2)).squeeze(2)
        sequences = torch.cat([sequences, tokens.unsqueeze(2)], dim=2)
    torch.testing.assert_close(found, wanted, atol=5e-5, rtol=0)
