"""Typed options of the two commands, each class validating itself; imports neither torch, Hydra nor Lightning.

The classes are the schemas behind the YAML groups in ``configs/``: names, types, ranges and defaults. They are not
frozen because OmegaConf makes a frozen dataclass read-only even for overrides, and because a finished run that is
trained further gets more updates.
"""

from .data import DataConfig, DiscretizerConfig
from .planner import OBJECTIVES, PlannerConfig, current_record
from .resuming import MAY_CHANGE, may_change
from .run import (
    EnvironmentConfig,
    EvaluateConfig,
    EvaluationConfig,
    LoggerConfig,
    ParameterConfig,
    TrainConfig,
    TuneConfig,
)
from .tasks import AttentionConfig, PredictConfig
from .training import HIDDEN_ACTIVATIONS, ModelConfig, OptimizerConfig, TrainerConfig
from .validation import (
    LARGEST,
    described,
    one_of,
    require,
    require_choice,
    require_module_names,
    require_target,
    validate,
    validate_value,
    within,
)

__all__ = [
    "HIDDEN_ACTIVATIONS", "LARGEST", "MAY_CHANGE", "OBJECTIVES", "AttentionConfig", "DataConfig", "DiscretizerConfig",
    "EnvironmentConfig", "EvaluateConfig", "EvaluationConfig", "LoggerConfig",
    "ModelConfig", "OptimizerConfig", "ParameterConfig", "PlannerConfig", "PredictConfig", "TrainConfig",
    "TrainerConfig", "TuneConfig", "current_record", "described", "may_change", "one_of", "require", "require_choice",
    "require_module_names", "require_target", "validate", "validate_value", "within",
]  # fmt: skip
