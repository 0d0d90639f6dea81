"""Mistakes in the code of an objective or a block, found on random numbers."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planning.conftest import ACTION_DIM, OBSERVATION_DIM, PLANNER
from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.configuration import ModelConfig, PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.layout import TransitionLayout
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import Block, TrajectoryTransformer
from trajectory_transformer.planning.objectives import (
    Candidates,
    Goal,
    Likelihood,
    Objective,
    PlanningContext,
    Return,
    WeightedSum,
)
from trajectory_transformer.planning.trial import try_model, try_objective

MODULE = """\
import torch
from trajectory_transformer.planning.objectives import Objective, Return


class Misspelt(Objective):
    def __call__(self, candidates):
        return candidates.value - candidates.effort


class Nested(Objective):
    def __call__(self, candidates):
        return candidates.value + penalty(candidates.actions)


def penalty(actions):
    return torch.ones(3) @ actions


class Late(Return):
    def __call__(self, candidates):
        if candidates.t > 0:
            raise KeyError("late")
        return super().__call__(candidates)


class Flat(Objective):
    def __call__(self, candidates):
        return candidates.value.sum(dim=1)


class Number(Objective):
    def __call__(self, candidates):
        return 0.0


class Root(Objective):
    def __call__(self, candidates):
        return (-candidates.actions.square().sum(-1) - 1).sqrt()


class Forgetful(Objective):
    def __call__(self, candidates):
        return candidates.log_likelihoods


class Constant(Objective):
    def __call__(self, candidates):
        return torch.ones_like(candidates.value)
"""


@pytest.fixture
def context(discretizer: Discretizer) -> PlanningContext:
    layout = TransitionLayout(OBSERVATION_DIM, ACTION_DIM)
    return PlanningContext(layout, discretizer, PlannerConfig(**PLANNER), "cpu")


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A user's module, in the working directory."""
    (tmp_path / "own_objectives.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    return import_module("own_objectives")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Misspelt",
            "Misspelt fails on random candidates: AttributeError: .*no attribute 'effort' (own_objectives.py:7)",
        ),
        ("Nested", "Nested fails on random candidates: RuntimeError: .* (own_objectives.py:16)"),
        ("Late", "Late fails on random candidates: KeyError: 'late' (own_objectives.py:22)"),
        ("Flat", "Flat returns scores of shape (2,) (own_objectives.py:27); .* one for each candidate, (2, 8)"),
        ("Number", "Number returns a float (own_objectives.py:32); it must return a tensor"),
        ("Root", "Root returns NaN for each candidate (own_objectives.py:37); "),
    ],
)
@pytest.mark.parametrize("summed", [False, True])
def test_a_mistake_is_told_with_its_class_error_and_line(
    own: Any, context: PlanningContext, name: str, message: str, summed: bool
) -> None:
    objective = getattr(own, name)()
    if summed and name != "Number":  # a constant term changes nothing
        term = {"weight": 1.0, "objective": objective}
        objective = WeightedSum({"return": {"weight": 1.0, "objective": Return()}, "own": term})
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(UserError, match=rf"^planner\.objective: own_objectives\.{pattern}") as caught:
        try_objective(objective, context)
    assert "\n" not in str(caught.value)


def test_what_the_search_would_refuse_is_refused_in_the_same_words(own: Any, context: PlanningContext) -> None:
    with pytest.raises(UserError, match=r"set needs_log_likelihoods = True in its class"):
        try_objective(own.Forgetful(), context)


class Everything(Objective):
    """Reads everything, and checks it."""

    needs_log_likelihoods = True

    def __init__(self) -> None:
        self.seen: list[int] = []

    def __call__(self, candidates: Candidates) -> Tensor:
        t, shape = candidates.t, (2, 8)  # beam_width=4 times n_expand=2
        assert candidates.observations.shape == (*shape, OBSERVATION_DIM)
        assert candidates.previous_actions.shape == candidates.actions.shape == (*shape, ACTION_DIM)
        assert candidates.planned_actions.shape == candidates.action_changes.shape == (*shape, t + 1, ACTION_DIM)
        assert candidates.planned_actions[:, :, -1].equal(candidates.actions)
        assert candidates.rewards.shape == (*shape, t + 1)
        assert candidates.returns.shape == (*shape, 4)
        assert candidates.log_likelihoods.shape == candidates.value.shape == shape
        assert candidates.has_previous.tolist() == [[t > 0] * 8, [True] * 8]
        assert candidates.tokens.dtype == torch.int64
        assert (candidates.returns[:, :, t + 2 :] == 0).all()
        self.seen.append(t)
        return (candidates.returns * candidates.discounts).sum(-1)


