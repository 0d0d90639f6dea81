"""The search against enumeration of a small table, and against the uncached oracle on a Transformer."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.planning.decoders import MakeDecoder, both_decoders, make_eager
from tests.planning.reference_planner import ReferencePlanner
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import QuantileDiscretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.planning.beam_search import beam_search, require_finite_scores
from trajectory_transformer.planning.decoder import BeamDecoder, gather_rows
from trajectory_transformer.planning.planner import BeamPlanner

VOCABULARY = 3


class TableDecoder(BeamDecoder):
    """Next-token logits looked up by (position, this transition's tokens so far): a model small enough to enumerate.

    Actions are equally likely; everything else is random but fixed. Reward and return-to-go come at the end: until the
    last transition their distributions do not depend on the history, so that no sequence is pruned for its score.
    """

    def __init__(self, layout: TransitionLayout, horizon: int) -> None:
        generator = torch.Generator().manual_seed(4)
        self.layout = layout
        shape = (horizon * layout.transition_dim + 1, VOCABULARY**layout.transition_dim, VOCABULARY + 1)
        self.table = torch.randn(shape, generator=generator)
        for position in range(shape[0]):
            if layout.action.start <= position % layout.transition_dim < layout.action.stop:
                self.table[position] = torch.tensor([0.0] * VOCABULARY + [-torch.inf])
            elif position % layout.transition_dim >= layout.reward and position // layout.transition_dim < horizon - 1:
                self.table[position] = self.table[position, 0]

    def after(self, history: Tensor) -> Tensor:
        position = history.shape[-1]
        recent = history[..., -self.layout.transition_dim :]
        weights = VOCABULARY ** torch.arange(recent.shape[-1])
        return self.table[position, (recent.clamp(max=VOCABULARY - 1) * weights).sum(-1)]

    def prefill(self, tokens: Tensor) -> None:
        self.history = tokens.unsqueeze(1)

    def expand(self, candidates: int) -> None:
        self.history = self.history.repeat_interleave(candidates, dim=1)

    def keep(self, rows: Tensor) -> None:
        self.history = gather_rows(self.history, rows)

    def step(self, tokens: Tensor) -> None:
        self.history = torch.cat([self.history, tokens.unsqueeze(2)], dim=2)

    @property
    def logits(self) -> Tensor:
        return self.after(self.history)


CENTERS = torch.tensor([[-1.0, 0.5, 2.0], [-3.0, 0.0, 4.0]])  # of reward and return-to-go bins


def estimate(probabilities: Tensor) -> Tensor:
    return (probabilities[..., :-1] * CENTERS).sum(dim=-1)


def score_of(table: TableDecoder, observation: int, actions: tuple[int, ...], discount: float) -> float:
    """The score of an action sequence; all other tokens are the model's greedy ones."""
    sequence, rewards, value = [observation], [], 0.0
    for t, action in enumerate(actions):
        sequence.append(action)
        probabilities = table.after(torch.tensor(sequence)).softmax(0)
        rewards.append(float(probabilities[:-1] @ CENTERS[0]))
        sequence.append(int(probabilities.argmax()))
        probabilities = table.after(torch.tensor(sequence)).softmax(0)
        value = float(probabilities[:-1] @ CENTERS[1])
        sequence.append(int(probabilities.argmax()))
        if t < len(actions) - 1:
            sequence.append(int(table.after(torch.tensor(sequence)).argmax()))
    return sum(discount**i * r for i, r in enumerate([*rewards, value]))


def test_exhaustive_beam_finds_the_enumerated_optimum() -> None:
    layout, horizon, discount = TransitionLayout(1, 1), 3, 0.9
    table = TableDecoder(layout, horizon)
    width = VOCABULARY**horizon
    settings = PlannerConfig(horizon=horizon, beam_width=width, n_expand=VOCABULARY, cdf_act=None, discount=discount)
    # Candidate c takes its last base-3 digit as action. Equal scores keep the first candidates, which continue each
    # of the first sequences kept before in all three ways: after three transitions, all 27.
    digits = (torch.arange(VOCABULARY * width) % VOCABULARY).expand(horizon, -1)
    u = ((digits + 0.5) / VOCABULARY).unsqueeze(1)
    uniforms = u.expand(VOCABULARY, horizon, layout.transition_dim, -1)
    prefix = torch.arange(VOCABULARY).unsqueeze(1)  # one environment for each first observation
    found = beam_search(table, prefix, layout, settings, estimate, uniforms)
    for environment in range(VOCABULARY):
        all_actions = itertools.product(range(VOCABULARY), repeat=horizon)
        scores = {actions: score_of(table, environment, actions, discount) for actions in all_actions}
        assert len(set(scores.values())) > VOCABULARY
        assert found.score[environment].item() == pytest.approx(max(scores.values()), abs=1e-5)
        chosen = tuple(found.tokens[environment, :, layout.action.start].tolist())
        assert scores[chosen] == pytest.approx(max(scores.values()), abs=1e-5)


@both_decoders
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": "sliding", "horizon": 5, "context": 3},
        {"cdf_act": None, "k_act": 4, "temperature": 1.5},
        {"k_obs": 3, "n_expand": 3, "beam_width": 3},
        {"k_obs": None, "cdf_act": 0.3, "k_act": 5, "context": 1, "horizon": 2},
        {"beam_width": 1, "n_expand": 1},
        {"beam_width": 1, "n_expand": 3, "window": "sliding", "horizon": 5, "context": 2},
    ],
)
def test_batched_cached_search_equals_the_oracle(
    model: TrajectoryTransformerModel, make_decoder: MakeDecoder, options: dict
) -> None:
    settings = PlannerConfig(**({"horizon": 4, "beam_width": 5, "n_expand": 2, "discount": 0.95} | options))
    layout, environments = model.layout, 3
    generator = torch.Generator().manual_seed(3)
    centers = torch.randn(layout.transition_dim, 12, generator=generator)
    prefix = torch.randint(0, 12, (environments, (settings.context - 1) * 7 + 3), generator=generator)
    shape = (environments, settings.horizon, layout.transition_dim, settings.n_expand * settings.beam_width)
    uniforms = torch.rand(shape, generator=generator)
    sliding = settings.window == "sliding"
    decoder = make_decoder(model, settings.context if sliding else 8, sliding)

    def expected(probabilities: Tensor) -> Tensor:
        return (probabilities[..., :-1] * centers[layout.reward : layout.value + 1]).sum(dim=-1)

    found = beam_search(decoder, prefix, layout, settings, expected, uniforms)
    oracle = ReferencePlanner(model, settings, centers)
    for environment in range(environments):
        plan = oracle.plan(prefix[environment].tolist(), uniforms[environment])
        assert found.score[environment].item() == pytest.approx(plan.score, abs=1e-5)
        torch.testing.assert_close(found.tokens[environment], plan.tokens)
        kept = [gather_rows(step.tokens, step.kept)[environment].tolist() for step in found.steps]
        assert kept == plan.kept


