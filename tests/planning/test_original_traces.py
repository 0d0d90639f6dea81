"""Our search against the original's, step by step: its sampled tokens are replayed, and the rest must be equal."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.golden.planning import SEARCHES, Search
from tests.golden.seeded import original_weights
from tests.planning.decoders import MakeDecoder, both_decoders
from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.planning.beam_search import SearchResult, SearchStep, beam_search
from trajectory_transformer.planning.decoder import BeamDecoder, gather_rows
from trajectory_transformer.planning.sampling import Choice

RECORDED = np.load(Path(__file__).parent.parent / "golden" / "planning.npz", allow_pickle=False)


def recorded(search: Search, name: str) -> Tensor:
    return torch.from_numpy(RECORDED[f"{search.name}/{name}"].astype(np.float32 if name in ESTIMATES else np.int64))


ESTIMATES = ("rewards", "values")


def ours(search: Search, t: int, candidates: Tensor) -> Tensor:
    """(candidates, …) in the original's order, continuation-major, as rows in ours, beam-major."""
    if t == 0:
        return candidates  # all continue the same prefix
    expand, width = search.settings.n_expand, search.settings.beam_width
    return candidates.unflatten(0, (expand, width)).transpose(0, 1).flatten(0, 1)


def load_model(search: Search) -> TrajectoryTransformerModel:
    case = search.model
    model = TrajectoryTransformerModel(
        TrajectoryTransformerConfig(
            vocab_size=case.vocab_size, block_size=case.block_size, observation_dim=case.observation_dim,
            action_dim=case.action_dim, transition_dim=case.transition_dim, n_layer=case.n_layer, n_head=case.n_head,
            n_embd=case.n_embd,
        )
    )  # fmt: skip
    names = {".mlp.0.": ".l1.", ".mlp.2.": ".l2."}
    weights = original_weights(case)
    for old, new in names.items():
        weights = {name.replace(old, new): value for name, value in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


class Replay(BeamDecoder):
    """A decoder that returns the original's tokens instead of drawing."""

    def __init__(self, decoder: BeamDecoder, draws: list[Tensor]) -> None:
        self.decoder, self.draws = decoder, draws

    def prefill(self, tokens: Tensor) -> None:
        self.decoder.prefill(tokens)

    def expand(self, candidates: int) -> None:
        self.decoder.expand(candidates)

    def keep(self, rows: Tensor) -> None:
        self.decoder.keep(rows)

    def step(self, tokens: Tensor) -> None:
        self.decoder.step(tokens)

    @property
    def logits(self) -> Tensor:
        return self.decoder.logits

    def extend(
        self, uniforms: Tensor, choice: Choice, given: Tensor | None = None, log_likelihoods: Tensor | None = None
    ) -> Tensor:
        if given is not None:
            self.step(given)
        drawn = self.draws.pop(0).unsqueeze(0)
        assert drawn.shape == uniforms.transpose(1, 2).shape
        for tokens in drawn.unbind(2):
            self.step(tokens)
        return drawn


def shape_of_uniforms(search: Search) -> tuple[int, ...]:
    settings = search.settings
    return 1, settings.horizon, search.model.transition_dim, settings.n_expand * settings.beam_width


def replay(
    search: Search,
    make_decoder: MakeDecoder,
    device: str = "cpu",
    kind: type[Replay] = Replay,
    uniforms: Tensor | None = None,
) -> SearchResult:
    """Run our search with the original's tokens instead of draws; the result is on the CPU."""
    actions, observations = (recorded(search, name).to(device) for name in ("actions", "observations"))
    draws: list[Tensor] = []
    for t in range(search.settings.horizon):
        draws.append(ours(search, t, actions[t]))
        if t < search.settings.horizon - 1:
            draws.append(observations[t])
    settings = search.settings
    centers = torch.from_numpy(search.centers()).to(device)
    sliding = settings.window == "sliding"
    model = load_model(search).to(device)
    uniforms = torch.zeros(shape_of_uniforms(search), device=device) if uniforms is None else uniforms
    found = beam_search(
        kind(make_decoder(model, settings.context if sliding else 10, sliding), draws),
        torch.from_numpy(search.prefix()).unsqueeze(0).to(device),
        model.layout,
        settings,
        lambda probabilities: (probabilities[..., :-1] * centers).sum(dim=-1),
        uniforms,
    )
    assert not draws
    steps = [SearchStep(*(value.cpu() for value in step.tensors.values())) for step in found.steps]
    return replace(found, tokens=found.tokens.cpu(), steps=steps)


def require_the_original_s(search: Search, found: SearchResult) -> None:
    """Rewards and values to 1e-5; tokens, kept beams and the best sequence as recorded."""
    for t, step in enumerate(found.steps):
        torch.testing.assert_close(step.rewards[0], ours(search, t, recorded(search, "rewards")[t]), atol=1e-5, rtol=0)
        torch.testing.assert_close(step.values[0], ours(search, t, recorded(search, "values")[t]), atol=1e-5, rtol=0)
        # The original breaks ties between copies of a sequence at random: kept sequences are compared by content.
        rows = torch.arange(len(recorded(search, "rewards")[t]))
        ours_of = ours(search, t, rows).argsort()
        kept = ours_of[recorded(search, "kept")[t]].unsqueeze(0)
        assert torch.equal(gather_rows(step.tokens, step.kept), gather_rows(step.tokens, kept))
        tokens = torch.cat([recorded(search, "actions")[t], recorded(search, "reward_tokens")[t]], dim=1)
        assert torch.equal(step.tokens[0], ours(search, t, tokens))
    assert torch.equal(found.tokens[0], recorded(search, "best"))


@both_decoders
@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_every_step_is_the_original_s(search: Search, make_decoder: MakeDecoder) -> None:
    require_the_original_s(search, replay(search, make_decoder))


def test_some_windows_slide() -> None:
    """The cases contain both plans that outgrow the context and plans that do not."""
    outgrown = {s.settings.window: s.past + s.settings.horizon > s.settings.context for s in SEARCHES}
    assert outgrown == {"growing": True, "sliding": True}
    assert all(s.past + s.settings.horizon <= 10 for s in SEARCHES if s.settings.window == "growing")
