"""The search on CUDA, captured or compiled: ``pytest -m gpu`` on a machine with a GPU."""

import copy
from typing import Any

import numpy as np
import pytest
import torch

from tests.golden.planning import SEARCHES, Search
from tests.planning.conftest import ACTION_DIM, BINS, ENVIRONMENT, OBSERVATION_DIM, PLANNER
from tests.planning.conftest import TRANSITIONS as TRANSITIONS_OF_MODEL
from tests.planning.decoders import TRANSITIONS, WIDTH, compare, make_model, small_model
from tests.planning.test_original_traces import replay, require_the_original_s
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.objectives import Likelihood, Return, WeightedSum
from trajectory_transformer.planning.planner import BeamPlanner
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what other libraries deprecate is not ours

DEVICE = "cuda"
BOTH = WeightedSum({"a": {"weight": 1.0, "objective": Return()}, "b": {"weight": 0.5, "objective": Likelihood()}})
BOTH_WINDOWS = [
    next(search for search in SEARCHES if search.settings.window == window) for window in ("growing", "sliding")
]


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: search.name)
def test_every_step_is_the_original_s(search: Search) -> None:
    def make(model: TrajectoryTransformerModel, window: int, sliding: bool) -> TransformerDecoder:
        return TransformerDecoder(model, window, sliding, rows=128)

    require_the_original_s(search, replay(search, make, DEVICE))


@pytest.mark.parametrize("search", BOTH_WINDOWS, ids=lambda search: search.name)
def test_compiled_steps_are_the_original_s(search: Search) -> None:
    torch._dynamo.reset()

    def make(model: TrajectoryTransformerModel, window: int, sliding: bool) -> TransformerDecoder:
        rows = search.settings.beam_width * search.settings.n_expand
        return TransformerDecoder(model, window, sliding, rows, compiled=True)

    require_the_original_s(search, replay(search, make, DEVICE))


@pytest.mark.parametrize(("sliding", "window", "transitions"), [(False, TRANSITIONS, TRANSITIONS), (True, 3, 6)])
def test_compiled_steps_equal_full_forward_passes(sliding: bool, window: int, transitions: int) -> None:
    """Also when a graph is replayed for another plan, and for fewer environments."""
    torch._dynamo.reset()
    model = small_model(spread=0.1).to(DEVICE)
    decoder = TransformerDecoder(model, window, sliding, rows=4, compiled=True)
    limit = window * WIDTH - 1 if sliding else model.config.block_size
    for environments in (2, 2, 1):
        compare(decoder, model, limit, transitions, environments)


@pytest.mark.parametrize("numbers", [None, 8])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"act": "conditioned"},
        {"window": "sliding"},
        {"k_act": 3, "k_obs": 2, "cdf_act": None},
        {"name": "imitation"},
        {"objective": BOTH},
    ],
    ids=lambda options: "-".join(options) or "growing",
)
def test_a_captured_search_finds_what_an_eager_one_finds(
    discretizer: Discretizer, options: dict[str, Any], numbers: int | None
) -> None:
    """Whole episodes: prefixes grow, environments end, and more of them begin."""
    sizes = OBSERVATION_DIM, ACTION_DIM, TRANSITIONS_OF_MODEL, BINS
    model = make_model(*sizes, spread=0.3, numbers=numbers, numerical_dynamics=numbers is not None)
    agents = []
    for device, decoder in ((DEVICE, "auto"), ("cpu", "eager")):
        settings: dict[str, Any] = PLANNER | options | {"decoder": decoder}
        parts = copy.deepcopy(model).to(device), copy.deepcopy(discretizer).to(device)
        agents.append(Agent(BeamPlanner(*parts, PlannerConfig(**settings)), ENVIRONMENT))
    generator = np.random.default_rng(0)
    for environments in (3, 5):
        for agent in agents:
            agent.reset(environments)
        for step in range(5):
            observations = generator.normal(size=(environments, OBSERVATION_DIM)).astype(np.float32)
            active = np.arange(environments) != (0 if step == 3 else environments)
            ours, theirs = (agent.act(observations, active) for agent in agents)
            # Of eight averaged candidates, rounding may decide one draw.
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.05 if "act" in options else 1e-6)
            plans = [agent.last_plan for agent in agents]
            np.testing.assert_allclose(plans[0].score, plans[1].score, rtol=1e-4, atol=1e-4)
            for agent in agents:
                agent.observe(ours, np.ones(environments), np.zeros(environments, dtype=bool))
