"""Plots of attention show the given numbers."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle

from trajectory_transformer.analysis.attention_masses import MeasuredAttention
from trajectory_transformer.analysis.plots import plot_attention_maps, plot_attention_summary
from trajectory_transformer.layout import TransitionLayout

PNG = b"\x89PNG\r\n\x1a\n"


def values_of(image: AxesImage) -> np.ndarray:
    values = image.get_array()
    assert values is not None
    return values


def test_maps(tmp_path: Path, drawn: list[Figure]) -> None:
    layout = TransitionLayout(2, 1)
    mask = np.tril(np.ones((14, 14), dtype=bool))
    mask[:, 4::5] = False
    weights = np.random.default_rng(0).uniform(0.1, 0.2, (2, 3, 14, 14))
    weights[1, 2, 9, 3] = 0.19
    plot_attention_maps(weights, mask, layout, "Walk-v0", tmp_path / "maps.png")
    assert (tmp_path / "maps.png").read_bytes().startswith(PNG)
    panels = drawn[0].axes[:6]
    assert [axes.get_title("left") for axes in panels][-1] == "layer 2 head 3"
    image, beside, below = panels[-1].images
    cells = np.ma.filled(values_of(image), np.nan)
    assert cells.shape == (15, 15)  # predicted token, token attended to
    assert cells[10, 3] == 0.19
    assert np.isnan(cells[0]).all()
    assert np.isnan(cells[:, 4]).all()
    assert np.isnan(cells[5, 5])
    assert np.isfinite(cells[6, 5])
    kinds = [0, 0, 1, 2, 3] * 3
    assert values_of(beside).ravel().tolist() == values_of(below).ravel().tolist() == kinds
    assert {axes.images[0].norm.vmax for axes in panels} == {image.norm.vmax}  # one scale for all
    points = [np.asarray(line.get_ydata()) for line in panels[0].lines]
    borders = sorted(float(y[0]) for y in points if y[0] == y[1])
    assert borders == [5, 10]


def test_summary(tmp_path: Path, drawn: list[Figure]) -> None:
    names = ["mass_present_transition", "mass_previous_transition", "mass_earlier_transitions"]
    uniform = np.array([0.1, 0.3, 0.6])
    masses = np.broadcast_to(uniform, (4, 2, 1, 3)).copy()
    masses[:, 0, 0] = [0.05, 0.9, 0.05]
    plot_attention_summary(
        MeasuredAttention(names, uniform, masses, np.arange(4)), "Walk-v0", tmp_path / "plots" / "summary.png"
    )
    assert (tmp_path / "plots" / "summary.png").read_bytes().startswith(PNG)
    shares, ratios = drawn[0].axes[:2]
    bars = [bar for bar in shares.patches if isinstance(bar, Rectangle)]
    assert [bar.get_width() for bar in bars] == pytest.approx([0.05, 0.1, 0.1, 0.9, 0.3, 0.3, 0.05, 0.6, 0.6])
    assert [label.get_text() for label in shares.get_yticklabels()] == ["layer 1 head 1", "layer 2 head 1", "uniform"]
    cells = values_of(ratios.images[0])
    np.testing.assert_allclose(cells, np.log2([[0.5, 3.0, 1 / 12], [1.0, 1.0, 1.0]]), atol=1e-9)
    texts = [text.get_text() for text in ratios.texts]
    assert texts[1] == "×3  90 %"
    assert texts[-3:] == ["10 %", "30 %", "60 %"]
