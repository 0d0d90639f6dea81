"""The decoder in C: against full forward passes, against ``choose``, with other rows and threads, and where it is not
available."""

import copy
import ctypes
import dataclasses
import logging
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planning.decoders import make_model, needs_compiler
from trajectory_transformer import TrajectoryTransformerModel, c_library
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import QuantileDiscretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.model.gpt import Block
from trajectory_transformer.planning.beam_search import SearchResult, gather_rows
from trajectory_transformer.planning.native import decoder as decoder_module
from trajectory_transformer.planning.native import library
from trajectory_transformer.planning.native.decoder import NativeDecoder, unavailable_reason
from trajectory_transformer.planning.planner import BeamPlanner
from trajectory_transformer.planning.sampling import Choice, choose

pytestmark = [needs_compiler, pytest.mark.usefixtures("one_thread")]


def transitions_of(model: TrajectoryTransformerModel) -> int:
    return (model.config.block_size + 1) // model.config.transition_dim


def draw_tokens(*shape: int, below: int, seed: int = 0) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


class Comparison:
    """A decoder and the sequences that it should hold, compared by full forward passes."""

    def __init__(self, model: TrajectoryTransformerModel, prefix: Tensor, decoder: NativeDecoder | None = None) -> None:
        self.model = model
        self.decoder = decoder or NativeDecoder(model, transitions_of(model), False)
        self.decoder.prefill(prefix)
        self.sequences = prefix.unsqueeze(1)
        self.check()

    def check(self) -> None:
        rows = self.sequences.flatten(0, 1)
        distinct, which = rows.unique(dim=0, return_inverse=True)
        with torch.no_grad():
            expected = self.model(distinct, use_cache=False).logits[:, -1][which]
        torch.testing.assert_close(self.decoder.logits.flatten(0, 1), expected, atol=1e-5, rtol=0)

    def expand(self, candidates: int) -> None:
        self.decoder.expand(candidates)
        self.sequences = self.sequences.repeat_interleave(candidates, dim=1)
        self.check()

    def keep(self, rows: Tensor) -> None:
        self.decoder.keep(rows)
        self.sequences = gather_rows(self.sequences, rows)
        self.check()

    def step(self, tokens: Tensor) -> None:
        self.decoder.step(tokens)
        self.sequences = torch.cat([self.sequences, tokens.unsqueeze(2)], dim=2)
        self.check()


# ---- against full forward passes ----

