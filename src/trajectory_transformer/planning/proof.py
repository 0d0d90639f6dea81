"""Comparison of a decoder's logits with the model's own forward pass, on random tokens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..model.gpt import TrajectoryTransformer
from .decoder import BeamDecoder, gather_rows

_MOST_OPERATIONS = 2e9  # multiply-adds of the reference forward pass: a fraction of a second on one core
_ROWS = 3  # sequences compared


def tolerance_of(model: TrajectoryTransformer) -> float:
    """The largest :func:`decoding_error` that rounding can cause in the model's precision.

    In float32 rounding causes errors of 1e-6 to 3e-6 in trained models, and of 6e-4 in one whose weights are all
    changed by 1; in bfloat16, or with products in TensorFloat-32, errors of some hundredths.
    """
    rounded = model.pos_emb.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    return 2e-3 if model.pos_emb.dtype in (torch.float32, torch.float64) and not rounded else 0.3


@torch.inference_mode()
def decoding_error(
    decoder: BeamDecoder, model: TrajectoryTransformer, window: int, sliding: bool, rows: int = _ROWS
) -> float:
    """Largest difference between a decoder's logits and ``model(tokens)``, on random tokens.

    All operations of a search are covered: a prefix of one observation; then the longest prefix, branching, single
    tokens up to the last position that the decoder reaches, with a value token and a stop token among them, and
    pruning. For models so large that this would take seconds, shorter sequences are compared. The global random state
    does not change.

    Args:
        decoder: of this model, with this window and number of rows; its sequences are discarded.
        model: in training or evaluation mode.
        window, sliding: as of the decoder.
        rows: sequences that the decoder has room for.

    Returns:
        The difference divided by the sum of the logit's absolute value and the standard deviation of all logits;
        infinity if only the decoder's logits are not finite. Sequences whose forward pass is not finite are left out.
    """
    with _evaluation_mode(model):
        tokens, decoded = _decode_some(decoder, model, window, sliding, min(rows, _ROWS))
        output = model(tokens, use_cache=False, output_attentions=False, output_hidden_states=False, return_dict=True)
    wanted = torch.stack([output.logits[:, length - 1] for length in decoded]).float()
    got = torch.stack(list(decoded.values()))
    finite = wanted.isfinite().all(dim=-1)
    wanted, got = wanted[finite], got[finite]
    if not got.isfinite().all():
        return torch.inf
    if not len(got):
        return 0.0
    spread = wanted[:, :-1].std()  # without the stop token, whose logit is -1000 with converted weights
    return float(((got - wanted).abs() / (wanted.abs() + spread).clamp(min=1e-30)).max())


def _decode_some(
    decoder: BeamDecoder, model: TrajectoryTransformer, window: int, sliding: bool, rows: int
) -> tuple[Tensor, dict[int, Tensor]]:
    """Decode random sequences; returns tokens (rows, time), and logits (rows, vocabulary) by the length before them."""
    config, generator, device = model.config, torch.Generator().manual_seed(0), model.pos_emb.device
    weights = sum(parameter.numel() for parameter in model.blocks.parameters())
    affordable = max(2 * config.transition_dim, int(_MOST_OPERATIONS / max(1, rows * weights)))
    reach = min(config.block_size, window * config.transition_dim - 1) if sliding else config.block_size
    longest = min(reach, affordable)
    start = max(1, longest - config.transition_dim - 1)

    def draw(*shape: int) -> Tensor:
        return torch.randint(0, config.vocab_size, shape, generator=generator).to(device)

    tokens = draw(1, 1, start)
    tokens[:, :, start // 2] = config.vocab_size  # the stop token
    logits: dict[int, Tensor] = {}
    for length in sorted({min(config.observation_dim, start), start}):
        decoder.prefill(tokens[:, 0, :length])
        logits[length] = decoder.logits

    def select(index: Tensor) -> None:
        nonlocal tokens, logits
        tokens = gather_rows(tokens, index)
        logits = {length: gather_rows(values, index) for length, values in logits.items()}

    two = min(2, rows)
    decoder.expand(two)
    select(torch.zeros(1, two, dtype=torch.int64, device=device))
    kept = torch.tensor([[two - 1, 0, two - 1]], device=device)[:, :rows]
    for length in range(start + 1, longest + 1):
        if length == (start + longest) // 2:
            decoder.keep(kept)
            select(kept)
        token = draw(1, tokens.shape[1])
        if length == start + 3:
            token[:, 0] = config.vocab_size
        decoder.step(token)
        tokens = torch.cat([tokens, token.unsqueeze(2)], dim=2)
        logits[length] = decoder.logits
    return tokens[0], {length: values[0].float() for length, values in logits.items()}


@contextmanager
def _evaluation_mode(model: TrajectoryTransformer) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
