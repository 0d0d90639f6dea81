"""Episodes during training: their measurements and checkpoints, and that they do not affect training."""

import io
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from rich.console import Console

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import EvaluationConfig, TrainConfig
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.rollout import run_episodes
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.training import callbacks as callbacks_file
from trajectory_transformer.training.callbacks import Throughput
from trajectory_transformer.training.fit import FitReport, fit
from trajectory_transformer.training.interruption import TrainingInterrupted
from trajectory_transformer.training.metrics_file import MetricsFile
from trajectory_transformer.training.returns import EpisodePlayer

from .small_run import Rows, finish, small_config, small_data, small_datamodule, weights
from .test_resume import KillAt, Killed, digests

STEPS, EVERY, EPISODES, LENGTH = 24, 4, 3, 5
ENVIRONMENT = "returns-tests/Walk-v0"


class Walk(gymnasium.Env):
    """The walk of ``small_data``, with noise; it draws from every global generator, as an environment may."""

    observation_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-10.0, 10.0, (1,), np.float32)
    steps = 0  # of all environments; a test may count
    at_step: Callable[[int], None] = staticmethod(lambda _: None)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = float(self.np_random.normal())
        return np.array([self.position], dtype=np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Walk.steps += 1
        Walk.at_step(Walk.steps)
        for draw in (lambda: torch.rand(1), np.random.rand, random.random):
            draw()
        self.position = float(np.clip(self.position + action[0] + self.np_random.normal(), -10, 10))
        return np.array([self.position], dtype=np.float32), -abs(self.position), False, False, {}


gymnasium.register(ENVIRONMENT, f"{__name__}:Walk", max_episode_steps=LENGTH)


@pytest.fixture(autouse=True)
def fresh_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "steps", 0)
    monkeypatch.setattr(Walk, "at_step", staticmethod(lambda _: None))


def walk_data(env_id: str = ENVIRONMENT) -> OfflineData:
    data = small_data()
    spec = data.environment
    return replace(data, environment=EnvironmentSpec(env_id, None, spec.observation, spec.action))


def playing_config(every: int | None = EVERY, choose: str = "loss", **trainer: Any) -> TrainConfig:
    config = small_config(**({"max_steps": STEPS, "checkpoint_every": 5} | trainer))
    config.planner = replace(config.planner, beam_width=2)
    config.evaluation = EvaluationConfig(every=every, every_episodes=EPISODES, choose=choose, num_envs=2)
    return config


def played_fit(
    directory: Path, config: TrainConfig, loggers: Any = (), callbacks: Any = (), resume: bool = False
) -> FitReport:
    module = small_datamodule(config, walk_data())
    return fit(TransformerLearner(), config, directory, module, loggers, callbacks, resume)


def logged_rows(directory: Path) -> list[dict[str, str]]:
    """The rows of metrics.csv, cells that a clock decides left out."""
    rows = MetricsFile(directory / "metrics.csv").read()
    return [{name: cell for name, cell in row.items() if cell and "per_second" not in name} for row in rows]


def run(directory: Path, config: TrainConfig, callbacks: Any = (), resume: bool = False) -> FitReport:
    return played_fit(directory, config, [MetricsFile(directory / "metrics.csv")], callbacks, resume)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FitReport]:
    directory = tmp_path_factory.mktemp("unbroken")
    return directory, run(directory, playing_config())


def best_return_weights(directory: Path) -> dict[str, torch.Tensor]:
    return weights(directory / "checkpoints" / "best_return.ckpt")


def require_equal_runs(directory: Path, expected: Path) -> None:
    assert digests(directory) == digests(expected)
    assert logged_rows(directory) == logged_rows(expected)
    ours, theirs = best_return_weights(directory), best_return_weights(expected)
    assert all(ours[name].equal(theirs[name]) for name in theirs)


def test_training_is_the_same_without(tmp_path: Path, unbroken: tuple[Path, FitReport]) -> None:
    config = playing_config(every=None)
    report = run(tmp_path, config)
    assert (report.best_return, report.choice) == (None, None)
    assert not (tmp_path / "checkpoints" / "best_return.ckpt").exists()
    assert digests(tmp_path) == digests(unbroken[0])
    without = [row for row in logged_rows(unbroken[0]) if "evaluation/return_mean" not in row]
    assert logged_rows(tmp_path) == without