MODELS = {
    "transition of four, head of five": make_model(1, 1, 6, vocab_size=7, n_layer=1, n_head=3, n_embd=15),
    "head of eight": make_model(2, 1, 6, vocab_size=7, n_head=3, n_embd=24, hidden_act="relu", layer_norm_eps=0.3),
    "head of sixteen": make_model(
        3, 2, 5, vocab_size=100, n_head=3, n_embd=48, hidden_act="gelu_new", layer_norm_eps=1e-12
    ),
    "one head of 64": make_model(2, 2, 5, vocab_size=130, n_layer=1, n_head=1, n_embd=64, hidden_act="selu"),
    "transition of forty": make_model(30, 8, 3, vocab_size=100, n_layer=1, n_head=4, n_embd=12),
    "numbers": make_model(3, 2, 5, vocab_size=9, n_head=3, n_embd=24, numbers=20),
    "dynamics": make_model(3, 2, 5, vocab_size=9, n_head=3, n_embd=24, numbers=20, numerical_dynamics=True),
    "numbers, dimensions of one": make_model(1, 1, 6, vocab_size=7, n_layer=1, n_embd=10, numbers=3),
    "heads of one": make_model(1, 2, 6, vocab_size=1, n_layer=3, n_head=7, n_embd=7, hidden_act="gelu_new"),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
# Too many tokens to look the first layer up; and so near each other that rounding decides which is drawn.
LARGE = make_model(1, 1, 6, vocab_size=7500, numbers=16)


@pytest.mark.parametrize("model", [*MODELS.values(), LARGE], ids=[*MODELS.keys(), "large vocabulary"])
@pytest.mark.parametrize("length", [1, 0, -1], ids=["one token", "observation", "transition and observation"])
def test_logits_of_sequences_that_branch_up_to_the_last_token(model: TrajectoryTransformerModel, length: int) -> None:
    """Rows are expanded and kept at random, at any dimension; few tokens, so that some are equal for a while."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    few = torch.tensor([0, config.vocab_size - 1, config.vocab_size])  # the stop token among them
    length = length if length > 0 else config.observation_dim - length * config.transition_dim
    prefix = draw_tokens(3, length, below=config.vocab_size + 1)
    prefix[2] = prefix[0]
    compared, rows = Comparison(model, prefix), 1
    while compared.sequences.shape[2] < config.block_size:
        event = int(torch.randint(0, 3, (), generator=generator))
        if event == 0 and rows <= 4:
            compared.expand(3)
            rows *= 3
        elif event == 1:
            kept = max(1, rows - 2)
            compared.keep(torch.randint(0, rows, (3, kept), generator=generator))
            rows = kept
        compared.step(few[torch.randint(0, 3, (3, rows), generator=generator)])
    with pytest.raises(ValueError, match="block_size"):
        compared.decoder.step(torch.zeros(3, rows, dtype=torch.int64))


@every_model
def test_whole_windows_at_once(model: TrajectoryTransformerModel) -> None:
    """Prefixes as long as the model can see, some of which begin alike for whole transitions or parts of them."""
    config = model.config
    prefix = draw_tokens(9, config.block_size, below=config.vocab_size + 1)
    for row, same in enumerate((0, 1, config.transition_dim - 1, config.transition_dim, 2 * config.transition_dim + 1)):
        prefix[row, :same] = prefix[8, :same]
    prefix[5] = prefix[8]
    Comparison(model, prefix)
    with pytest.raises(ValueError, match="block_size"):
        NativeDecoder(model, transitions_of(model) + 1, False).prefill(draw_tokens(1, config.block_size + 1, below=1))


def test_equal_rows_that_part_at_each_token() -> None:
    """Eight equal rows, of which one diverges at every token, including observation and value tokens."""
    model = MODELS["head of eight"]
    compared = Comparison(model, draw_tokens(2, 2, below=7))
    compared.expand(8)
    for token in range(compared.sequences.shape[2], model.config.block_size):
        tokens = torch.full((2, 8), token % 7)
        tokens[:, token % 8] = 7 - token % 7
        compared.step(tokens)


@pytest.mark.parametrize("page", [5, 9, 10, 14, 19])
def test_one_sequence_kept_twice_and_continued_in_two_ways(page: int) -> None:
    """Twice the same sequence: other value tokens, then the same token; and other tokens at once."""
    model = make_model(2, 1, 8, n_embd=8)
    before = page // 5 * 5 + 4  # the next token is a value token
    compared = Comparison(model, draw_tokens(1, before, below=10))
    compared.expand(2)
    compared.keep(torch.tensor([[1, 1, 0, 1]]))
    compared.step(torch.tensor([[3, 3, 5, 9]]))
    compared.keep(torch.tensor([[3, 0, 0, 1, 2, 2]]))
    compared.step(torch.tensor([[1, 1, 2, 1, 1, 9]]))
    compared.keep(torch.tensor([[5, 5, 4, 0, 1]]))
    for _ in range(6):
        compared.step(torch.tensor([[1, 2, 1, 1, 1]]))


def test_more_rows_than_pass_through_at_once() -> None:
    model = MODELS["transition of four, head of five"]
    compared = Comparison(model, draw_tokens(3, 9, below=8))
    compared.expand(90)
    for seed in range(5):
        compared.step(draw_tokens(3, 90, below=8, seed=seed))
    compared.keep(torch.stack([torch.randperm(90)[:70] for _ in range(3)]))
    compared.step(draw_tokens(3, 70, below=8))


def test_tokens_of_any_integer_type() -> None:
    model = MODELS["head of eight"]
    compared = Comparison(model, draw_tokens(2, 7, below=7).int())
    compared.expand(2)
    compared.step(draw_tokens(2, 2, below=7).to(torch.uint8))


@pytest.mark.parametrize("token", [-1, 8, 2**40])
def test_tokens_that_do_not_exist_are_refused(token: int) -> None:
    decoder = NativeDecoder(MODELS["head of eight"], 6, False)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 7\]"):
        decoder.prefill(torch.tensor([[1, token, 2]]))


@pytest.mark.parametrize("token", [-1, 8, 10**8])
@pytest.mark.parametrize("sliding", [False, True])
def test_appended_tokens_that_do_not_exist_are_refused(token: int, sliding: bool) -> None:
    """And change nothing."""
    model = MODELS["head of eight"]
    compared = Comparison(model, draw_tokens(2, 7, below=7), NativeDecoder(model, 6, sliding))
    compared.expand(2)
    bad = torch.tensor([[1, 2], [3, token]])
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 7\]"):
        compared.decoder.step(bad)
    with pytest.raises(ValueError, match=r"tokens must lie in \[0, 7\]"):
        compared.decoder.extend(torch.rand(2, 3, 2), Choice(), bad)
    compared.step(draw_tokens(2, 2, below=7))


def test_tokens_for_other_rows_are_refused() -> None:
    decoder = NativeDecoder(MODELS["head of eight"], 6, False)
    decoder.prefill(draw_tokens(2, 7, below=7))
    decoder.expand(2)
    for call in (
        lambda: decoder.step(torch.zeros(2, 3, dtype=torch.int64)),
        lambda: decoder.extend(torch.rand(2, 3, 3), Choice()),
        lambda: decoder.extend(torch.rand(2, 3, 2), Choice(), torch.zeros(1, 2, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match=r"must be for \(2, 2\) environments and rows, not for "):
            call()


@pytest.mark.parametrize("row", [-1, 2, 10**9])
def test_rows_that_do_not_exist_are_refused_in_c(row: int) -> None:
    decoder = NativeDecoder(MODELS["head of eight"], 6, False)
    decoder.prefill(draw_tokens(2, 7, below=7))
    decoder._rows = torch.tensor([[0], [row]])
    for call in (
        lambda: decoder.step(torch.zeros(2, 1, dtype=torch.int64)),
        lambda: decoder.extend(torch.rand(2, 3, 1), Choice()),
        lambda: decoder.logits,
    ):
        with pytest.raises(IndexError, match="rows of the last call"):
            call()


def test_tokens_that_are_not_contiguous() -> None:
    model = MODELS["head of eight"]
    compared = Comparison(model, draw_tokens(7, 2, below=7).T)
    compared.expand(3)
    compared.step(draw_tokens(3, 2, below=7).T)
    compared.keep(draw_tokens(5, 2, below=3).T)
    compared.step(draw_tokens(5, 2, below=7).T)


def test_what_follows_a_refused_prefix() -> None:
    """A prefix that is too long leaves the decoder as it was."""
    model = MODELS["head of eight"]
    compared = Comparison(model, draw_tokens(2, 7, below=7), NativeDecoder(model, transitions_of(model) + 1, False))
    with pytest.raises(ValueError, match="block_size"):
        compared.decoder.prefill(draw_tokens(5, model.config.block_size + 1, below=7))
    compared.check()
    compared.step(draw_tokens(2, 1, below=7))


# ---- threads, and company ----


@every_model
def test_any_number_of_threads(model: TrajectoryTransformerModel) -> None:
    """One decoder, whose number of threads is changed between plans."""
    decoder = NativeDecoder(model, transitions_of(model), False)
    vocabulary = model.config.vocab_size + 1
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        compared = Comparison(model, draw_tokens(2, model.config.transition_dim + 1, below=vocabulary), decoder)
        compared.expand(3)
        for seed in range(3):
            compared.step(draw_tokens(2, 3, below=vocabulary, seed=seed))


def decode(model: TrajectoryTransformerModel, prefix: Tensor, tokens: Tensor, sliding: bool = False) -> Tensor:
    """Logits (environment, rows, time, vocabulary) of rows (environment, rows, time) that continue the prefix."""
    decoder = NativeDecoder(model, 3 if sliding else transitions_of(model), sliding)
    decoder.prefill(prefix)
    decoder.expand(tokens.shape[1])
    logits = []
    for token in tokens.unbind(2):
        decoder.step(token)
        logits.append(decoder.logits)
    return torch.stack(logits, dim=2)


@pytest.mark.parametrize("sliding", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_other_environments_change_no_bit(threads: int, sliding: bool) -> None:
    torch.set_num_threads(threads)
    model = MODELS["head of sixteen"]
    prefix, tokens = draw_tokens(5, 11, below=101), draw_tokens(5, 6, 12, below=101, seed=1)
    together = decode(model, prefix, tokens, sliding)
    for environment in range(5):
        one = slice(environment, environment + 1)
        assert torch.equal(decode(model, prefix[one], tokens[one], sliding), together[one])


@pytest.mark.parametrize("same", [3, 7, 8, 11])
def test_other_environments_that_begin_alike_change_no_bit(same: int) -> None:
    """The same prefix, or the same first transitions: sharing must not change results."""
    model = MODELS["head of sixteen"]
    prefix, tokens = draw_tokens(4, 11, below=101), draw_tokens(4, 6, 12, below=101, seed=1)
    prefix[:, :same] = prefix[0, :same]
    together = decode(model, prefix, tokens)
    for environment in range(4):
        one = slice(environment, environment + 1)
        assert torch.equal(decode(model, prefix[one], tokens[one]), together[one])


@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_other_rows_change_no_bit(rows: int) -> None:
    model = MODELS["head of sixteen"]
    prefix, tokens = draw_tokens(1, 11, below=101), draw_tokens(1, 6, 12, below=101, seed=1)
    together = decode(model, prefix, tokens)
    assert torch.equal(decode(model, prefix, tokens[:, -rows:]), together[:, -rows:])


@pytest.mark.parametrize("sliding", [False, True])
def test_the_number_of_threads_changes_no_bit(sliding: bool) -> None:
    model = MODELS["transition of four, head of five"]
    prefix, tokens = draw_tokens(3, 11, below=7), draw_tokens(3, 30, 12, below=7, seed=1)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(decode(model, prefix, tokens, sliding))
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_fewer_threads_than_asked_for_change_no_bit() -> None:
    """OpenMP, or a busy machine, may let one thread do the work of two."""
    script = (
        "import torch; torch.set_num_threads(2)\n"
        "from tests.planning.test_native_decoder import *\n"
        "prefix, tokens = draw_tokens(4, 11, below=101), draw_tokens(4, 6, 12, below=101, seed=1)\n"
        "logits = decode(MODELS['head of sixteen'], prefix, tokens)\n"
        "print(logits.numpy().tobytes().hex()[:4000], flush=True)"
    )
    results = [
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "OMP_THREAD_LIMIT": limit},
            capture_output=True,
            check=True,
        ).stdout
        for limit in ("1", "2")
    ]
    assert results[0] == results[1]
    assert len(results[0]) == 4001


# ---- sampling ----


CHOICES = [
    Choice(k, cdf, temperature)
    for k in (None, 1, 2, 5, 99)
    for cdf in (None, 0.0, 0.2, 0.6, 0.99)
    for temperature in (0.5, 1.0, 2.0)
]


def choose_nearly(logits: Tensor, uniforms: Tensor, choice: Choice) -> Tensor:
    """Tokens (variant, environment, rows) chosen if sums differ by rounding errors."""
    thresholds = (choice.cdf,) if not choice.cdf else (choice.cdf - 1e-5, choice.cdf, choice.cdf + 1e-5)
    return torch.stack(
        [
            choose(logits, (uniforms + offset).clamp(0.0, 1.0), dataclasses.replace(choice, cdf=threshold))
            for threshold in thresholds
            for offset in (-1e-5, 1e-5)
        ]
    )


@pytest.mark.parametrize("distinct", [31, 6], ids=["no ties", "ties"])
@pytest.mark.parametrize("scale", [0.0, 0.3, 2.0, 50.0])
def test_draws_equal_choose_on_the_same_logits(scale: float, distinct: int) -> None:
    """Equal rows of the head's weight make equal logits, zeros make all of them equal, large ones leave one token."""
    model = make_model(1, 1, 2, vocab_size=30, n_layer=1)
    normal = torch.randn(4, distinct, 16, generator=torch.Generator().manual_seed(1))
    model.head.weight.data = scale * normal[:, torch.arange(31) % distinct]
    decoder = NativeDecoder(model, 2, False)
    prefix, generator = draw_tokens(60, 2, below=31), torch.Generator().manual_seed(2)
    for choice in CHOICES:
        uniforms = torch.rand(60, 1, 10, generator=generator)
        uniforms[:, :, 0], uniforms[:, :, 1] = 2**-24, 1 - 2**-24
        decoder.prefill(prefix)
        decoder.expand(10)
        logits = decoder.logits
        drawn = decoder.extend(uniforms, choice)[:, :, 0]
        exact = choose(logits, uniforms[:, 0], choice)
        possible = choose_nearly(logits, uniforms[:, 0], choice)
        assert ((possible.amin(dim=0) <= drawn) & (drawn <= possible.amax(dim=0))).all()
        assert (drawn == exact).float().mean() > 0.99


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rows", "choice"),
    [(6, Choice(cdf=0.2)), pytest.param(150, Choice(k=2), id="a group that grows beyond a block")],
)
def test_several_tokens_drawn_at_once_are_those_drawn_one_by_one(rows: int, choice: Choice, threads: int) -> None:
    torch.set_num_threads(threads)
    model = MODELS["head of sixteen"]
    uniforms = torch.rand(3, 9, rows, generator=torch.Generator().manual_seed(0))
    drawn, logits = [], []
    for parts in (9, 4, 1):
        decoder = NativeDecoder(model, 5, False)
        decoder.prefill(draw_tokens(3, 10, below=101))
        decoder.expand(rows)
        drawn.append(torch.cat([decoder.extend(part, choice) for part in uniforms.split(parts, dim=1)], dim=2))
        logits.append(decoder.logits)
    for others, other_logits in zip(drawn[1:], logits[1:], strict=True):
        assert torch.equal(drawn[0], others)
        assert torch.equal(logits[0], other_logits)


