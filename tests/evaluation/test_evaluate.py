"""From an agent to results.json, plots and videos."""

import csv
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import video
from trajectory_transformer.evaluation.evaluate import evaluate
from trajectory_transformer.evaluation.results import read_results

from .scripted import WALK, ScriptedAgent, environment_spec, maze_spec, request_of, training_on

REQUEST = request_of(4, 3, 7, training_on(np.linspace(-2.0, 2.0, 30).tolist()))


def files(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


def test_everything_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    results = evaluate(ScriptedAgent(environment_spec(WALK)), replace(REQUEST, video=2), tmp_path)
    assert files(tmp_path) == [
        "figures.csv",
        "plots/plan_vs_outcome.png",
        "plots/returns.png",
        "results.json",
        "videos/episode_0.mp4",
        "videos/episode_1.mp4",
    ]
    assert read_results(tmp_path / "results.json") == results
    assert [episode["seed"] for episode in results["episodes"]] == [7, 8, 9, 10]
    assert results["env_id"] == WALK
    assert caplog.records == []


def test_results_do_not_depend_on_num_envs_nor_on_films(tmp_path: Path) -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    first = evaluate(agent, REQUEST, tmp_path / "a")
    second = evaluate(agent, replace(REQUEST, num_envs=1, video=1), tmp_path / "b")
    assert first["episodes"] == second["episodes"]
    assert first["summary"]["return_ci95"] == second["summary"]["return_ci95"]
    assert files(tmp_path / "a") == [
        "figures.csv",
        "plots/plan_vs_outcome.png",
        "plots/returns.png",
        "results.json",
    ]


def test_finished_episodes_outlive_a_failure(tmp_path: Path) -> None:
    agent = ScriptedAgent(environment_spec(WALK, bad_reward_at=25))  # which only the last episode reaches
    with pytest.raises(UserError, match=rf"its reward is nan.*; {tmp_path}/episodes\.csv has the \d finished episodes"):
        evaluate(agent, replace(REQUEST, episodes=5, num_envs=1), tmp_path)
    assert files(tmp_path) == ["episodes.csv"]
    with (tmp_path / "episodes.csv").open(newline="") as file:
        kept = list(csv.DictReader(file))
    good = evaluate(ScriptedAgent(environment_spec(WALK)), replace(REQUEST, episodes=5), tmp_path)["episodes"]
    assert 0 < len(kept) < len(good)
    for ours, theirs in zip(kept, good, strict=False):
        assert float(ours["episode_return"]) == theirs["return"]
        for name in ("seed", "length", "terminated", "success"):
            assert ours[name] == str(theirs[name])
    assert "episodes.csv" not in files(tmp_path)


def test_a_maze_is_drawn(tmp_path: Path) -> None:
    spec = maze_spec("PointMaze_UMaze-v3", max_episode_steps=3)
    evaluate(ScriptedAgent(spec, PlannerConfig(horizon=2)), replace(REQUEST, episodes=2), tmp_path)
    assert "plots/trajectories.png" in files(tmp_path)


def test_real_physics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hopper = replace(environment_spec("Hopper-v5", max_episode_steps=15), observation_indices=(0, 5))
    agent = ScriptedAgent(hopper)
    training = training_on([18.0, 30.0], (-20.272305, 3234.3), "d4rl")
    request = replace(REQUEST, training=training, progress=True)
    results = evaluate(agent, request, tmp_path)
    summary = results["summary"]
    expected = 100 * (summary["return_mean"] + 20.272305) / (3234.3 + 20.272305)
    assert summary["normalized_score_mean"] == pytest.approx(expected)
    assert summary["env_steps_per_second"] > 0
    assert all(0 < episode["length"] <= 15 for episode in results["episodes"])
    shown = capsys.readouterr().out
    assert "behaviour best return" in shown


def test_one_warning_where_nothing_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(video, "_probe", lambda backend: False)
    hopper = replace(environment_spec("Hopper-v5", max_episode_steps=3), observation_indices=(0,))
    evaluate(ScriptedAgent(hopper, PlannerConfig(horizon=2)), replace(REQUEST, video=2), tmp_path)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "no video: MuJoCo cannot render here" in caplog.records[0].message
    assert "\n" not in caplog.records[0].message
    assert not (tmp_path / "videos").exists()
    assert (tmp_path / "results.json").exists()


def test_names_of_the_dimensions_that_the_model_sees() -> None:
    hopper = replace(environment_spec("Hopper-v5"), observation_indices=(4, 0))
    assert hopper.observation_names == ["observation[4]", "observation[0]"]
    assert environment_spec(WALK).observation_names == ["clock[0]", "position[0]"]


@pytest.mark.slow
def test_mujoco_is_filmed_where_it_can_draw(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    works = video.mujoco_rendering_works()
    agent = ScriptedAgent(environment_spec("Hopper-v5", max_episode_steps=12))
    evaluate(agent, replace(REQUEST, video=1), tmp_path)
    assert (tmp_path / "videos" / "episode_0.mp4").exists() == works
    assert len(caplog.records) == (0 if works else 1)
