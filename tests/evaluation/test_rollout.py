"""An episode depends on its seed alone; rows without an episode are not stepped; records are correct."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.make import make_environment
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import rollout
from trajectory_transformer.evaluation.records import EpisodeRecord, RolloutOptions, RolloutRecord
from trajectory_transformer.evaluation.rollout import run_episodes
from trajectory_transformer.planning.plan import PlanCounts

from .scripted import WALK, ScriptedAgent, Walk, environment_spec, maze_spec

WALK_SPEC = environment_spec(WALK)
QUIET = RolloutOptions(progress=False)


def run(agent: ScriptedAgent, episodes: int, num_envs: int, options: RolloutOptions = QUIET) -> RolloutRecord:
    return run_episodes(agent, agent.environment, episodes, num_envs, 100, options)


@pytest.mark.parametrize("env_id", [WALK, "Hopper-v5"])
def test_episodes_do_not_depend_on_the_number_of_environments(env_id: str) -> None:
    spec = environment_spec(env_id)
    alone, beside, all_at_once = (run(ScriptedAgent(spec), 7, num_envs).episodes for num_envs in (1, 3, 50))
    assert alone == beside == all_at_once
    assert len({episode.length for episode in alone}) > 1  # they end at different times, so rows do get reused
    assert [episode.seed for episode in alone] == list(range(100, 107))


def test_an_episode_is_the_one_a_plain_loop_gives() -> None:
    spec = environment_spec(WALK)
    record = run(ScriptedAgent(spec), 3, 2).episodes[2]
    random = np.random.default_rng(102)
    total, length, terminated, truncated = 0.0, 0, False, False
    with make_environments(spec, 1) as batch:
        batch.reset(0, 102)
        success = False
        while not (terminated or truncated):
            result = batch.step(random.uniform([-2.0], [2.0], 1)[None].astype(np.float32), np.array([True]))
            total, length = total + float(result.rewards[0]), length + 1
            success |= bool(result.successes[0])
            terminated, truncated = bool(result.terminated[0]), bool(result.truncated[0])
    assert (record.episode_return, record.length, record.success) == (total, length, success)
    assert record.terminated == terminated


def test_no_step_is_wasted_and_rows_without_an_episode_rest() -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    record = run(agent, 5, 3)
    assert record.env_steps == sum(episode.length for episode in record.episodes)
    assert sum(int(active.sum()) for active in agent.active) == record.env_steps
    assert len(record.plan_seconds) == len(agent.active)
    assert agent.active[0].all()
    assert agent.active[-1].sum() < 3
    for active, (actions, rewards, done) in zip(agent.active, agent.observed, strict=True):
        assert np.all(actions[~active] == 0)
        assert np.all(rewards[~active] == 0)
        assert np.all(done[~active])


def test_the_agent_is_told_of_every_new_episode() -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    run(agent, 5, 2)
    assert sorted(seed for _, seed in agent.begun) == [100, 101, 102, 103, 104]
    ended = sum(int((done & active).sum()) for active, (_, _, done) in zip(agent.active, agent.observed, strict=True))
    assert ended == 5


def test_the_agent_observes_the_executed_action() -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    run(agent, 4, 2)
    actions = np.concatenate([actions for actions, _, _ in agent.observed])
    assert np.abs(actions).max() == 1.0  # it acts in [-2, 2], the environment's bounds are ±1


def test_success_is_null_where_the_environment_is_silent() -> None:
    assert {episode.success for episode in run(ScriptedAgent(environment_spec(WALK)), 8, 4).episodes} == {True, False}
    silent = environment_spec(WALK, reports_success=False)
    assert {episode.success for episode in run(ScriptedAgent(silent), 2, 2).episodes} == {None}


def test_success_at_any_step_counts() -> None:
    passing = environment_spec(WALK, success_at=1)
    assert {episode.success for episode in run(ScriptedAgent(passing), 8, 4).episodes} == {True}


def test_truncation_is_not_termination() -> None:
    spec = environment_spec(WALK, max_episode_steps=2)
    for episode in run(ScriptedAgent(spec, PlannerConfig(horizon=2)), 4, 2).episodes:
        assert (episode.length, episode.terminated) == (2, False)


def test_a_reward_that_is_not_finite_is_refused() -> None:
    with pytest.raises(UserError, match=r"at step 2 of episode 0 \(seed 100\): its reward is nan"):
        run(ScriptedAgent(environment_spec(WALK, bad_reward_at=2)), 1, 1)


class Misbehaving(Walk):
    """Episodes of three steps; the second step, or the reset, of the third episode is bad."""

    bad: ClassVar[Callable[[Any], Any]]  # of the good outcome
    at_reset: ClassVar[bool] = False
    begun: ClassVar[int] = 0

    def reset(self, **keywords: Any) -> tuple[Any, dict[str, Any]]:
        Misbehaving.begun += 1
        outcome = super().reset(**keywords)
        return type(self).bad(outcome) if self.at_reset and self.begun == 3 else outcome

    def step(self, action: Any) -> Any:
        observation, reward, _, truncated, info = super().step(action)
        outcome = (observation, reward, self.clock == 3, truncated, info)
        return outcome if self.at_reset or (self.begun, self.clock) != (3, 2) else type(self).bad(outcome)


gymnasium.register("rollout-tests/Misbehaving-v0", f"{__name__}:Misbehaving", max_episode_steps=30)


def raising(kind: type[BaseException], value: object) -> Callable[[Any], Any]:
    def raise_it(_: Any) -> Any:
        raise kind(value)

    return raise_it


@pytest.mark.parametrize(
    ("bad", "reason", "own"),
    [
        (raising(RuntimeError, "joint 3\nbroke"), "RuntimeError: joint 3 broke", True),
        (raising(SystemExit, 0), "it tried to end the process with exit code 0", True),
        (lambda _: None, "TypeError", False),
        (lambda good: good[:-1], "ValueError", False),
        (
            lambda good: ({"position": [0.0]}, *good[1:]),
            "does not fit its space: key 'clock' is missing",
            False,
        ),
        (lambda good: ({"position": [0.0, 1.0], "clock": [1.0]}, *good[1:]), "position has shape (2,)", False),
        (lambda good: ({"position": [np.nan], "clock": [1.0]}, *good[1:]), "has NaN or infinite values", False),
    ],
)
@pytest.mark.parametrize("at_reset", [True, False])
def test_an_environment_that_fails_is_named_with_its_episode(
    monkeypatch: pytest.MonkeyPatch, bad: Callable[[Any], Any], reason: str, own: bool, at_reset: bool
) -> None:
    """The episodes before it are delivered."""
    monkeypatch.setattr(Misbehaving, "bad", staticmethod(bad), raising=False)
    monkeypatch.setattr(Misbehaving, "at_reset", at_reset)
    monkeypatch.setattr(Misbehaving, "begun", 0)
    kept: list[EpisodeRecord] = []
    agent = ScriptedAgent(environment_spec("rollout-tests/Misbehaving-v0"), PlannerConfig(horizon=2))
    with pytest.raises(UserError) as caught:
        run(agent, 5, 1, replace(QUIET, finished=kept.append))
    assert [(episode.seed, episode.length) for episode in kept] == [(100, 3), (101, 3)]
    place = f"'rollout-tests/Misbehaving-v0' failed at step {0 if at_reset else 2} of episode 2 (seed 102)"
    assert f"environment {place}: " in str(caught.value)
    assert reason in str(caught.value)
    if own:
        assert "Traceback" in caught.value.told
        assert "in raise_it" in caught.value.told
    assert "batch.py" not in caught.value.told


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda good: (good[0], "much", *good[2:]), "its reward is 'much', which is not a number"),
        (lambda good: (*good[:4], None), "its info is None, which is not a dict"),
    ],
)
def test_a_step_that_is_nonsense_is_refused(
    monkeypatch: pytest.MonkeyPatch, bad: Callable[[Any], Any], reason: str
) -> None:
    monkeypatch.setattr(Misbehaving, "bad", staticmethod(bad), raising=False)
    monkeypatch.setattr(Misbehaving, "begun", 2)
    agent = ScriptedAgent(environment_spec("rollout-tests/Misbehaving-v0"), PlannerConfig(horizon=2))
    with pytest.raises(UserError, match=rf"failed at step 2 of episode 0 \(seed 100\): {reason}"):
        run(agent, 1, 1)


@pytest.mark.parametrize("code", [130, 143])
def test_what_a_signal_raises_is_not_the_environments_doing(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(Misbehaving, "bad", staticmethod(raising(SystemExit, code)), raising=False)
    monkeypatch.setattr(Misbehaving, "begun", 2)
    agent = ScriptedAgent(environment_spec("rollout-tests/Misbehaving-v0"), PlannerConfig(horizon=2))
    with pytest.raises(SystemExit) as caught:
        run(agent, 1, 1)
    assert caught.value.code == code


def test_an_environment_that_cannot_be_closed_costs_no_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Walk, "close", raising(RuntimeError, "stuck"))
    assert len(run_episodes(ScriptedAgent(WALK_SPEC), WALK_SPEC, 2, 1, 0, QUIET).episodes) == 2
    assert "closing environment 'evaluation-tests/Walk-v0' failed: RuntimeError: stuck" in caplog.text


def test_more_environments_than_episodes_are_not_made() -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    run(agent, 2, 10)
    assert len(agent.active[0]) == 2


def test_paths_hold_positions_and_goals_whatever_the_model_sees() -> None:
    whole = maze_spec("PointMaze_UMaze-v3", max_episode_steps=6)
    velocity = replace(whole, observation_indices=(6, 7))
    record = run(ScriptedAgent(velocity), 4, 2, replace(QUIET, paths=3))
    traces = run(ScriptedAgent(whole), 4, 2, replace(QUIET, traces=3)).traces
    assert [path.episode for path in record.paths] == [0, 1, 2]
    for path, trace in zip(record.paths, traces, strict=True):
        np.testing.assert_array_equal(path.positions, trace.observations[:, 0:2])
        np.testing.assert_array_equal(path.goals, trace.observations[:, 2:4])
        assert path.positions.shape == (7, 2)
    assert len({path.positions.tobytes() for path in record.paths}) == 3
    assert run(ScriptedAgent(environment_spec(WALK)), 2, 2, replace(QUIET, paths=2)).paths == ()


@pytest.mark.parametrize("plan_freq", [1, 3])
def test_traces_hold_observations_and_every_new_plan(plan_freq: int) -> None:
    agent = ScriptedAgent(environment_spec(WALK), PlannerConfig(horizon=4, plan_freq=plan_freq))
    record = run(agent, 4, 2, replace(QUIET, traces=3))
    assert [trace.episode for trace in record.traces] == [0, 1, 2]
    for trace, episode in zip(record.traces, record.episodes, strict=False):
        assert trace.observations.shape == (episode.length + 1, 2)
        np.testing.assert_array_equal(trace.observations[:, 0], np.arange(episode.length + 1))  # the clock
        assert [plan.step for plan in trace.plans] == list(range(0, episode.length, plan_freq))
        for plan in trace.plans:
            assert plan.observations.shape == (4, 2)
            np.testing.assert_array_equal(plan.observations[0], trace.observations[plan.step])


def test_plans_that_ran_out_before_plan_freq_are_kept_where_they_were_made() -> None:
    class ShortPlans(ScriptedAgent):
        def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
            actions = super().act(observations, active)
            self.planned = self.planned | (self.active[-1] & (self.ages % 3 == 1))
            return actions

    agent = ShortPlans(environment_spec(WALK), PlannerConfig(horizon=4, plan_freq=3, deadline_ms=1.0))
    record = run(agent, 4, 2, replace(QUIET, traces=3))
    for trace, episode in zip(record.traces, record.episodes, strict=False):
        assert [plan.step for plan in trace.plans] == [step for step in range(episode.length) if step % 3 < 2]
        for plan in trace.plans:
            np.testing.assert_array_equal(plan.observations[0], trace.observations[plan.step])


def test_the_agent_s_counts_are_the_record_s() -> None:
    agent = ScriptedAgent(environment_spec(WALK))
    agent.counts = PlanCounts(plans=9, shortened=4, narrowed=3, late=1)
    assert run(agent, 1, 1).counts == agent.counts


class Counter:
    """Counts the pictures it takes."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def capture(self, episode: int, step: int, render: Callable[[], object]) -> None:
        assert np.asarray(render())[:33].shape == (33, 47, 3)  # above the words
        self.seen.append((episode, step))