@pytest.mark.parametrize("sliding", [False, True])
def test_tokens_drawn_behind_given_ones_are_those_drawn_after_a_step(sliding: bool) -> None:
    model = MODELS["transition of four, head of five"]
    uniforms, given = torch.rand(3, 2, 6, generator=torch.Generator().manual_seed(0)), draw_tokens(3, 6, below=8)
    for length in (8, 9, 10, 11):  # a window of twelve tokens slides not at all, behind the given token, at it
        drawn, logits = [], []
        for at_once in (True, False):
            decoder = NativeDecoder(model, 3, sliding)
            decoder.prefill(draw_tokens(3, length, below=8))
            decoder.expand(6)
            if not at_once:
                decoder.step(given)
            drawn.append(decoder.extend(uniforms, Choice(), given if at_once else None))
            logits.append(decoder.logits)
        assert torch.equal(drawn[0], drawn[1])
        assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("choice", [Choice(), Choice(k=1), Choice(k=3, cdf=0.4, temperature=2.0)], ids=str)
def test_log_likelihoods_change_no_draw(choice: Choice, threads: int) -> None:
    """They change no later result either; they are added to the given tensor, in any memory layout."""
    torch.set_num_threads(threads)
    model = MODELS["head of sixteen"]
    uniforms, drawn, logits = torch.rand(3, 9, 40, generator=torch.Generator().manual_seed(0)), [], []
    zeros, ones = torch.zeros(3, 40), torch.ones(40, 3).T
    for log_likelihoods in (None, zeros, ones):
        decoder = NativeDecoder(model, 5, False)
        decoder.prefill(draw_tokens(3, 10, below=101))
        decoder.expand(40)
        drawn.append(decoder.extend(uniforms, choice, None, log_likelihoods))
        logits.append(decoder.logits)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(logits[0], logits[1])
    assert (zeros < 0).all()
    torch.testing.assert_close(ones, zeros + 1, atol=1e-5, rtol=0)


