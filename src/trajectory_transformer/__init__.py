"""The Trajectory Transformer: planning with sequence models.

The public names below are imported when they are first used, so that ``import trajectory_transformer`` is quick and
the command line can refuse a wrong option before torch is loaded.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .configuration import PlannerConfig
    from .data.discretizer import QuantileDiscretizer, UniformDiscretizer
    from .interop.config import TrajectoryTransformerConfig
    from .interop.pretrained import TrajectoryTransformerModel, TrajectoryTransformerPreTrainedModel
    from .model.output import TrajectoryTransformerOutput
    from .planning.agent import Agent
    from .planning.planner import BeamPlanner

__version__ = "0.1.0"
__all__ = [
    "Agent",
    "BeamPlanner",
    "PlannerConfig",
    "QuantileDiscretizer",
    "TrajectoryTransformerConfig",
    "TrajectoryTransformerModel",
    "TrajectoryTransformerOutput",
    "TrajectoryTransformerPreTrainedModel",
    "UniformDiscretizer",
]

_MODULES = {
    "Agent": "planning.agent",
    "BeamPlanner": "planning.planner",
    "PlannerConfig": "configuration",
    "QuantileDiscretizer": "data.discretizer",
    "TrajectoryTransformerConfig": "interop.config",
    "TrajectoryTransformerModel": "interop.pretrained",
    "TrajectoryTransformerOutput": "model.output",
    "TrajectoryTransformerPreTrainedModel": "interop.pretrained",
    "UniformDiscretizer": "data.discretizer",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(importlib.import_module(f".{_MODULES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
