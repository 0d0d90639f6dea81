"""The small model that planners are tested with."""

from tests.planning.conftest import discretizer, model

__all__ = ["discretizer", "model"]