@pytest.mark.parametrize("hidden_act", ["gelu", "relu", "selu", "gelu_new"])
def test_activations_of_large_and_small_numbers(hidden_act: str) -> None:
    """Also far outside the range in which they are curved; nothing else is added to the compared values."""
    model = make_model(2, 1, 3, n_embd=64, n_layer=1, hidden_act=hidden_act)
    block = model.blocks[0]
    assert isinstance(block, Block)
    block.l1.weight.data.mul_(0.1)
    block.l1.bias.data.copy_(torch.linspace(-60.0, 60.0, 256))
    block.l2.weight.data.mul_(0.01)
    Comparison(model, draw_tokens(2, 7, below=9))


# ---- weights that are not finite ----

BROKEN = 5  # a token of the first observation


@pytest.fixture
def broken() -> TrajectoryTransformerModel:
    """One token's embedding is NaN; the model itself does not predict that token."""
    model = make_model(2, 1, 6)
    model.head.weight.data[-1, BROKEN] = 0.0
    model.tok_emb.weight.data[BROKEN] = torch.nan
    return model


def make_planner(model: TrajectoryTransformerModel, **options: object) -> BeamPlanner:
    values = torch.randn(500, model.config.transition_dim, generator=torch.Generator().manual_seed(0))
    fitted = QuantileDiscretizer(model.config.vocab_size).fit(values)
    settings = {"horizon": 3, "beam_width": 6, "n_expand": 2, "context": 3, "discount": 0.9} | options
    return BeamPlanner(model, fitted, PlannerConfig(**settings))  # pyright: ignore[reportArgumentType]


