"""The search in the kernel against the oracle, the search in Python and the original's own traces."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.golden.planning import SEARCHES, Search
from tests.planning.decoders import make_model, needs_compiler
from tests.planning.reference_planner import ReferencePlanner
from tests.planning.test_native_decoder import draw_tokens
from tests.planning.test_original_traces import Replay, load_model, replay, require_the_original_s, shape_of_uniforms
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.planning.beam_search import SearchResult, beam_search, require_finite_scores
from trajectory_transformer.planning.decoder import gather_rows
from trajectory_transformer.planning.native.decoder import NativeDecoder
from trajectory_transformer.planning.native.search import native_search
from trajectory_transformer.planning.sampling import Choice

pytestmark = [needs_compiler, pytest.mark.usefixtures("one_thread")]
TRANSITIONS = 6
# Few tokens, so that many beams are equal for a while; many, so that hardly any are.
MODELS = {
    "few tokens": make_model(2, 1, TRANSITIONS, vocab_size=3),
    "many tokens": make_model(3, 2, TRANSITIONS, vocab_size=60, n_head=3, n_embd=48, hidden_act="gelu_new"),
    "numbers": make_model(2, 2, TRANSITIONS, vocab_size=5, numbers=33),
    "dynamics": make_model(2, 2, TRANSITIONS, vocab_size=5, numbers=33, numerical_dynamics=True),
    "one observation": make_model(1, 1, TRANSITIONS, vocab_size=9, n_layer=1),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())


def make_inputs(
    model: TrajectoryTransformerModel, settings: PlannerConfig, environments: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefixes, the bins' real values, and uniform numbers."""
    config, generator = model.config, torch.Generator().manual_seed(3)
    length = (settings.context - 1) * config.transition_dim + config.observation_dim
    centers = torch.randn(config.transition_dim, config.vocab_size, generator=generator)
    shape = (environments, settings.horizon, config.transition_dim, settings.n_expand * settings.beam_width)
    return draw_tokens(environments, length, below=config.vocab_size), centers, torch.rand(shape, generator=generator)


def make_settings(**options: object) -> PlannerConfig:
    shared = {"horizon": 3, "beam_width": 5, "n_expand": 2, "context": 3, "discount": 0.9}
    return PlannerConfig(**(shared | options))  # pyright: ignore[reportArgumentType]


def search_natively(
    model: TrajectoryTransformerModel, settings: PlannerConfig, prefix: Tensor, centers: Tensor, uniforms: Tensor
) -> SearchResult:
    decoder = NativeDecoder(model, TRANSITIONS, False)
    return native_search(decoder, prefix, model.layout, settings, centers, uniforms)


def parts_of(found: SearchResult) -> list[Tensor]:
    """All tensors of a result; their first dimension is the environment."""
    return [
        found.tokens,
        found.rewards,
        found.value,
        found.score,
        *(v for step in found.steps for v in step.tensors.values()),
    ]