def test_the_candidates_are_like_those_of_a_search(context: PlanningContext) -> None:
    """Of the first and the last of three transitions; torch's own random numbers stay as they are."""
    objective, state = Everything(), torch.get_rng_state()
    try_objective(objective, context)
    assert objective.seen == [0, 2]
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize("objective", [Return(), Likelihood(), Goal()])
def test_built_in_objectives_pass(objective: Objective, context: PlanningContext) -> None:
    try_objective(objective, context)


class OfTheState(Objective):
    """The plan's observations alone, of which the first is given."""

    def __call__(self, candidates: Candidates) -> Tensor:
        return candidates.planned_observations.sum(dim=(-2, -1))


def test_equal_scores_of_all_plans_are_told_once(
    context: PlanningContext, caplog: pytest.LogCaptureFixture, own: Any
) -> None:
    for _ in range(2):
        try_objective(own.Constant(), context)
    [message] = caplog.messages
    assert message == (
        "planner.objective: own_objectives.Constant gives all random plans the same score (own_objectives.py:47), so "
        "it chooses none; with planner.horizon=3 plans differ in their actions, rewards and value, and in the "
        "observations after the first"
    )
    caplog.clear()
    try_objective(OfTheState(), context)
    assert caplog.messages == []
    try_objective(OfTheState(), replace(context, settings=replace(context.settings, horizon=1)))
    [message] = caplog.messages
    assert message.endswith("with planner.horizon=1 plans differ in their actions, rewards and value alone")


def test_some_scores_that_are_not_finite_are_a_constraint(context: PlanningContext) -> None:
    class Constrained(Return):
        def __call__(self, candidates: Candidates) -> Tensor:
            return super().__call__(candidates).masked_fill(candidates.actions[:, :, 0] > -10, -torch.inf)

    try_objective(Constrained(), context)


BLOCKS = """\
import torch
from torch import nn
from torch.nn import functional as F
from trajectory_transformer.model.gpt import Block


class Fine(Block):
    pass


class Averaging(Block):
    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory) + x.cumsum(1) / 9


class Shut(Block):
    def __init__(self, config):
        super().__init__(config)
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory) + self.gate * x.flip(1)


class Random(Block):
    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory) + F.dropout(x, 0.1)


class Placed(Block):
    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory) + torch.arange(x.shape[1]).unsqueeze(1) * torch.eye(8)[0]


class Pair(Block):
    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory), memory


class Narrow(Block):
    def forward(self, x, layer, memory):
        return super().forward(x, layer, memory).mean(-1, keepdim=True)


class Wide(Block):
    def forward(self, x, layer, memory):
        doubled = torch.cat([x, x], dim=-1)
        return self.l1(doubled)
"""


def model_of(block: str | None) -> TrajectoryTransformer:
    named = None if block is None else {"_target_": f"own_blocks.{block}"}
    config = ModelConfig(n_layer=2, n_head=2, n_embd=8, block=named)
    return TrajectoryTransformer(TransformerConfig.for_data(config, TransitionLayout(2, 1), 10, 4), TYPED_BY_USER)


@pytest.fixture
def own_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module, in the working directory."""
    (tmp_path / "own_blocks.py").write_text(BLOCKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


MIXES = r"cannot be used for planning \(own_blocks.py:{}\): its predictions token by token differ"


@pytest.mark.usefixtures("own_blocks")
@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("Averaging", MIXES.format(12)),
        ("Shut", MIXES.format(21)),  # its weight is 0 before training
        ("Random", MIXES.format(26)),
        ("Placed", MIXES.format(31)),
        ("Pair", r"returns a tuple for an input of shape \(1, \d+, 8\) \(own_blocks.py:36\); .* like x"),
        ("Narrow", r"returns shape \(1, (\d+), 1\) for an input of shape \(1, \1, 8\) \(own_blocks.py:41\); .* like x"),
        ("Wide", r"fails on random tokens: RuntimeError: .* \(own_blocks.py:48\)$"),
    ],
)
def test_a_block_that_cannot_be_planned_with_is_refused(block: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^model\.block: own_blocks\.{block} {message}") as caught:
        try_model(model_of(block))
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("own_blocks")
def test_blocks_that_attend_by_the_memory_pass() -> None:
    try_model(model_of(None))
    state = torch.get_rng_state()
    model = model_of("Fine")
    torch.set_rng_state(state)
    try_model(model)
    assert torch.get_rng_state().equal(state)


def test_an_edit_of_our_block_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, layer, memory: own(self, x, layer, memory) + x.cumsum(1))
    with pytest.raises(UserError, match=r"^model/gpt\.py cannot be used for planning"):
        try_model(model_of(None))