def test_scores_that_are_not_finite_are_refused(model: TrajectoryTransformerModel) -> None:
    settings = PlannerConfig(horizon=1, beam_width=2, discount=0.9)

    def broken(probabilities: Tensor) -> Tensor:
        return probabilities[..., 0] * torch.tensor([torch.nan, 1.0])

    found = beam_search(
        make_eager(model, 8, False), torch.zeros(1, 3, dtype=torch.int64), model.layout, settings, broken,
        torch.rand(1, 1, 7, 4),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"no prediction .* is finite in environment \[0\]"):
        require_finite_scores(found.score)


@pytest.mark.parametrize("percentile", ["mean", 0.1, 0.9])
def test_reward_and_return_estimates_follow_the_percentile(
    model: TrajectoryTransformerModel, percentile: float | str
) -> None:
    """One transition, scored by hand from the model's own distributions."""
    layout = model.layout
    fitted = QuantileDiscretizer(12).fit(torch.randn(200, 7, generator=torch.Generator().manual_seed(0)))
    settings = PlannerConfig(horizon=1, beam_width=1, n_expand=1, context=1, discount=0.9, percentile=percentile)
    prefix = torch.tensor([[1, 2, 3]])
    found = BeamPlanner(model, fitted, settings).plan(prefix, [torch.Generator().manual_seed(0)])
    sequence, estimates = [*prefix[0].tolist(), *found.tokens[0, 0, layout.action].tolist()], []
    for column in (layout.reward, layout.value):
        with torch.no_grad():
            bins = model(torch.tensor([sequence]), use_cache=False).logits[0, -1].softmax(0)
        centers = (fitted.edges[column, 1:] + fitted.edges[column, :-1]) / 2
        if percentile == "mean":
            estimates.append(float(bins[:-1] @ centers))
        else:
            mass = bins[:-1].cumsum(0)
            estimates.append(float(centers[int((mass >= float(percentile) * mass[-1]).nonzero()[0])]))
        sequence.append(int(bins.argmax()))
    assert found.score.item() == pytest.approx(estimates[0] + 0.9 * estimates[1], abs=1e-5)