def plan(planner: BeamPlanner, prefix: Tensor) -> SearchResult:
    return planner.plan(prefix, [torch.Generator().manual_seed(i) for i in range(len(prefix))])


def test_a_plan_where_a_token_is_broken_names_its_environment(broken: TrajectoryTransformerModel) -> None:
    mended = copy.deepcopy(broken)
    mended.tok_emb.weight.data[BROKEN] = 0.0
    planner, healthy = make_planner(broken, decoder="native"), make_planner(mended, decoder="native")
    prefix = draw_tokens(3, 7, below=5)
    prefix[1, 0] = BROKEN
    with pytest.raises(UserError, match=r"is finite in environment \[1\]"):
        plan(planner, prefix)
    found, expected = plan(planner, prefix[[0, 2]]), plan(healthy, prefix[[0, 2]])
    assert torch.equal(found.tokens, expected.tokens)
    assert torch.equal(found.score, expected.score)


def test_a_broken_environment_changes_no_bit_of_others(broken: TrajectoryTransformerModel) -> None:
    prefix, tokens = draw_tokens(3, 7, below=5), draw_tokens(3, 4, 10, below=9)
    prefix[1, 0] = BROKEN
    tokens[0::2] = tokens[0::2].where(tokens[0::2] != BROKEN, 0)
    together = decode(broken, prefix, tokens)
    assert together[1].isnan().all()
    for environment in (0, 2):
        one = slice(environment, environment + 1)
        assert torch.equal(together[one], decode(broken, prefix[one], tokens[one]))
        assert together[one].isfinite().all()


