"""Typed options of the two commands. Each class validates itself; nothing here imports torch, Hydra or Lightning.

The classes are the schemas behind the YAML groups in ``configs/``; the YAML files hold the choices, these hold names,
types, ranges and defaults. They are not frozen because OmegaConf makes a frozen dataclass read-only even for overrides;
nothing mutates them after composition.
"""

from .data import DataConfig, DiscretizerConfig
from .planner import PlannerConfig
from .predict import PredictConfig
from .run import (
    EvaluateConfig,
    EvaluationConfig,
    LoggerConfig,
    ParameterConfig,
    TrainConfig,
    TuneConfig,
)
from .training import ModelConfig, OptimizerConfig, TrainerConfig
from .validation import require, require_choice, require_finite, require_probability

__all__ = [
    "DataConfig",
    "DiscretizerConfig",
    "EvaluateConfig",
    "EvaluationConfig",
    "LoggerConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ParameterConfig",
    "PlannerConfig",
    "PredictConfig",
    "TrainConfig",
    "TrainerConfig",
    "TuneConfig",
    "require",
    "require_choice",
    "require_finite",
    "require_probability",
]