@every_model
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize(
    ("environments", "options"),
    [
        (1, {}),
        (2, {"k_obs": None, "n_expand": 3}),
        (3, {"beam_width": 20, "n_expand": 5}),  # a part for each thread, or candidates in several groups
        (5, {"beam_width": 40, "horizon": 2, "cdf_act": 0.3, "k_obs": 2}),
        (9, {"beam_width": 9, "temperature": 1.7, "k_act": 2, "cdf_act": None}),
        (13, {"horizon": 2}),  # several environments to a part, whatever the processor, and some left over
        (2, {"beam_width": 1, "n_expand": 1, "horizon": 4, "context": 1}),
        (2, {"horizon": 1, "beam_width": 70, "n_expand": 1}),
        (3, {"act": "conditioned"}),
    ],
)
def test_it_is_the_search_in_python(
    model: TrajectoryTransformerModel, environments: int, options: dict[str, object], threads: int
) -> None:
    """All results are compared: both use the same decoder, but estimate and rank separately."""
    torch.set_num_threads(threads)
    settings = make_settings(**options)
    prefix, centers, uniforms = make_inputs(model, settings, environments)
    layout = model.layout

    def expected(probabilities: Tensor) -> Tensor:
        return (probabilities[..., :-1] * centers[layout.reward : layout.value + 1]).sum(dim=-1)

    decoder = NativeDecoder(model, TRANSITIONS, False)
    found = native_search(decoder, prefix, layout, settings, centers, uniforms)
    wanted = beam_search(decoder, prefix, layout, settings, expected, uniforms)
    assert found.beam_width == wanted.beam_width
    assert not found.late
    assert len(parts_of(found)) == 4 + settings.horizon * (5 if settings.act == "conditioned" else 4)
    for ours, theirs in zip(parts_of(found), parts_of(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=0)


@every_model
@pytest.mark.parametrize("percentile", ["mean", 0.2, 0.9])
def test_it_is_the_oracle_s(model: TrajectoryTransformerModel, percentile: float | str) -> None:
    """Against a search without cache or batch; percentiles by their definition."""
    settings = make_settings(percentile=percentile, k_obs=3)
    prefix, centers, uniforms = make_inputs(model, settings, 3)
    found = search_natively(model, settings, prefix, centers, uniforms)
    oracle = ReferencePlanner(model, settings, centers)
    if percentile != "mean":
        oracle.estimate = PercentileOf(oracle, float(percentile))  # pyright: ignore[reportAttributeAccessIssue]
    for environment in range(3):
        plan = oracle.plan(prefix[environment].tolist(), uniforms[environment])
        assert found.score[environment].item() == pytest.approx(plan.score, abs=1e-5)
        assert found.rewards[environment].tolist() == pytest.approx(plan.rewards, abs=1e-5)
        assert found.value[environment].item() == pytest.approx(plan.value, abs=1e-5)
        assert torch.equal(found.tokens[environment], plan.tokens)
        kept = [gather_rows(step.tokens, step.kept)[environment].tolist() for step in found.steps]
        assert kept == plan.kept


class PercentileOf:
    """Replaces the oracle's estimates: the first bin at which the cumulative probability reaches a fraction."""

    def __init__(self, oracle: ReferencePlanner, fraction: float) -> None:
        self.oracle, self.fraction = oracle, fraction

    def __call__(self, sequences: list[list[int]], dimension: int) -> tuple[list[float], list[list[int]]]:
        probabilities = self.oracle.logits(sequences).softmax(-1)
        estimates = []
        for bins in probabilities[:, :-1].tolist():
            reached = (i for i in range(len(bins)) if sum(bins[: i + 1]) >= self.fraction * sum(bins))
            estimates.append(float(self.oracle.centers[dimension, next(reached)]))
        tokens = probabilities.argmax(-1).tolist()
        return estimates, [[*sequence, token] for sequence, token in zip(sequences, tokens, strict=True)]


# ---- the original's traces ----


class Recording(Replay):
    """Replaces the uniform numbers by numbers that draw the original's tokens."""

    def extend(
        self, uniforms: Tensor, choice: Choice, given: Tensor | None = None, log_likelihoods: Tensor | None = None
    ) -> Tensor:
        if given is not None:
            self.step(given)
        drawn = self.draws.pop(0).unsqueeze(0)
        for i, tokens in enumerate(drawn.unbind(2)):
            mass = self.logits.softmax(dim=-1).cumsum(dim=-1)
            below = torch.cat([torch.zeros_like(mass[..., :1]), mass], dim=-1)
            ends = (below.gather(-1, (tokens + end).unsqueeze(-1)).squeeze(-1) for end in (0, 1))
            uniforms[:, i] = sum(ends) / (2 * mass[..., -1])
            self.step(tokens)
        return drawn


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "search", [s for s in SEARCHES if s.settings.window == "growing"], ids=lambda search: search.name
)
def test_every_step_is_the_original_s(search: Search, threads: int) -> None:
    """Its uniform numbers draw the original's tokens: the middle of each token's share of the unfiltered mass."""
    torch.set_num_threads(threads)
    model, uniforms = load_model(search), torch.zeros(shape_of_uniforms(search))
    replay(search, NativeDecoder, kind=Recording, uniforms=uniforms)
    centers = torch.zeros(model.config.transition_dim, model.config.vocab_size)
    centers[-2:] = torch.from_numpy(search.centers())
    found = native_search(
        NativeDecoder(model, 10, False), torch.from_numpy(search.prefix()).unsqueeze(0), model.layout,
        replace(search.settings, cdf_act=None, k_act=None, k_obs=None, temperature=1.0), centers, uniforms,
    )  # fmt: skip
    require_the_original_s(search, found)


