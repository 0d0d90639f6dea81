"""The small model for tests of planners."""

from tests.planning.conftest import discretizer, model

__all__ = ["discretizer", "model"]