def test_random_states_and_modes_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play = EpisodePlayer.play

    def compared(self: EpisodePlayer, trainer: Any, module: Any) -> int | None:
        def state() -> tuple[Any, ...]:
            modes = [part.training for part in module.modules()]
            numpy_state = np.random.get_state(legacy=False)
            return torch.get_rng_state().tolist(), repr(numpy_state), random.getstate(), modes, torch.is_grad_enabled()

        before = state()
        found = play(self, trainer, module)
        assert state() == before
        return found

    inference: list[bool] = []
    monkeypatch.setattr(EpisodePlayer, "play", compared)
    monkeypatch.setattr(Walk, "at_step", staticmethod(lambda _: inference.append(torch.is_inference_mode_enabled())))
    played_fit(tmp_path, playing_config(max_steps=6))
    assert not any(inference)  # although Lightning's validation is in that mode
    assert Walk.steps == 2 * EPISODES * LENGTH  # after the fourth update and the last one


def test_rows_are_what_the_checkpoints_agent_gets(unbroken: tuple[Path, FitReport]) -> None:
    directory, report = unbroken
    rows = {int(row["step"]): row for row in logged_rows(directory) if "evaluation/return_mean" in row}
    assert list(rows) == list(range(EVERY, STEPS + 1, EVERY))
    assert report.best_return is not None
    step = read_checkpoint(report.best_return)["global_step"]
    agent = Agent.from_checkpoint(report.best_return)
    episodes = run_episodes(agent, agent.environment, EPISODES, 1, 500_000_000).episodes
    returns = [episode.episode_return for episode in episodes]
    assert float(rows[step]["evaluation/return_mean"]) == pytest.approx(np.mean(returns), rel=1e-12)
    assert "evaluation/return_ci95_low" not in rows[step]  # of so few episodes
    assert step == max(rows, key=lambda at: (float(rows[at]["evaluation/return_mean"]), at))
    assert "evaluation/normalized_score_mean" not in rows[step]  # without reference scores
    assert "evaluation/success_rate" not in rows[step]  # an environment that reports none


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Replaces the mean return of the weights after an update by the test's value."""
    returns: dict[int, float] = {}

    def measure(self: EpisodePlayer, trainer: Any, checkpoint: Any) -> dict[str, Any]:
        (update,) = (step for step in returns if step == trainer.global_step)
        return {"return_mean": returns[update], "return_ci95": [0.0, 1.0], "success_rate": 0.5}

    monkeypatch.setattr(EpisodePlayer, "measure", measure)
    return returns


def test_the_best_return_is_kept_and_of_equal_ones_the_latest(tmp_path: Path, measured: dict[int, float]) -> None:
    measured |= {4: 2.0, 8: 3.0, 12: 3.0, 14: 1.0}
    rows, config = Rows(), playing_config(max_steps=14, validate_every=7)
    config.evaluation = replace(config.evaluation, every_episodes=5)  # enough for an interval
    report = played_fit(tmp_path, config, [rows])
    assert report.best_return is not None
    assert read_checkpoint(report.best_return)["global_step"] == 12
    assert report.choice is not None
    assert report.choice["best_by_return"] == {
        "step": 12, "return_mean": 3.0, "return_ci95": [0.0, 1.0], "success_rate": 0.5,
    }  # fmt: skip
    assert report.choice["last"]["step"] == 14
    names = {name: value for (step, name), value in rows.rows.items() if step == 12 and name.startswith("evaluation/")}
    assert names == {
        "evaluation/return_mean": 3.0,
        "evaluation/return_ci95_low": 0.0,
        "evaluation/return_ci95_high": 1.0,
        "evaluation/success_rate": 0.5,
    }


def test_the_best_by_loss_is_played_if_it_has_not_been(tmp_path: Path) -> None:
    report = played_fit(tmp_path, playing_config(every=20, max_steps=7, validate_every=6))
    assert report.choice is not None
    best = read_checkpoint(report.best)["global_step"]
    assert report.choice["best_by_loss"]["step"] == best
    agent = Agent.from_checkpoint(report.best)
    episodes = run_episodes(agent, agent.environment, EPISODES, 1, report.choice["first_episode_seed"]).episodes
    mean = np.mean([episode.episode_return for episode in episodes])
    assert report.choice["best_by_loss"]["return_mean"] == pytest.approx(mean, rel=1e-12)
    assert report.choice["episodes"] == (1 if best == 7 else 2) * EPISODES
    assert Walk.steps == report.choice["episodes"] * LENGTH + EPISODES * LENGTH  # those above