def test_nothing_broken_is_left_after_a_new_prefix(broken: TrajectoryTransformerModel) -> None:
    decoder = NativeDecoder(broken, 6, False)
    decoder.prefill(torch.full((4, 7), BROKEN))
    decoder.expand(10)
    for token in range(10):
        decoder.step(draw_tokens(4, 10, below=9, seed=token))
    assert decoder.logits.isnan().all()
    compared = Comparison(broken, draw_tokens(2, 7, below=5), decoder)
    compared.expand(3)
    for token in range(10):
        compared.step(draw_tokens(2, 3, below=5, seed=token))


@pytest.mark.parametrize("bad_row", [0, 1, 2])
def test_a_broken_row_leaves_its_sisters_alone(broken: TrajectoryTransformerModel, bad_row: int) -> None:
    """Candidates that are not finite are the worst of their environment; the others do not change."""
    tokens = torch.tensor([[[1, 2], [2, 3], [3, 4]]])
    tokens[0, bad_row, 0] = BROKEN
    logits = decode(broken, torch.tensor([[1, 2, 3, 4, 1]]), tokens)
    assert logits[0, bad_row].isnan().all()
    others = [row for row in range(3) if row != bad_row]
    assert logits[0, others].isfinite().all()


NAMES = ("attn.query", "attn.key", "attn.value", "attn.proj", "l1", "l2", "ln1", "ln2")


@pytest.mark.parametrize("hidden_act", ["gelu", "relu", "selu", "gelu_new"])
@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_not_finite_make_no_finite_logits(name: str, hidden_act: str) -> None:
    model = make_model(2, 1, 3, hidden_act=hidden_act)
    model.blocks[0].get_submodule(name).get_parameter("bias").data[:] = torch.nan
    decoder = NativeDecoder(model, 3, False)
    decoder.prefill(draw_tokens(1, 4, below=9))
    assert decoder.logits.isnan().all()


# ---- against the decoder in PyTorch ----


@pytest.mark.parametrize("window", ["growing", "sliding"])
@pytest.mark.parametrize(
    "options", [{}, {"k_obs": None}, {"cdf_act": None, "k_act": 3, "k_obs": 3}, {"cdf_act": 0.3, "temperature": 2.0}]
)
@every_model
def test_plans_equal_those_made_in_pytorch(
    model: TrajectoryTransformerModel, window: str, options: dict[str, object]
) -> None:
    if model.config.vocab_size == 1:
        model = make_model(1, 2, 6, vocab_size=2, n_layer=3, n_head=7, n_embd=7)
    transitions = transitions_of(model)
    context = 2 if window == "sliding" else transitions - 2
    prefix = draw_tokens(
        3, (context - 1) * model.config.transition_dim + model.config.observation_dim, below=model.config.vocab_size
    )
    shared = {"window": window, "context": context, "horizon": min(3, transitions)}
    native, eager = (plan(make_planner(model, decoder=d, **shared, **options), prefix) for d in ("native", "eager"))
    assert torch.equal(native.tokens, eager.tokens)
    torch.testing.assert_close(native.score, eager.score, atol=1e-5, rtol=1e-5)