def test_every_state_can_be_filmed() -> None:
    recorder = Counter()
    record = run(ScriptedAgent(environment_spec(WALK)), 3, 2, replace(QUIET, recorder=recorder))
    expected = [(i, step) for i, episode in enumerate(record.episodes) for step in range(episode.length + 1)]
    assert sorted(recorder.seen) == expected


def test_time_spent_on_pictures_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class SlowCamera:
        def capture(self, episode: int, step: int, render: Callable[[], object]) -> None:
            clock[0] += 100.0

    class SlowAgent(ScriptedAgent):
        def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
            clock[0] += 0.25
            return super().act(observations, active)

    monkeypatch.setattr(rollout, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    record = run(SlowAgent(environment_spec(WALK)), 3, 2, replace(QUIET, recorder=SlowCamera()))
    np.testing.assert_allclose(record.plan_seconds, 0.25)
    assert record.seconds == pytest.approx(0.25 * len(record.plan_seconds))


def test_only_acts_that_plan_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    class PlanningAgent(ScriptedAgent):
        def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
            actions = super().act(observations, active)
            clock[0] += 0.25 if self.planned.any() else 0.001
            return actions

    monkeypatch.setattr(rollout, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    agent = PlanningAgent(environment_spec(WALK), PlannerConfig(horizon=4, plan_freq=3))
    record = run(agent, 1, 1)
    assert record.episodes[0].length > 3
    np.testing.assert_allclose(record.plan_seconds, [0.25] * -(-record.episodes[0].length // 3))


def test_progress_shows_finished_episodes_and_the_mean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "120")
    record = run(ScriptedAgent(environment_spec(WALK)), 3, 2, RolloutOptions(progress=True))
    mean = np.mean([episode.episode_return for episode in record.episodes])
    shown = capsys.readouterr().err
    assert "3/3 episodes" in shown
    assert f"{mean:.5g}" in " ".join(shown.split())


def test_every_step_is_told_of_and_may_be_the_last() -> None:
    told: list[tuple[int, str]] = []
    record = run(ScriptedAgent(environment_spec(WALK)), 3, 1, RolloutOptions(False, stepped=lambda *a: told.append(a)))
    assert len(told) == record.env_steps
    returns = [episode.episode_return for episode in record.episodes]
    assert told[0] == (0, "–")
    assert told[-1] == (3, f"{np.mean(returns):.5g}")

    def stop(finished: int, mean: str) -> None:
        if finished == 1:
            raise TimeoutError

    agent = ScriptedAgent(environment_spec(WALK))
    with pytest.raises(TimeoutError):
        run(agent, 3, 1, RolloutOptions(False, stepped=stop))
    assert len(agent.observed) == record.episodes[0].length


@pytest.mark.parametrize(("episodes", "num_envs"), [(0, 1), (1, 0)])
def test_nothing_to_run_is_refused(episodes: int, num_envs: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run(ScriptedAgent(environment_spec(WALK)), episodes, num_envs)


def test_a_plan_past_the_environments_end_is_refused() -> None:
    agent = ScriptedAgent(environment_spec(WALK), PlannerConfig(horizon=31))
    with pytest.raises(UserError, match=r"horizon=31 exceeds the environment's time limit: .* at most 30 steps"):
        run_episodes(agent, agent.environment, 1, 1, 0, QUIET)


def test_goals_are_asked_of_environments_that_have_them() -> None:
    agent = ScriptedAgent(environment_spec(WALK), PlannerConfig(name="goal"))
    with pytest.raises(UserError, match="planner=goal needs an environment whose observations have a desired_goal"):
        run_episodes(agent, agent.environment, 1, 1, 0, QUIET)


def test_agents_aim_at_each_rows_goal() -> None:
    make_environment("PointMaze_UMaze-v3").close()  # registers it
    spec = environment_spec("PointMaze_UMaze-v3", max_episode_steps=3)
    agent = ScriptedAgent(spec, PlannerConfig(name="goal", horizon=2))
    run_episodes(agent, spec, 3, 2, 0, QUIET)
    with make_environments(spec, 1) as batch:
        goals = []
        for seed in range(3):
            batch.reset(0, seed)
            assert batch.desired_goals is not None
            goals.append(batch.desired_goals[0].copy())
    np.testing.assert_array_equal(agent.aims[0], goals[:2])
    np.testing.assert_array_equal(agent.aims[-1][0], goals[2])
    other = ScriptedAgent(spec, PlannerConfig(horizon=2))
    run_episodes(other, spec, 1, 1, 0, QUIET)
    assert other.aims == []


def unlimited(longest_episode: int | None, max_episode_steps: int | None = None) -> RolloutRecord:
    """Two episodes of a walk without an end, with agents that stay within its bounds."""
    agent = ScriptedAgent(environment_spec("evaluation-tests/EndlessWalk-v0"), PlannerConfig(horizon=2))
    return run(agent, 2, 2, replace(QUIET, max_episode_steps=max_episode_steps, longest_episode=longest_episode))


def test_episodes_without_a_limit_end_as_the_datas_longest_does(caplog: pytest.LogCaptureFixture) -> None:
    record = unlimited(longest_episode=4)
    assert [(episode.length, episode.terminated) for episode in record.episodes] == [(4, False)] * 2
    assert record.max_episode_steps == 4
    assert [one.getMessage() for one in caplog.records] == [
        "environment 'evaluation-tests/EndlessWalk-v0' has no time limit: episodes end after 4 steps, the length of "
        "the data's longest episode; evaluation.max_episode_steps=N (for evaluate.py, max_episode_steps=N) sets "
        "another limit"
    ]


def test_a_limit_that_is_given_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert [episode.length for episode in unlimited(4, max_episode_steps=7).episodes] == [7, 7]
    walk = ScriptedAgent(environment_spec(WALK, success_at=1, max_episode_steps=3), PlannerConfig(horizon=2))
    assert max(e.length for e in run(walk, 8, 4, replace(QUIET, max_episode_steps=5, longest_episode=2)).episodes) == 5
    assert caplog.records == []


def test_where_no_limit_is_known_one_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"'evaluation-tests/EndlessWalk-v0' has no time limit.*give max_episode_steps"):
        unlimited(longest_episode=None)
