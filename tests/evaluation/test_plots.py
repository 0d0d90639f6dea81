"""Plots show the given data, without a display and without changing matplotlib's global state."""

import csv
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import plots
from trajectory_transformer.evaluation.plots import (
    TradeoffPoint,
    plot_plan,
    plot_returns,
    plot_tradeoff,
    plot_training,
)
from trajectory_transformer.evaluation.records import EpisodeTrace, PlanTrace

PNG = b"\x89PNG\r\n\x1a\n"


def trace(steps: int = 60, horizon: int = 5, dimensions: int = 3, plan_freq: int = 1) -> EpisodeTrace:
    """Observations that grow by dimension + 1 each step, and plans that predict this."""
    slopes = np.arange(1.0, dimensions + 1)
    observations = np.arange(steps + 1)[:, None] * slopes
    plans = tuple(PlanTrace(t, (t + np.arange(horizon))[:, None] * slopes) for t in range(0, steps, plan_freq))
    return EpisodeTrace(0, observations, plans)


def test_returns(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "plots" / "returns.png"
    plot_returns(np.arange(100.0), np.array([80.0, 120.0]), (85.0, 115.0), "Walk-v0", path, "planner")
    assert path.read_bytes().startswith(PNG)
    behavior, planner = drawn[0].axes
    assert sum(bar.get_height() for bar in behavior.patches[:50]) == pytest.approx(1.0)  # pyright: ignore
    assert "100 episodes" in behavior.get_title("left")
    assert "2 episodes" in planner.get_title("left")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["behaviour's mean 49.5", "planner's mean 100", "its 95 % interval 85 to 115"]


def test_returns_of_a_policy_in_few_episodes_have_no_interval(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_returns(np.arange(100.0), np.array([80.0, 120.0]), None, "Walk-v0", tmp_path / "returns.png", "policy")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert labels == ["behaviour's mean 49.5", "policy's mean 100"]
    assert drawn[0].axes[1].get_title("left") == "policy, 2 episodes"


def test_returns_that_are_all_equal(tmp_path: Path) -> None:
    plot_returns(np.zeros(3), np.zeros(2), (0.0, 0.0), "Walk-v0", tmp_path / "returns.png", "planner")
    assert (tmp_path / "returns.png").read_bytes().startswith(PNG)


def test_plans_lie_where_they_were_made(tmp_path: Path, drawn: list[Figure]) -> None:
    plot_plan(trace(), ["a", "b", "c"], "Walk-v0", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG)
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["a", "b", "c"]
    for dimension, axes in enumerate(drawn[0].axes):
        outcome, *rest = axes.lines
        steps = np.asarray(outcome.get_xdata())
        np.testing.assert_array_equal(outcome.get_ydata(), (dimension + 1) * steps)
        segments = rest[::2]
        assert len(segments) == 5  # horizon 5 reaches 4 steps ahead; the window is six times that
        for line in segments:  # a plan that is right lies on what happened
            np.testing.assert_array_equal(line.get_ydata(), (dimension + 1) * np.asarray(line.get_xdata()))
        starts = [int(np.asarray(line.get_xdata())[0]) for line in segments]
        assert np.all(np.diff(starts) == 5)


def test_plans_that_were_cut_short_end_early(tmp_path: Path, drawn: list[Figure]) -> None:
    whole = trace()
    for plan in whole.plans:
        plan.observations[1 + plan.step % 5 :] = np.nan
    plot_plan(whole, ["a", "b", "c"], "Walk-v0", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG)
    for dimension, axes in enumerate(drawn[0].axes):
        assert np.isfinite([*axes.get_xlim(), *axes.get_ylim()]).all()
        for line, dot in zip(axes.lines[1::2], axes.lines[2::2], strict=True):
            steps, values = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
            length = 1 + int(steps[0]) % 5
            np.testing.assert_array_equal(values[:length], (dimension + 1) * steps[:length])
            assert np.isnan(values[length:]).all()
            assert np.isfinite(np.asarray(dot.get_ydata())).all()


@pytest.mark.parametrize(("steps", "horizon", "plan_freq"), [(1, 5, 1), (3, 15, 1), (60, 1, 1), (40, 6, 6)])
def test_short_episodes_and_unusual_plans(tmp_path: Path, steps: int, horizon: int, plan_freq: int) -> None:
    plot_plan(trace(steps, horizon, 2, plan_freq), ["a", "b"], "Walk-v0", tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(PNG)


def test_only_dimensions_that_change_are_shown_and_at_most_twelve(tmp_path: Path, drawn: list[Figure]) -> None:
    still = EpisodeTrace(0, np.tile([1.0, 0.0], (9, 1)) * np.arange(9)[:, None], (PlanTrace(0, np.zeros((3, 2))),))
    plot_plan(still, ["moves", "rests"], "Walk-v0", tmp_path / "plan.png")
    assert [axes.get_title("left") for axes in drawn[0].axes] == ["moves"]
    plot_plan(trace(dimensions=30), [str(i) for i in range(30)], "Walk-v0", tmp_path / "plan.png")
    assert [axes.get_title("left") for axes in drawn[1].axes] == [str(i) for i in range(12)]
    plot_plan(EpisodeTrace(0, np.ones((4, 1)), (PlanTrace(0, np.ones((2, 1))),)), ["a"], "", tmp_path / "plan.png")
    assert len(drawn[2].axes) == 1  # nothing changes: all are shown


def write_metrics(path: Path, rows: list[dict[str, object]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def test_training_curves_per_token_kind(tmp_path: Path, drawn: list[Figure]) -> None:
    rows: list[dict[str, object]] = [
        {"step": 50, "train/loss": 3.0, "train/action_loss": 2.0},
        {"step": 100, "train/loss": 2.0, "train/action_loss": "nan"},
        {"step": 100, "val/loss": 2.5, "val/value_loss": 1.0, "val/value_accuracy": 0.3},
    ]
    write_metrics(tmp_path / "metrics.csv", rows)
    assert plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    total, action, value = (axes for axes in drawn[0].axes if axes.get_visible())
    assert [axes.get_title("left") for axes in (total, action, value)] == [
        "all tokens, weighted",
        "action tokens",
        "value tokens",
    ]
    train, validation = total.lines
    np.testing.assert_array_equal(train.get_xydata(), [[50, 3], [100, 2]])
    np.testing.assert_array_equal(validation.get_xydata(), [[100, 2.5]])
    np.testing.assert_array_equal(action.lines[0].get_xydata(), [[50, 2]])
    assert value.lines[0].get_label() == "validation"


def test_returns_while_training_stand_before_the_losses(tmp_path: Path, drawn: list[Figure]) -> None:
    rows: list[dict[str, object]] = [{"step": 10, "train/loss": 3.0}]
    for step, mean in ((10, 5.0), (20, 7.0), (30, 7.0), (40, 6.0)):
        score = {"return_mean": mean, "return_ci95_low": mean - 1, "return_ci95_high": mean + 2, "success_rate": 0.5}
        rows.append({"step": step, **{f"evaluation/{name}": value for name, value in score.items()}})
    write_metrics(tmp_path / "metrics.csv", rows)
    assert plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    returns, success, loss = (axes for axes in drawn[0].axes if axes.get_visible())
    assert [axes.get_title("left") for axes in (returns, success, loss)] == [
        "episode return",
        "success rate",
        "loss",
    ]
    mean, best = returns.lines
    np.testing.assert_array_equal(mean.get_xydata(), [[10, 5], [20, 7], [30, 7], [40, 6]])
    np.testing.assert_array_equal(best.get_xydata(), [[30, 7]])  # of equal ones the latest, as is kept
    corners = returns.collections[0].get_paths()[0].vertices
    assert {tuple(corner) for corner in np.asarray(corners)} >= {(10, 4), (10, 7), (40, 5), (40, 8)}
    (rate,) = success.lines
    np.testing.assert_array_equal(rate.get_xydata(), [[10, 0.5], [20, 0.5], [30, 0.5], [40, 0.5]])
    assert not success.collections  # no interval was logged


def test_returns_alone_are_drawn(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [{"step": 10, "evaluation/return_mean": 5.0}])
    assert plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")


@pytest.mark.parametrize(
    "text", [None, "", "step,train/other\n1,2\n", "train/loss\n1.0\n", "step,train/loss\n1,word\n"]
)
def test_nothing_to_draw(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "metrics.csv").write_text(text)
    assert not plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    assert not (tmp_path / "training.png").exists()


def test_a_picture_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"picture cannot be written to .*returns\.png"):
        plot_returns(np.arange(3.0), np.arange(3.0), None, "Walk-v0", tmp_path / "file" / "returns.png", "planner")


def test_pyplot_stays_out(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from trajectory_transformer.evaluation.plots import *\n"
        f"plot_returns(np.arange(3.0), np.arange(3.0), None, 'a', Path({str(tmp_path)!r}) / 'a.png', 'policy')\n"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_planners_are_drawn_with_their_intervals(tmp_path: Path, drawn: list[Figure]) -> None:
    points = [
        TradeoffPoint("horizon=1", "64", 9.0, (5.0, 4.0, 7.0)),
        TradeoffPoint("horizon=1", "4", 2.0, (3.0, 1.0, 4.0)),
        TradeoffPoint("horizon=5", "4", 8.0, (6.0, math.nan, math.nan)),  # no interval
    ]
    plot_tradeoff(points, 4.5, "Walk-v0", tmp_path / "tradeoff.png")
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(PNG)
    (axes,) = drawn[0].axes
    first, second = (container.lines for container in axes.containers if isinstance(container, ErrorbarContainer))
    np.testing.assert_array_equal(first[0].get_xydata(), [[2.0, 3.0], [9.0, 5.0]])  # in the order of their time
    np.testing.assert_array_equal(second[0].get_xydata(), [[8.0, 6.0]])
    ends = [tuple(segment[:, 1]) for segment in first[2][0].get_segments()]
    assert ends == [(1.0, 4.0), (4.0, 7.0)]
    assert [segment.size for segment in second[2][0].get_segments()] == [0]
    assert [text.get_text() for text in axes.texts] == ["4", "64", "4"]
    assert axes.get_xscale() == "log"


def test_every_loss_of_a_learner_is_drawn_under_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    rows = ["step,train/loss,train/q_loss,val/actor_loss,val/value_r2", "1,1,2,3,4", "2,1,2,3,4"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    assert plot_training(tmp_path / "metrics.csv", tmp_path / "training.png")
    titles = [axes.get_title(loc="left") for axes in figures[0].axes if axes.get_visible()]
    assert [title for title in titles if title] == ["loss", "q loss", "actor loss"]
