"""The decoder in PyTorch, compiled and in half precision; tests of both decoders are in ``test_decoder.py``."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from tests.planning.decoders import TRANSITIONS, VOCABULARY, WIDTH, compare, full_logits, small_model
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.planning.planner import make_decoder
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder

COMPILERS = ("c++", "g++", "clang++")
needs_cpp = pytest.mark.skipif(not any(map(shutil.which, COMPILERS)), reason="no C++ compiler")


@pytest.fixture(params=[(None, False), (12, False), (12, True)], ids=["tokens", "numbers", "dynamics"])
def model(request: pytest.FixtureRequest) -> TrajectoryTransformerModel:
    numbers, dynamics = request.param
    return small_model(spread=0.1, numbers=numbers, numerical_dynamics=dynamics)


def make_compiled(
    monkeypatch: pytest.MonkeyPatch, backend: Callable[..., object], model: TrajectoryTransformerModel, window: int,
    sliding: bool,
) -> TransformerDecoder:  # fmt: skip
    """A decoder whose graphs go to ``backend``; all other options of ``torch.compile`` are its own."""
    torch._dynamo.reset()
    monkeypatch.setattr("trajectory_transformer.planning.transformer_decoder._compiler_found", lambda device: True)
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode=None, **options: compile_(
        function, backend=backend, **options))  # fmt: skip
    return TransformerDecoder(model, window, sliding, rows=4, compiled=True)


@pytest.mark.parametrize(("sliding", "window", "transitions"), [(False, TRANSITIONS, TRANSITIONS), (True, 3, 6)])
def test_one_graph_serves_all_steps(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch, sliding: bool, window: int, transitions: int
) -> None:
    """All positions, plans, windows, widths and environments that fit; more environments need another graph."""
    counter = CompileCounter()
    decoder = make_compiled(monkeypatch, counter, model, window, sliding)
    limit = window * WIDTH - 1 if sliding else model.config.block_size
    for _ in range(2):
        compare(decoder, model, limit, transitions)
    compare(decoder, model, limit, transitions, environments=1)
    assert counter.frame_count == 1
    compare(decoder, model, limit, transitions, environments=3)
    assert counter.frame_count == 2


@pytest.mark.parametrize("environments", [1, 2])
@pytest.mark.parametrize("sliding", [False, True])
def test_nothing_broken_is_left_after_a_new_prefix(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch, sliding: bool, environments: int
) -> None:
    """A compiled step reads its whole memory and multiplies values of earlier plans by 0, so they must be finite."""
    decoder = make_compiled(monkeypatch, CompileCounter(), model, TRANSITIONS, sliding)
    embedding = model.tok_emb.weight.data.clone()
    model.tok_emb.weight.data[:] = torch.nan
    decoder.prefill(torch.zeros(2, model.config.block_size - 5, dtype=torch.int64))
    decoder.expand(4)
    for _ in range(5):
        decoder.step(torch.zeros(2, 4, dtype=torch.int64))
    assert decoder.logits.isnan().all()
    model.tok_emb.weight.data[:] = embedding
    compare(decoder, model, model.config.block_size, TRANSITIONS, environments)


def test_the_compiler_is_asked_for_whole_and_static_graphs(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: asked.update(options) or function)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    TransformerDecoder(model, TRANSITIONS, False, rows=4, compiled=True)
    assert asked == {"fullgraph": True, "dynamic": False, "mode": None}


@pytest.mark.slow
@needs_cpp
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_steps_equal_full_forward_passes(model: TrajectoryTransformerModel) -> None:
    torch._dynamo.reset()
    decoder = TransformerDecoder(model, TRANSITIONS, False, rows=4, compiled=True)
    compare(decoder, model, model.config.block_size, TRANSITIONS)


def test_without_a_compiler_one_warning_and_the_same_logits(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    settings = PlannerConfig(horizon=3, beam_width=2, n_expand=2, context=2, decoder="compiled")
    with pytest.warns(UserWarning, match=r"needs a C\+\+ compiler") as warned:
        decoder = make_decoder(model, settings)
    assert len(warned) == 1
    assert isinstance(decoder, TransformerDecoder)
    compare(decoder, model, model.config.block_size, TRANSITIONS)


def test_half_precision_is_the_decoder_s_own(model: TrajectoryTransformerModel) -> None:
    settings = PlannerConfig(horizon=3, beam_width=2, n_expand=2, context=2, decoder="eager", precision="bf16")
    decoder = make_decoder(model, settings)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    generator = torch.Generator().manual_seed(2)
    prefix = torch.randint(0, VOCABULARY + 1, (3, WIDTH + 2), generator=generator)
    decoder.prefill(prefix)
    sequences = prefix.unsqueeze(1)
    for _ in range(2 * WIDTH):
        exact = full_logits(model, sequences, model.config.block_size)
        assert decoder.logits.dtype == torch.float32
        # bfloat16 keeps 8 bits, a relative error of 2⁻⁸ in each of a dozen roundings on the way to a logit; they add up
        # like a random walk, to some 2 % of the logits' own size at most, and are not nothing.
        error = (decoder.logits - exact).abs().max() / exact.std()
        assert 1e-4 < error < 0.1
        tokens = torch.randint(0, VOCABULARY + 1, (3, 1), generator=generator)
        decoder.step(tokens)
        sequences = torch.cat([sequences, tokens.unsqueeze(2)], dim=2)


@pytest.mark.parametrize("sliding", [False, True])
def test_growing_past_the_block_is_refused(model: TrajectoryTransformerModel, sliding: bool) -> None:
    """Sliding windows have no such limit."""
    decoder = TransformerDecoder(model, TRANSITIONS, sliding, rows=4)
    decoder.prefill(torch.zeros(1, model.config.block_size, dtype=torch.int64))
    if sliding:
        decoder.step(torch.zeros(1, 1, dtype=torch.int64))
        return
    with pytest.raises(ValueError, match=f"{model.config.block_size + 1} tokens exceed block_size"):
        decoder.step(torch.zeros(1, 1, dtype=torch.int64))
