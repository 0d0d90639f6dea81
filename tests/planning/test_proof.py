"""Edits of ``model/gpt.py`` or ``beam_search.py`` take effect: the kernel is used only if its results are equal."""

import logging
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.planning.decoders import make_model, needs_compiler
from tests.planning.test_native_decoder import draw_tokens, make_planner, plan
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import Block, SelfAttention
from trajectory_transformer.model.memory import AttentionMemory
from trajectory_transformer.model.numerical_embedding import NumericalEmbedding
from trajectory_transformer.planning import native, planner, sampling
from trajectory_transformer.planning.beam_search import beam_search
from trajectory_transformer.planning.native.decoder import NativeDecoder
from trajectory_transformer.planning.native.proof import _rounded, _transition_seconds
from trajectory_transformer.planning.planner import make_decoder
from trajectory_transformer.planning.proof import decoding_error, tolerance_of
from trajectory_transformer.planning.sampling import Choice
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder

pytestmark = pytest.mark.usefixtures("one_thread")
Edit = Callable[..., None]


@pytest.fixture
def model() -> TrajectoryTransformerModel:
    return make_model(3, 2, 6, vocab_size=20, n_embd=32)


def parts_of(attention: SelfAttention, x: Tensor) -> list[Tensor]:
    return [
        part(x).view(*x.shape[:2], attention.n_head, -1).transpose(1, 2)
        for part in (attention.query, attention.key, attention.value)
    ]


# ---- edits of the model ----


