"""Random models and both decoders, for tests that apply to each, and their expected logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.c_library import find_compiler
from trajectory_transformer.planning.decoder import BeamDecoder, gather_rows
from trajectory_transformer.planning.native.decoder import NativeDecoder
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder

WIDTH, TRANSITIONS, VOCABULARY = 6, 5, 9


def make_model(
    observation_dim: int, action_dim: int, transitions: int, vocab_size: int = 9, spread: float = 0.1, seed: int = 0,
    numbers: int | None = None, **options: Any,
) -> TrajectoryTransformerModel:  # fmt: skip
    """A model in evaluation mode whose parameters, biases and norms included, are off their initial values."""
    torch.manual_seed(seed)
    width = observation_dim + action_dim + 2
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 2, "n_embd": 16}
    config = TrajectoryTransformerConfig(
        vocab_size=vocab_size, block_size=transitions * width - 1, transition_dim=width,
        observation_dim=observation_dim, action_dim=action_dim, numerical_embedding=numbers,
        **(sizes | options),
    )  # fmt: skip
    model = TrajectoryTransformerModel(config).eval()
    for parameter in model.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    if model.numbers is not None:
        model.numbers.set_values(torch.randn(width, vocab_size), torch.randn(100, width))
    return model


small_model = partial(make_model, 2, 2, TRANSITIONS, VOCABULARY)


def full_logits(model: TrajectoryTransformerModel, sequences: Tensor, limit: int) -> Tensor:
    """(environment, rows, time) -> logits after the last token, each window cropped by whole transitions to limit."""
    width = model.config.transition_dim
    excess = max(0, sequences.shape[2] - limit)
    window = sequences[:, :, -(-excess // width) * width :]
    with torch.no_grad():
        return model(window.flatten(0, 1), use_cache=False).logits[:, -1].view(*sequences.shape[:2], -1)


def compare(
    decoder: BeamDecoder, model: TrajectoryTransformerModel, limit: int, transitions: int, environments: int = 2
) -> None:
    """Decode as a search does, four candidates and two beams, and compare each token with full forward passes."""
    device = model.pos_emb.device
    generator = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(0, VOCABULARY + 1, shape, generator=generator).to(device)

    sequences = tokens(environments, 1, WIDTH + 2)
    decoder.prefill(sequences[:, 0])
    while sequences.shape[2] < transitions * WIDTH - 1:
        rows, dimension = sequences.shape[1], sequences.shape[2] % WIDTH
        if dimension == 2:
            decoder.expand(4 // rows)
            sequences = sequences.repeat_interleave(4 // rows, dim=1)
        if dimension == WIDTH - 1:
            kept = torch.randint(0, rows, (environments, 2), generator=generator).to(device)
            decoder.keep(kept)
            sequences = gather_rows(sequences, kept)
        token = tokens(environments, sequences.shape[1])
        decoder.step(token)
        sequences = torch.cat([sequences, token.unsqueeze(2)], dim=2)
        torch.testing.assert_close(decoder.logits, full_logits(model, sequences, limit), atol=1e-5, rtol=0)


MakeDecoder = Callable[[TrajectoryTransformerModel, int, bool], BeamDecoder]


def make_eager(model: TrajectoryTransformerModel, window: int, sliding: bool) -> TransformerDecoder:
    return TransformerDecoder(model, window, sliding, rows=128)


needs_compiler = pytest.mark.skipif(find_compiler() is None, reason="no C compiler")
both_decoders = pytest.mark.parametrize(
    "make_decoder",
    [pytest.param(NativeDecoder, id="native", marks=needs_compiler), pytest.param(make_eager, id="eager")],
)