# ---- where it is not available ----


@pytest.fixture
def fresh_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No library loaded, none compiled; compilers and folders may be set."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load_library.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    library.load_library.cache_clear()


def script(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def no_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.delenv("CC", raising=False)
    patch.setenv("PATH", str(folder))


def unknown_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CC", "no-such-compiler")


def failing_compiler(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CC", script(folder / "failing", "#!/bin/sh\necho out of order >&2\nexit 1\n"))


def no_program(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CC", script(folder / "text", "neither a script nor a program"))


def no_library(patch: pytest.MonkeyPatch, folder: Path) -> None:
    text = "#!/bin/sh\nwhile [ $# -gt 0 ]; do [ $1 = -o ] && echo no library > $2; shift; done\n"
    patch.setenv("CC", script(folder / "liar", text))


def no_folder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    (folder / "file").touch()
    patch.setenv("XDG_CACHE_HOME", str(folder / "file"))


def locked_folder(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    patch.setattr(
        c_library.Path, "exists", denied
    )  # as for a folder that may not be searched, even if tests run as root


def no_home(patch: pytest.MonkeyPatch, folder: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("XDG_CACHE_HOME")
    patch.setattr(c_library.Path, "home", homeless)


def other_openmp(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Like clang with its own OpenMP: the library needs functions that torch's OpenMP does not have."""
    source = folder / "other.c"
    source.write_text("void __kmpc_barrier(void); void tt_create(void) { __kmpc_barrier(); }")
    text = f"""#!/bin/sh
while [ $# -gt 1 ]; do shift; done
case $1 in *.so) exec cc -shared -fPIC {source} -o $1;; *) touch $1;; esac
"""
    patch.setenv("CC", script(folder / "llvm", text))


def no_openmp(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """As Apple's clang does."""
    patch.setenv("CC", script(folder / "apple", "#!/bin/sh\necho \"unsupported option '-fopenmp'\" >&2\nexit 1\n"))


def open_quotation(patch: pytest.MonkeyPatch, folder: Path) -> None:
    patch.setenv("CC", "gcc '-m64")


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        (other_openmp, "llvm needs LLVM's OpenMP, but torch uses GNU's: set CC=gcc"),
        (no_openmp, "apple cannot compile decode.c: unsupported option '-fopenmp'"),
        (open_quotation, "there is no C compiler: CC=gcc '-m64"),
        (no_compiler, r"there is no C compiler \(cc, gcc or clang\)"),
        (unknown_compiler, "there is no C compiler: CC=no-such-compiler"),
        (failing_compiler, "failing cannot compile decode.c: out of order"),
        (no_program, "text cannot be run: Exec format error"),
        (no_library, "decode-.*so cannot be loaded"),
        (no_folder, "file/trajectory_transformer cannot be written: Not a directory"),
        (locked_folder, "trajectory_transformer cannot be written: Permission denied"),
        (no_home, "no folder for the library .*Could not determine home directory.*set XDG_CACHE_HOME"),
    ],
)
def test_no_library(
    fresh_library: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture, obstacle, reason: str
) -> None:
    model = MODELS["head of eight"]
    prefix = draw_tokens(1, 2, below=7)
    with fresh_library.context() as patch:
        obstacle(patch, tmp_path)
        with pytest.raises(UserError, match=f"planner.decoder=native is not available: .*{reason}"):
            make_planner(model, decoder="native")
        with caplog.at_level(logging.WARNING):
            planner = make_planner(model, decoder="auto", context=1)
        [record] = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "planning in PyTorch, several times slower than natively" in record.message
        assert re.search(reason, record.message)
        found = plan(planner, prefix)
    assert torch.equal(found.tokens, plan(make_planner(model, decoder="eager", context=1), prefix).tokens)


def test_models_that_it_cannot_decode() -> None:
    """Other shapes, and other arithmetic, are in ``test_proof.py``."""
    for dtype in (torch.float64, torch.bfloat16):
        assert unavailable_reason(make_model(1, 1, 2).to(dtype)) == (
            f"it computes in float32 on the CPU, the model in {dtype} on cpu"
        )
    config = dataclasses.replace(make_model(1, 1, 2).config, hidden_act=torch.tanh)
    reason_of_tanh = unavailable_reason(TrajectoryTransformerModel(config))
    assert reason_of_tanh is not None
    assert reason_of_tanh.startswith(
        "it supports the activations gelu, relu, selu, gelu_new, not <built-in method tanh"
    )


@pytest.mark.parametrize("what", ["entries", "weights", "search"])
def test_other_layouts_in_c_are_refused(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """As with sources of another version: one entry of the shape too many, or weights or search fields missing."""
    if what == "weights":
        folded = decoder_module._folded_weights
        monkeypatch.setattr(decoder_module, "_folded_weights", lambda *arguments: folded(*arguments)[:-1])
    if what == "entries":
        loaded = library.load_library()

        class Longer:
            def __getattr__(self, name: str) -> Any:
                return getattr(loaded, name)

            def tt_create(self, shape: Any, entries: int, *rest: Any) -> Any:
                return loaded.tt_create(shape, entries + 1, *rest)

        monkeypatch.setattr(decoder_module, "load_library", Longer)

    class Shorter(ctypes.Structure):
        _fields_ = (("environments", ctypes.c_int32),)

    with pytest.raises(RuntimeError, match="C sources and its Python code are of different versions"):
        NativeDecoder(MODELS["head of eight"], 6, False).search(Shorter())


# ---- compiled once ----

LOAD = "from trajectory_transformer.planning.native.library import load_library; load_library()"


@pytest.mark.slow
def test_compiled_once_for_all_processes(fresh_library: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two processes at once, then a third: one library, nothing else in the folder, and the third compiles nothing."""
    compiled = library.load_library()._name
    log, folder = tmp_path / "log", tmp_path / "elsewhere"
    # A compiler that takes its time, writes in two parts, and counts.
    text = f"""#!/bin/sh
while [ $# -gt 1 ]; do shift; done
case $1 in *.so) echo linked >> {log}; head -c 1000 {compiled} > $1; sleep 1; cp {compiled} $1;; esac
"""
    fresh_library.setenv("CC", script(tmp_path / "slow", text))
    fresh_library.setenv("XDG_CACHE_HOME", str(folder))
    both = [subprocess.Popen([sys.executable, "-c", LOAD], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    [kept] = (folder / "trajectory_transformer").iterdir()
    written, linked = kept.stat().st_mtime_ns, log.read_text().split()
    assert kept.suffix == ".so"
    assert linked in (["linked"], ["linked"] * 2)
    library.load_library.cache_clear()
    assert library.load_library()._name == str(kept)
    assert [*(folder / "trajectory_transformer").iterdir()] == [kept]
    assert kept.stat().st_mtime_ns == written
    assert log.read_text().split() == linked


@pytest.mark.parametrize("options", ["-O1", "'-DNAME=two words' -O1"])
@pytest.mark.slow
def test_a_compiler_may_be_a_command(fresh_library: pytest.MonkeyPatch, tmp_path: Path, options: str) -> None:
    """A wrapper such as ccache, and options, quoted ones too, are given to it."""
    log = tmp_path / "log"
    wrapper = script(tmp_path / "wrapper", f'#!/bin/sh\nprintf "%s\\n" "$@" >> {log}\nexec "$@"\n')
    fresh_library.setenv("CC", f"{wrapper} cc {options}")
    library.load_library()
    assert {"cc", *shlex.split(options), "-shared"} <= set(log.read_text().splitlines())


@pytest.fixture(scope="module")
def compiled() -> str:
    """Path of the library of this machine's compiler."""
    return library.load_library()._name


@pytest.mark.parametrize("damage", ["cut short", "empty", "changed"])
def test_a_damaged_library_is_compiled_anew(
    compiled: str, fresh_library: pytest.MonkeyPatch, tmp_path: Path, damage: str
) -> None:
    copying = f"#!/bin/sh\nwhile [ $# -gt 1 ]; do shift; done\ncp {compiled} $1\n"
    fresh_library.setenv("CC", script(tmp_path / "copying", copying))
    path = Path(library.load_library()._name)
    library.load_library.cache_clear()
    contents = path.read_bytes()
    damaged = {"cut short": contents[:-4000], "empty": b"", "changed": contents[:9000] + b"!" + contents[9001:]}[damage]
    path.unlink()  # another file, as this process has loaded that one
    path.write_bytes(damaged)
    library.load_library()
    assert path.read_bytes() == contents
    assert damaged != contents