# ---- threads, company and what is broken ----


@pytest.mark.parametrize("width", [5, 20], ids=["several environments to a part", "one to a part"])
@every_model
def test_neither_threads_nor_other_environments_change_a_bit(model: TrajectoryTransformerModel, width: int) -> None:
    """Threads search parts of the environments, or share one environment; results are the same."""
    settings = make_settings(beam_width=width, n_expand=3)
    prefix, centers, uniforms = make_inputs(model, settings, 13)
    torch.set_num_threads(1)
    alone = [search_natively(model, settings, prefix[e : e + 1], centers, uniforms[e : e + 1]) for e in range(13)]
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        for count in (1, 2, 3, 7, 13):
            together = parts_of(search_natively(model, settings, prefix[:count], centers, uniforms[:count]))
            for i, of_all in enumerate(together):
                assert torch.equal(of_all, torch.cat([parts_of(found)[i] for found in alone[:count]]))


def test_one_decoder_finds_plans_of_any_number_of_environments_in_turn() -> None:
    """Neither an earlier search nor tokens appended in between affect the next search."""
    torch.set_num_threads(2)
    model, settings = MODELS["few tokens"], make_settings(beam_width=40)
    decoder = NativeDecoder(model, TRANSITIONS, False)
    prefix, centers, uniforms = make_inputs(model, settings, 6)
    for count in (6, 1, 5, 2, 6):
        found = native_search(decoder, prefix[:count], model.layout, settings, centers, uniforms[:count])
        fresh = search_natively(model, settings, prefix[:count], centers, uniforms[:count])
        assert all(torch.equal(*parts) for parts in zip(parts_of(found), parts_of(fresh), strict=True))
        decoder.prefill(prefix[:count])
        decoder.expand(3)
        decoder.step(torch.zeros(count, 3))
    assert decoder.seconds[0] > 0
    assert decoder.seconds[1] > 0


BROKEN = 2  # a token of the first observation


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("percentile", ["mean", 0.5])
def test_a_broken_environment_is_told_from_the_others(percentile: float | str, threads: int) -> None:
    """Its scores are -inf; the others' results are the same as without it."""
    torch.set_num_threads(threads)
    model = make_model(2, 1, TRANSITIONS, vocab_size=9)
    model.head.weight.data[-1, BROKEN] = 0.0  # the model itself does not predict it
    model.tok_emb.weight.data[BROKEN] = torch.nan
    settings = make_settings(percentile=percentile, beam_width=40)
    prefix, centers, uniforms = make_inputs(model, settings, 4)
    prefix = prefix.where(prefix != BROKEN, 0)
    healthy = [0, 2, 3]
    wanted = search_natively(model, settings, prefix[healthy], centers, uniforms[healthy])
    assert wanted.score.isfinite().all()
    prefix[1, 0] = BROKEN
    found = search_natively(model, settings, prefix, centers, uniforms)
    assert found.score[1] == -torch.inf
    with pytest.raises(UserError, match=r"is finite in environment \[1\]"):
        require_finite_scores(found.score)
    for ours, theirs in zip(parts_of(found), parts_of(wanted), strict=True):
        assert torch.equal(ours[healthy], theirs)


