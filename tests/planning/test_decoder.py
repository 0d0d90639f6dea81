"""Both decoders against full forward passes of the same model."""

import pytest
import torch
from torch import Tensor

from tests.planning.decoders import MakeDecoder, both_decoders
from trajectory_transformer.model.config import TrajectoryTransformerConfig
from trajectory_transformer.model.gpt import TrajectoryTransformerModel
from trajectory_transformer.planning.decoder import gather_rows

WIDTH, TRANSITIONS, VOCABULARY = 6, 5, 9


@pytest.fixture(scope="module")
def model() -> TrajectoryTransformerModel:
    torch.manual_seed(0)
    config = TrajectoryTransformerConfig(
        vocab_size=VOCABULARY, block_size=TRANSITIONS * WIDTH - 1, transition_dim=WIDTH,
        observation_dim=2, action_dim=2, n_layer=2, n_head=2, n_embd=16, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = TrajectoryTransformerModel(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def full_logits(model: TrajectoryTransformerModel, sequences: Tensor, limit: int) -> Tensor:
    """(environment, rows, time) -> logits after the last token, each window cropped by whole transitions to limit."""
    excess = max(0, sequences.shape[2] - limit)
    window = sequences[:, :, -(-excess // WIDTH) * WIDTH :]
    with torch.no_grad():
        return model(window.flatten(0, 1), use_cache=False).logits[:, -1].view(*sequences.shape[:2], -1)


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
