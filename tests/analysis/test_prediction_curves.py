"""Curves, figures and plots of predictions with known numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from trajectory_transformer.analysis.plots import plot_errors, plot_log_likelihood
from trajectory_transformer.analysis.prediction_curves import (
    Curves,
    GaussianMarginals,
    ObservationBins,
    TokenMarginals,
    compare,
    prediction_measurements,
    stack_curves,
)
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.evaluation.scores import bootstrap_interval


def test_curves_by_hand() -> None:
    edges = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 4.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    bins = ObservationBins(Discretizer.from_dict({"strategy": "uniform", "edges": edges}), np.full(2, 1e-3))
    observations = np.array([[0.0, 1.0], [2.0, 3.0], [0.5, 1.0], [9.0, 9.0]], dtype=np.float32)
    tokens = TokenMarginals(np.array([[[0.25, 0.75], [0.0, 1.0]], [[1.0, 0.0], [0.5, 0.5]]]), bins)
    gaussian = GaussianMarginals(np.array([[[2.0, 1.0]], [[0.5, 1.0]]]), np.ones((2, 1, 2)))
    scale = np.array([1.0, 2.0])
    curves = compare({"transformer": tokens, "ensemble": gaussian}, observations, bins, scale)

    logs = curves["log_likelihood"]
    np.testing.assert_allclose(
        logs["transformer"], [(math.log(0.75 / 2) + math.log(1 / 2)) / 2, (0.0 + math.log(0.25)) / 2]
    )
    np.testing.assert_allclose(logs["oracle"], [math.log(1 / 2), (0.0 + math.log(1 / 2)) / 2])
    normal = -0.5 * math.log(2 * math.pi)
    np.testing.assert_allclose(logs["ensemble"], [(normal + normal - 2.0) / 2, normal])
    # means (0.25 * 0.5 + 0.75 * 2, 3) against (2, 3), and (0.5, 2) against (0.5, 1)
    np.testing.assert_allclose(
        curves["mean_error"]["transformer"], [math.sqrt(0.375**2 / 2), math.sqrt((1 / 2) ** 2 / 2)]
    )
    np.testing.assert_allclose(
        curves["sample_error"]["transformer"], [math.sqrt(0.25 * 1.5**2 / 2), math.sqrt((0.0 + 2.0 / 4) / 2)]
    )
    np.testing.assert_allclose(curves["mean_error"]["ensemble"], [math.sqrt(1 / 2), 0.0])
    np.testing.assert_allclose(
        curves["sample_error"]["ensemble"], [math.sqrt((1 + (1 + 4) / 4) / 2), math.sqrt(1.25 / 2)]
    )
    for curve in ("mean_error", "sample_error"):
        expected = [math.sqrt((4 + 1) / 2), math.sqrt((0.25 + 0) / 2)]
        np.testing.assert_allclose(curves[curve]["constant"], expected)


def curves_of(episodes: int, horizon: int, *methods: str) -> Curves:
    random = np.random.default_rng(0)
    steps = np.arange(1, horizon + 1)

    def values(sign: float) -> np.ndarray:
        return sign * 0.02 * steps + random.normal(size=(episodes, horizon))

    logs = {method: values(-1.0) for method in (*methods, "oracle")}
    errors = {method: np.abs(values(1.0)) for method in (*methods, "constant")}
    return {"log_likelihood": logs, "mean_error": errors, "sample_error": errors}


def test_figures_are_means_over_episodes_at_the_steps_reported() -> None:
    curves = curves_of(5, 60, "transformer", "markovian")
    found = {(one.method, one.name): one for one in prediction_measurements(curves)}
    steps = [name.rsplit("_", 1)[1] for method, name in found if method == "oracle" and "_step_" in name]
    assert steps == ["1", "10", "30", "50", "60"]
    column = curves["log_likelihood"]["transformer"][:, 9]
    one = found["transformer", "log_likelihood_step_10"]
    assert (one.value, one.count) == (pytest.approx(column.mean()), 5)
    assert (one.low, one.high) == tuple(bootstrap_interval(column))
    whole = prediction_measurements(curves)[0]
    assert (whole.method, whole.name) == ("transformer", "log_likelihood_mean")
    assert whole.value == pytest.approx(curves["log_likelihood"]["transformer"].mean())
    assert ("constant", "mean_error_step_60") in found
    assert ("oracle", "mean_error_step_60") not in found


def test_one_episode_has_no_interval() -> None:
    assert all((one.low, one.high) == (None, None) for one in prediction_measurements(curves_of(1, 3, "ensemble")))


def test_episodes_are_stacked() -> None:
    single = [{"mean_error": {"constant": np.array([float(i), 1.0])}} for i in range(3)]
    np.testing.assert_array_equal(stack_curves(single)["mean_error"]["constant"], [[0, 1], [1, 1], [2, 1]])


@pytest.mark.parametrize("episodes", [1, 4])
def test_pictures_show_each_method_with_its_band(tmp_path: Path, drawn: list[Figure], episodes: int) -> None:
    curves = curves_of(episodes, 12, "transformer", "markovian", "ensemble")
    plot_log_likelihood(curves, "Walk-v0", tmp_path / "plots" / "likelihood.png")
    plot_errors(curves, "Walk-v0", tmp_path / "plots" / "error.png")
    for figure, curve, count in ((drawn[0], "log_likelihood", 1), (drawn[1], "mean_error", 2)):
        assert len(figure.axes) == count
        axes = figure.axes[0]
        assert len(axes.lines) == 4
        assert len(axes.collections) == (4 if episodes > 1 else 0)
        for line, values in zip(axes.lines, curves[curve].values(), strict=True):
            np.testing.assert_allclose(np.asarray(line.get_ydata()), values.mean(axis=0))
        assert len(figure.legends[0].get_texts()) == 4
    assert "best that its bins allow" in [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert (tmp_path / "plots" / "error.png").read_bytes().startswith(b"\x89PNG")


def test_an_ensemble_that_falls_without_end_does_not_flatten_the_others(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = curves_of(3, 12, "transformer", "ensemble")
    curves["log_likelihood"]["ensemble"] -= 1e6
    curves["sample_error"]["ensemble"] += 1e6
    plot_log_likelihood(curves, "Walk-v0", tmp_path / "likelihood.png")
    plot_errors(curves, "Walk-v0", tmp_path / "error.png")
    means = [curves["log_likelihood"][method].mean(axis=0) for method in ("transformer", "oracle")]
    assert drawn[0].axes[0].get_ylim() == pytest.approx((np.min(means) - 3.0, np.max(means) + 1.0))
    errors = [curves["sample_error"][method].mean(axis=0) for method in ("transformer", "constant")]
    assert [axes.get_ylim() for axes in drawn[1].axes] == [pytest.approx((0.0, 2.0 * np.max(errors)))] * 2
