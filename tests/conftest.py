"""Fixtures of several rooms."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from trajectory_transformer.evaluation import plots


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that were saved, in order."""
    figures: list[Figure] = []
    save = plots._save

    def keep(figure: Figure, path: Path) -> None:
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "_save", keep)
    return figures