def test_seeds_of_a_sweep_do_not_share_episodes(tmp_path: Path) -> None:
    config = playing_config(max_steps=1)
    config.seed = 3
    report = played_fit(tmp_path, config)
    assert report.choice is not None
    assert report.choice["first_episode_seed"] == 500_003_000


ALL_STEPS = EPISODES * LENGTH  # of one evaluation


MOMENTS = {
    1: 4,  # before an update that nothing else comes between
    3: 12,  # after a validation
    5: 20,  # beside a save
    6: 24,  # after the last update
}


@pytest.mark.parametrize(
    ("how", "evaluation", "update"),
    [
        pytest.param(how, *moment, marks=() if how == "killed" or moment[0] == 5 else pytest.mark.slow)
        for how in ("killed", "signal", "hangs")
        for moment in MOMENTS.items()
    ],
)
def test_a_run_that_is_stopped_while_playing_goes_on_as_one_that_was_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    unbroken: tuple[Path, FitReport],
    evaluation: int,
    update: int,
    how: str,
) -> None:
    def stop(step: int) -> None:
        if step == (evaluation - 1) * ALL_STEPS + 7:
            if how == "killed":
                raise Killed
            wait = 0.1 if how == "hangs" else 0.0
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGTERM)).start()
            time.sleep(60)

    monkeypatch.setattr(Walk, "at_step", staticmethod(stop))
    with pytest.raises((Killed, TrainingInterrupted)):
        run(tmp_path, playing_config())
    assert Walk.steps == (evaluation - 1) * ALL_STEPS + 7  # the other environment's step at most
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == update  # no update is lost
    report = run(tmp_path, playing_config(), resume=True)
    assert Walk.steps == 6 * ALL_STEPS + 7  # nothing but what was broken off is repeated
    require_equal_runs(tmp_path, unbroken[0])
    assert report.choice == unbroken[1].choice


@pytest.mark.parametrize(("step", "hook"), [(4, "middle"), (6, "middle"), (9, "end"), (12, "validation")])
def test_a_run_that_is_killed_while_training_goes_on_as_one_that_was_not(
    tmp_path: Path, unbroken: tuple[Path, FitReport], step: int, hook: str
) -> None:
    with pytest.raises(Killed):
        run(tmp_path, playing_config(), [KillAt(step, hook)])
    report = run(tmp_path, playing_config(), resume=True)
    require_equal_runs(tmp_path, unbroken[0])
    assert report.choice == unbroken[1].choice


def test_a_finished_run_remembers_and_plays_no_more(tmp_path: Path, unbroken: tuple[Path, FitReport]) -> None:
    first = run(tmp_path, playing_config())
    played = Walk.steps
    again = run(tmp_path, playing_config(), resume=True)
    assert (Walk.steps, again.choice) == (played, first.choice)
    require_equal_runs(tmp_path, unbroken[0])


def test_a_run_that_began_without_may_go_on_with_it(tmp_path: Path) -> None:
    run(tmp_path, playing_config(every=None, max_steps=6))
    report = run(tmp_path, playing_config(every=6, max_steps=12), resume=True)
    assert [int(row["step"]) for row in logged_rows(tmp_path) if "evaluation/return_mean" in row] == [6, 12]
    assert report.choice is not None
    assert report.choice["episodes"] >= 2 * EPISODES


def test_parts_of_a_batch_are_one_update(tmp_path: Path) -> None:
    run(tmp_path, playing_config(max_steps=8, accumulate=3))
    assert [int(row["step"]) for row in logged_rows(tmp_path) if "evaluation/return_mean" in row] == [4, 8]
    assert Walk.steps == 2 * ALL_STEPS or Walk.steps == 3 * ALL_STEPS  # the best by loss perhaps beside


def test_an_environment_that_fails_ends_the_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(step: int) -> None:
        raise RuntimeError("the floor is gone")

    monkeypatch.setattr(Walk, "at_step", staticmethod(fail))
    with pytest.raises(UserError, match=r"environment 'returns-tests/Walk-v0' failed .* \(seed 500000000\): .*floor"):
        run(tmp_path, playing_config())
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == EVERY