def halved(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def forward(self: Block, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        x = x + 0.5 * self.attn(self.ln1(x), layer, memory)
        return x + 0.5 * self.drop(self.l2(self.act(self.l1(self.ln2(x)))))

    patch.setattr(Block, "forward", forward)


def swiglu(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def forward(self: Block, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        x = x + self.attn(self.ln1(x), layer, memory)
        h = self.ln2(x)
        return x + self.drop(self.l2(F.silu(self.get_submodule("gate")(h)) * self.l1(h)))

    torch.manual_seed(0)
    for block in model.blocks:
        block.add_module("gate", nn.Linear(32, 128))
    patch.setattr(Block, "forward", forward)


def rotary(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def forward(self: SelfAttention, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        query, key, value = parts_of(self, x)
        half = query.shape[-1] // 2
        angles = memory.positions(x.shape[1]).unsqueeze(1) * 100.0 ** (-torch.arange(half) / half)

        def rotate(z: Tensor) -> Tensor:
            a, b = z.split(half, dim=-1)
            return torch.cat([a * angles.cos() - b * angles.sin(), a * angles.sin() + b * angles.cos()], dim=-1)

        y = memory.attend(layer, rotate(query), rotate(key), value, 0.0)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    patch.setattr(SelfAttention, "forward", forward)


def wider(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    for block in model.blocks:
        assert isinstance(block, Block)
        block.l1, block.l2 = nn.Linear(32, 256), nn.Linear(256, 32)


def other_eps(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    norm = model.blocks[1].get_submodule("ln2")
    assert isinstance(norm, nn.LayerNorm)
    norm.eps = 1e-6


def other_activation(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    block = model.blocks[1]
    assert isinstance(block, Block)
    block.act = partial(F.gelu, approximate="tanh")


def other_numbers(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model.config.numerical_embedding = 8
    model.numbers = NumericalEmbedding(model.layout, model.config.vocab_size + 1, 8, 32)
    model.numbers.set_values(torch.randn(7, 20), torch.randn(50, 7))
    model.numbers.transition[3] = nn.Tanh()


def late_positions(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    """An edit that changes only the last position."""
    embed = TrajectoryTransformerModel.embed

    def edited(self: TrajectoryTransformerModel, tokens: Tensor, positions: Tensor) -> Tensor:
        last = (positions == self.config.block_size - 1).unsqueeze(1)
        return embed(self, tokens, positions) * torch.where(last, 0.5, 1.0)

    patch.setattr(TrajectoryTransformerModel, "embed", edited)


MODEL_EDITS: dict[Edit, str] = {
    halved: "its logits differ",
    swiglu: "it does not support the model's parameter blocks.0.gate.bias",
    rotary: "its logits differ",
    wider: r"blocks.0.l1.bias has the shape \(256,\); it supports \(128,\)",
    other_eps: "blocks.1.ln2 has eps=1e-06, but it computes with layer_norm_eps=1e-05",
    other_activation: "blocks.1.act is not gelu",
    other_numbers: "its logits differ",
    late_positions: "its logits differ",
}


# ---- edits of the search ----


def doubled_rewards(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def search(decoder: Any, prefix: Tensor, layout: Any, settings: Any, estimate: Any, *rest: Any) -> Any:
        factors = torch.tensor([2.0, 1.0])
        return beam_search(decoder, prefix, layout, settings, lambda p: estimate(p) * factors, *rest)

    patch.setattr(planner, "beam_search", search)


def other_discount(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def search(decoder: Any, prefix: Tensor, layout: Any, settings: Any, *rest: Any) -> Any:
        edited = PlannerConfig(**(vars(settings) | {"discount": settings.discount**2}))
        return beam_search(decoder, prefix, layout, edited, *rest)

    patch.setattr(planner, "beam_search", search)


def other_tie_rule(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    """An edit that prefers the last of equal candidates."""
    sort = Tensor.sort

    def edited(self: Tensor, *args: Any, **options: Any) -> Any:
        if not options.get("stable"):
            return sort(self, *args, **options)
        ranked = sort(self.flip(1), *args, **options)
        return ranked.values, self.shape[1] - 1 - ranked.indices

    patch.setattr(Tensor, "sort", edited)


def other_sampling(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    def filter_cdf(logits: Tensor, threshold: float) -> Tensor:
        return sampling.filter_top_k(logits, 3)

    patch.setattr(sampling, "filter_cdf", filter_cdf)


def likelihoods_counted(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    """Return + 0.1 × log-likelihood of the actions, by ``extend``'s ``log_likelihoods``."""

    def search(
        decoder: Any, prefix: Tensor, layout: Any, settings: Any, estimate: Any, uniforms: Tensor, *_: Any
    ) -> Any:
        latest: list[Tensor] = []

        class Counting(type(decoder)):
            def extend(
                self, uniforms: Tensor, choice: Choice, given: Any = None, log_likelihoods: Any = None
            ) -> Tensor:
                latest.append(torch.zeros(uniforms.shape[0], uniforms.shape[2]))
                return super().extend(uniforms, choice, given, latest[-1])

        def with_likelihood(probabilities: Tensor) -> Tensor:
            return estimate(probabilities) + 0.1 * latest[-1].unsqueeze(2)

        before, decoder.__class__ = type(decoder), Counting
        try:
            return beam_search(decoder, prefix, layout, settings, with_likelihood, uniforms)
        finally:
            decoder.__class__ = before

    patch.setattr(planner, "beam_search", search)


SEARCH_EDITS: dict[Edit, str] = {
    doubled_rewards: "searching in Python, decoding natively",
    other_discount: "searching in Python, decoding natively",
    other_tie_rule: "searching in Python, decoding natively",
    likelihoods_counted: "searching in Python, decoding natively",
    other_sampling: "sampling and searching in Python, decoding natively",
}


# ---- what plans ----


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


OPTIONS: dict[str, Any] = {"context": 2, "beam_width": 8, "horizon": 3}


def require_planned_as_eager(model: TrajectoryTransformerModel, caplog: pytest.LogCaptureFixture, warning: str) -> None:
    """The default planner gives the eager one's plans, with one warning; the native one refuses."""
    prefix = draw_tokens(3, 10, below=20)
    auto = make_planner(model, decoder="auto", **OPTIONS)
    [message] = warnings_in(caplog)
    assert warning in message
    assert " ms" in message or "faster" in message  # what it costs, as measured
    found, wanted = plan(auto, prefix), plan(make_planner(model, decoder="eager", **OPTIONS), prefix)
    assert torch.equal(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.score, wanted.score, atol=1e-5, rtol=1e-5)


@needs_compiler
@pytest.mark.parametrize("edit", MODEL_EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_model_plans_in_pytorch(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, edit: Edit
) -> None:
    edit(model, monkeypatch)
    require_planned_as_eager(model, caplog, "planning in PyTorch, ")
    with pytest.raises(UserError, match=f"planner.decoder=native is not available: .*{MODEL_EDITS[edit]}"):
        make_planner(model, decoder="native", **OPTIONS)


class OtherBlock(Block):
    """Of the same parameters, which it uses otherwise."""

    def forward(self, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        return x + self.attn(self.ln1(x), layer, memory) + self.drop(self.l2(self.act(self.l1(self.ln2(x)))))


class NarrowBlock(OtherBlock):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config)
        self.l1, self.l2 = nn.Linear(config.n_embd, 8), nn.Linear(8, config.n_embd)


@needs_compiler
@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (NarrowBlock, "model.block={} is not the GPT block, the only one that it computes"),
        (OtherBlock, "planning/native does not match the code of model.block={}"),
        (Block, None),
    ],
)
def test_a_block_of_one_s_own_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, block: type, reason: str | None
) -> None:
    """Its parameters, such as those of SelfAttention, may be the project's own; and so may be the block."""
    target = f"{block.__module__}.{block.__qualname__}"
    config = replace(make_model(3, 2, 5).config, block={"_target_": target})
    model = TrajectoryTransformerModel(config, TYPED_BY_USER).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    make_planner(model, decoder="auto", **OPTIONS)
    if reason is None:
        assert warnings_in(caplog) == []
        return
    [message] = warnings_in(caplog)
    measured = r"planning in PyTorch, which takes about [\d.]+ times as long as natively \(about [\d.]+ ms of "
    assert re.match(measured, message)
    assert message.endswith(reason.format(target))


def test_waiting_for_a_processor_is_not_counted(model: TrajectoryTransformerModel) -> None:
    """On a busy machine PyTorch would otherwise seem to take thousands of times as long as the kernel."""

    class Interrupted(TransformerDecoder):
        def expand(self, candidates: int) -> None:
            time.sleep(0.3)
            super().expand(candidates)

    settings = PlannerConfig(beam_width=2, n_expand=2)
    assert _transition_seconds(Interrupted(model, 1, False, 4), model, settings) < 0.25


def test_measured_times_are_rounded_to_what_repeats() -> None:
    found = [_rounded(value) for value in (51.8, 90.8, 0.13, 1.0, 3.0, 3.5, 740.0)]
    assert found == pytest.approx([50.0, 100.0, 0.1, 1.0, 2.0, 5.0, 1000.0])


@needs_compiler
@pytest.mark.parametrize("edit", SEARCH_EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_search_is_run_in_python(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, edit: Edit
) -> None:
    edit(model, monkeypatch)
    require_planned_as_eager(model, caplog, SEARCH_EDITS[edit])
    with pytest.raises(
        UserError, match=r"planner.decoder=native is not available: .*planning/(beam_search|sampling)\.py"
    ):
        make_planner(model, decoder="native", **OPTIONS)


@needs_compiler
@pytest.mark.parametrize(
    "options",
    [
        {}, {"k_obs": None}, {"cdf_act": None, "k_act": 3}, {"percentile": 0.3}, {"temperature": 2.0},
        {"beam_width": 1, "n_expand": 1, "horizon": 1, "context": 1}, {"window": "sliding"}, {"name": "imitation"},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("width", [3, 20, 300])
def test_unchanged_models_and_searches_are_proven_in_silence(
    caplog: pytest.LogCaptureFixture, options: dict[str, Any], width: int
) -> None:
    """In training or evaluation mode; the mode and the global random state do not change."""
    unchanged = make_model(3, 2, 5, vocab_size=width, hidden_act="selu").train()
    state = torch.get_rng_state()
    built = make_planner(unchanged, **({"decoder": "native", "context": 2} | options))
    assert isinstance(built._decoder, NativeDecoder)
    assert (built._native_search is not None) == (options.get("window") != "sliding" and "name" not in options)
    assert warnings_in(caplog) == []
    assert torch.equal(torch.get_rng_state(), state)
    unchanged.train()
    make_decoder(unchanged, built.settings)
    assert all(module.training for module in unchanged.modules())


@needs_compiler
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sliding", [False, True])
def test_rounding_stays_below_the_tolerance(spread: float, sliding: bool) -> None:
    model = make_model(11, 3, 10, vocab_size=100, n_embd=64)
    for parameter in model.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    window = 3 if sliding else 10
    for decoder in (NativeDecoder(model, window, sliding), TransformerDecoder(model, window, sliding, 3)):
        assert decoding_error(decoder, model, window, sliding) < tolerance_of(model) / 10


def test_the_reference_of_a_large_model_is_cut_short(model: TrajectoryTransformerModel, monkeypatch) -> None:
    monkeypatch.setattr("trajectory_transformer.planning.proof._MOST_OPERATIONS", 1.0)
    longest = []
    forward = TrajectoryTransformerModel.forward

    def recorded(self: TrajectoryTransformerModel, tokens: Tensor, **options: Any) -> Any:
        longest.append(tokens.shape[1])
        return forward(self, tokens, **options)

    monkeypatch.setattr(TrajectoryTransformerModel, "forward", recorded)
    assert decoding_error(TransformerDecoder(model, 6, False, 3), model, 6, False) < 1e-4
    assert longest == [2 * model.config.transition_dim]


# ---- in PyTorch ----


def bypassed(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    """An edit with attention to the new tokens alone, without the memory."""

    def forward(self: SelfAttention, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        query, key, value = parts_of(self, x)
        memory.attend(layer, query, key, value, 0.0)
        y = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.proj(y.transpose(1, 2).reshape(x.shape))

    patch.setattr(SelfAttention, "forward", forward)


def own_positions(model: TrajectoryTransformerModel, patch: pytest.MonkeyPatch) -> None:
    embed = TrajectoryTransformerModel.embed

    def edited(self: TrajectoryTransformerModel, tokens: Tensor, positions: Tensor) -> Tensor:
        return embed(self, tokens, torch.arange(tokens.shape[1]))

    patch.setattr(TrajectoryTransformerModel, "embed", edited)


@pytest.mark.parametrize(
    ("edit", "options"),
    [
        (bypassed, {}), (bypassed, {"decoder": "eager"}), (bypassed, {"precision": "bf16"}),
        (own_positions, {"decoder": "eager"}),  # the kernel does decode it as in one forward pass
    ],
)  # fmt: skip
def test_models_that_cannot_be_decoded_are_refused(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch, edit: Edit, options: dict[str, Any]
) -> None:
    settings = PlannerConfig(**(OPTIONS | options))
    make_decoder(model, settings)
    edit(model, monkeypatch)
    with pytest.raises(UserError, match=r"must go through memory\.attend, and positions must come from memory\.pos"):
        make_decoder(model, settings)


def test_models_that_predict_nothing_finite_are_left_to_the_search(model: TrajectoryTransformerModel) -> None:
    model.tok_emb.weight.data[:] = torch.nan
    for decoder in ("auto", "eager"):
        with pytest.raises(UserError, match=r"is finite in environment \[0\]"):
            plan(make_planner(model, decoder=decoder, **OPTIONS), draw_tokens(1, 10, below=20))


def test_only_nonfinite_logits_of_the_decoder_are_a_difference(model: TrajectoryTransformerModel) -> None:
    decoder = TransformerDecoder(model, 6, False, 3)
    broken = make_model(3, 2, 6, vocab_size=20, n_embd=32)
    broken.head.weight.data[2] = torch.nan
    assert decoding_error(TransformerDecoder(broken, 6, False, 3), model, 6, False) == torch.inf
    assert decoding_error(decoder, broken, 6, False) < 1e-4  # where the forward pass is finite they agree


def test_a_model_whose_comparison_fails_still_trains(
    model: TrajectoryTransformerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise RuntimeError

    model.train()
    model.drop.eval()
    monkeypatch.setattr(TransformerDecoder, "step", fail)
    with pytest.raises(RuntimeError):
        decoding_error(TransformerDecoder(model, 6, False, 3), model, 6, False)
    assert model.training
    assert not model.drop.training


def test_without_the_kernel_nothing_but_the_planner_would_miss_it() -> None:
    assert native.__all__ == ["make_decoder", "make_search"]


def test_the_proof_needs_room_for_one_row_only(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    settings = PlannerConfig(horizon=1, beam_width=1, n_expand=1, context=2, decoder="eager")
    assert isinstance(make_decoder(model, settings), TransformerDecoder)
