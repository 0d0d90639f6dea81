"""Deterministic plans against those of the original's search with the same weights."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.seeded import PLAN_CASE, PLAN_CONTEXT, PLAN_HORIZON, original_weights, plan_prefixes
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.interop.convert import load
from trajectory_transformer.planning.agent import BeamPlanner

FIGURES = Path(__file__).parents[1] / "golden" / "figures.npz"


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    file = tmp_path_factory.mktemp("original") / "state_0.pt"
    torch.save(original_weights(PLAN_CASE), file)
    model, _ = load(file, {"observation_dim": PLAN_CASE.observation_dim, "n_head": PLAN_CASE.n_head})
    discretizer = UniformDiscretizer(PLAN_CASE.vocab_size).fit(torch.tensor([[0.0], [1.0]]).expand(2, 16))
    plans = {}
    for window in ("sliding", "growing"):
        settings = PlannerConfig(
            horizon=PLAN_HORIZON, beam_width=1, n_expand=1, context=PLAN_CONTEXT, window=window, discount=0.99, k_obs=1,
            k_act=1, cdf_act=None,
        )  # fmt: skip
        generators = [torch.Generator().manual_seed(0) for _ in plan_prefixes()]
        plans[window] = BeamPlanner(model, discretizer, settings).plan(plan_prefixes(), generators).tokens
    return plans


def test_greedy_plans_are_the_original_ones(planned: dict[str, torch.Tensor]) -> None:
    with np.load(FIGURES) as figures:
        assert np.array_equal(planned["sliding"].numpy(), figures["plan/tokens"])


def test_the_original_window_matters(planned: dict[str, torch.Tensor]) -> None:
    """The transitions before it slides agree with a growing window; the later ones do not."""
    assert torch.equal(planned["sliding"][:, 0], planned["growing"][:, 0])
    assert not torch.equal(planned["sliding"][:, 3:], planned["growing"][:, 3:])