def test_what_is_warned_of_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def warn(step: int) -> None:
        logging.getLogger("trajectory_transformer.planning.native.proof").warning("slow")

    monkeypatch.setattr(Walk, "at_step", staticmethod(warn))
    played_fit(tmp_path, playing_config(max_steps=12, validate_every=4))
    assert [record.message for record in caplog.records] == ["slow"] * ALL_STEPS
    assert logging.getLogger("trajectory_transformer").level == logging.NOTSET


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_says_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=200)
    monkeypatch.setattr(callbacks_file, "Console", lambda **_: console)
    monkeypatch.setattr(callbacks_file, "PLAIN_LINE_SECONDS", 0.0)
    played_fit(tmp_path, playing_config(max_steps=5, progress_bar=True))
    shown = output.getvalue()
    if terminal:  # which is drawn now and then
        assert re.search(r"5/5.* loss \d.* return -\d.* remaining", shown.splitlines()[-2])
        return
    assert "acting with these weights: 2/3 episodes, mean return -" in shown
    assert shown.splitlines()[3].startswith("step 4/5  loss ")
    assert "  return -" in next(line for line in shown.splitlines() if line.startswith("step 5/5  loss"))


def test_throughput_leaves_episodes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[float] = []
    monkeypatch.setattr(Throughput, "played", lambda _, mean: told.append(mean))
    rows = Rows()
    played_fit(tmp_path, playing_config(max_steps=8), [rows])
    assert told == [value for (_, name), value in rows.rows.items() if name == "evaluation/return_mean"]


def test_a_best_that_could_not_be_saved_does_not_count(tmp_path: Path, measured: dict[int, float]) -> None:
    measured |= {4: 3.0, 8: 2.0}
    (tmp_path / "checkpoints" / "best_return.ckpt").mkdir(parents=True)

    class OutOfTheWay(KillAt):
        def _kill(self, trainer: Any, hook: str) -> None:
            if hook == "end" and trainer.global_step == 6:
                (tmp_path / "checkpoints" / "best_return.ckpt").rmdir()

    with pytest.warns(UserWarning, match=r"best_return\.ckpt' could not be saved"):
        report = played_fit(tmp_path, playing_config(max_steps=8), callbacks=[OutOfTheWay(0, "")])
    assert report.best_return is not None
    assert read_checkpoint(report.best_return)["global_step"] == 8
    assert report.choice is not None
    assert report.choice["best_by_return"]["return_mean"] == 2.0


def test_a_best_that_is_never_saved_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "best_return.ckpt").mkdir(parents=True)
    with (
        pytest.warns(UserWarning, match="could not be saved"),
        pytest.raises(UserError, match=r"best_return\.ckpt' could not be saved"),
    ):
        played_fit(tmp_path, playing_config(max_steps=4))


def two_processes(directory: Path, action: str) -> int:
    """Exit status of :func:`main`, run by two processes under DDP."""
    command = [sys.executable, "-m", "tests.training.test_returns", str(directory), action]
    return finish(subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True))


def main(directory: Path, action: str) -> None:
    """Train with two processes: "run", "signal" to stop the second one's second evaluation, or "resume"."""
    torch.set_num_threads(1)
    if action == "signal" and os.environ.get("LOCAL_RANK") == "1":
        stop = 2 * LENGTH + 3
        Walk.at_step = staticmethod(lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop else None)
    config = playing_config(max_steps=8, devices=2, strategy="ddp", validate_every=8)
    config.data.batch_size = 8
    run(directory, config, resume=action == "resume")


@pytest.mark.slow
def test_two_processes_share_the_episodes_and_stop_together(tmp_path: Path) -> None:
    for name, actions in {"unbroken": ["run"], "stopped": ["signal", "resume"]}.items():
        codes = [two_processes(tmp_path / name, action) for action in actions]
        assert codes == ([0] if name == "unbroken" else [143, 0])
    require_equal_runs(tmp_path / "stopped", tmp_path / "unbroken")
    best = tmp_path / "unbroken" / "checkpoints" / "best_return.ckpt"
    agent = Agent.from_checkpoint(best)
    episodes = run_episodes(agent, walk_data().environment, EPISODES, 1, 500_000_000).episodes
    mean = np.mean([episode.episode_return for episode in episodes])
    rows = {int(row["step"]): row for row in logged_rows(tmp_path / "unbroken") if "evaluation/return_mean" in row}
    assert list(rows) == [4, 8]
    found = float(rows[read_checkpoint(best)["global_step"]]["evaluation/return_mean"])
    assert found == pytest.approx(mean, rel=1e-12)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
