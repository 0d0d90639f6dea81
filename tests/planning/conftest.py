"""A small model and its agents."""

from typing import Any

import pytest
import torch

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer, QuantileDiscretizer
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.planner import BeamPlanner

from ..specs import box
from .decoders import make_model

OBSERVATION_DIM, ACTION_DIM, WIDTH, TRANSITIONS, BINS = 3, 2, 7, 8, 12
PLANNER: dict[str, Any] = {"horizon": 3, "beam_width": 4, "n_expand": 2, "context": 3, "discount": 0.95}
ENVIRONMENT = EnvironmentSpec("Test-v0", None, box(OBSERVATION_DIM), box(ACTION_DIM))


@pytest.fixture(scope="module")
def model() -> TrajectoryTransformerModel:
    return make_model(OBSERVATION_DIM, ACTION_DIM, TRANSITIONS, BINS, spread=0.3)


@pytest.fixture(scope="module")
def discretizer() -> Discretizer:
    values = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(0))
    return QuantileDiscretizer(BINS).fit(values)


@pytest.fixture
def make_agent(model: TrajectoryTransformerModel, discretizer: Discretizer):
    def make(**options: Any) -> Agent:
        return Agent(BeamPlanner(model, discretizer, PlannerConfig(**(PLANNER | options))), ENVIRONMENT)

    return make