def test_candidates_that_are_not_finite_come_last() -> None:
    """An action after which nothing is finite is never planned, as long as there are others."""
    model = make_model(2, 1, TRANSITIONS, vocab_size=9)
    dimension, token = 2, 4
    model.tok_emb.weight.data[dimension * 9 + token] = torch.nan
    settings = make_settings(cdf_act=None, beam_width=6, n_expand=2)
    prefix, centers, uniforms = make_inputs(model, settings, 4)
    found = search_natively(model, settings, prefix % 4, centers, uniforms)
    drawn = torch.cat([step.tokens[:, :, 0].flatten() for step in found.steps])
    assert (drawn == token).any()
    for step in found.steps:
        broken = step.tokens[:, :, 0] == token
        assert (step.rewards.isnan() == broken).all()
        ranks = broken.gather(1, step.kept).int()
        assert (ranks.diff(dim=1) >= 0).all()
    assert found.score.isfinite().all()
    assert (found.tokens[:, :, dimension] != token).all()


def test_equal_candidates_keep_their_order() -> None:
    """All are copies of one sequence: only the likeliest tokens are drawn."""
    settings = make_settings(k_act=1, beam_width=7, n_expand=3)
    found = search_natively(MODELS["few tokens"], settings, *make_inputs(MODELS["few tokens"], settings, 2))
    for step in found.steps:
        assert torch.equal(step.kept, torch.arange(7).expand(2, -1))


def test_what_does_not_fit_is_refused() -> None:
    model = MODELS["few tokens"]
    settings = make_settings()
    prefix, centers, uniforms = make_inputs(model, settings, 2)
    for wrong in (-1, 4, 2**40):
        broken = prefix.clone()
        broken[1, 3] = wrong
        with pytest.raises(ValueError, match=r"tokens must lie in \[0, 3\]"):
            search_natively(model, settings, broken, centers, uniforms)
    longer = make_settings(context=4, horizon=4)
    with pytest.raises(ValueError, match="block_size, 29"):
        search_natively(model, longer, *make_inputs(model, longer, 2))
    assert search_natively(model, settings, prefix, centers, uniforms).score.isfinite().all()


class Enough(Exception):
    """The exception of the signal handler."""


@contextmanager
def ticking(handle: Callable[[], None]) -> Iterator[None]:
    """Signals this process a hundred times a second."""
    before = signal.signal(signal.SIGALRM, lambda *_: handle())
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    ("environments", "width", "threads"),
    [(1, 30_000, 1), (1, 30_000, 2), (3, 10_000, 2), (10_000, None, 1), (10_000, None, 2)],  # None: a prefix only
)
def test_signals_are_seen_in_the_middle_of_a_call(environments: int, width: int | None, threads: int) -> None:
    """The handler is called repeatedly; when it raises, the call ends, and the next call works."""
    torch.set_num_threads(threads)
    model, calls = MODELS["many tokens"], []
    small, large = make_settings(), make_settings(beam_width=width or 1, n_expand=1)
    decoder = NativeDecoder(model, TRANSITIONS, False)
    prefix, centers, uniforms = make_inputs(model, small, 2)
    wanted = native_search(decoder, prefix, model.layout, small, centers, uniforms)
    inputs = make_inputs(model, large, environments)

    def handle() -> None:
        calls.append(0)
        if len(calls) == 2:
            raise Enough

    def call() -> None:
        if width is None:
            decoder.prefill(inputs[0])
        else:
            native_search(decoder, inputs[0], model.layout, large, *inputs[1:])

    with pytest.raises(Enough), ticking(handle):
        call()
    with pytest.raises(IndexError, match="rows must be rows of the last call"):
        decoder._call(decoder._library.tt_step, torch.zeros(1, dtype=torch.int64), 1, torch.zeros(1, dtype=torch.int64))
    found = native_search(decoder, prefix, model.layout, small, centers, uniforms)
    for ours, theirs in zip(parts_of(found), parts_of(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_signals_are_the_main_thread_s() -> None:
    """A search in another thread is not interrupted, and the main thread can run Python meanwhile."""
    model, settings, seen = MODELS["many tokens"], make_settings(beam_width=3_000), []
    inputs = make_inputs(model, settings, 1)
    found: list[SearchResult] = []
    searching = threading.Thread(target=lambda: found.append(search_natively(model, settings, *inputs)))
    with ticking(lambda: seen.append(searching.is_alive())):
        searching.start()
        searching.join()
    assert any(seen)
    wanted = search_natively(model, settings, *inputs)
    for ours, theirs in zip(parts_of(found[0]), parts_of(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
