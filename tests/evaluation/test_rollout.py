"""An episode depends on its seed alone; rows without an episode rest; what is kept is what happened."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.make import make_environment
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import rollout
from trajectory_transformer.evaluation.records import RolloutOptions, RolloutRecord
from trajectory_transformer.evaluation.rollout import run_episodes
from trajectory_transformer.planning.plan import PlanCounts

from .scripted import WALK, ScriptedAgent, environment_spec, maze_spec

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
            success |= bool(result.infos[0]["success"])
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
    with pytest.raises(UserError, match=r"reward is nan at step 2 of the episode with seed 100"):
        run(ScriptedAgent(environment_spec(WALK, bad_reward_at=2)), 1, 1)


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
        assert np.asarray(render()).shape == (33, 47, 3)
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


def test_progress_shows_finished_episodes_and_the_mean(capsys: pytest.CaptureFixture[str]) -> None:
    record = run(ScriptedAgent(environment_spec(WALK)), 3, 2, RolloutOptions(progress=True))
    mean = np.mean([episode.episode_return for episode in record.episodes])
    shown = capsys.readouterr().out
    assert "3/3 episodes" in shown
    assert f"{mean:.5g}" in " ".join(shown.split())


@pytest.mark.parametrize(("episodes", "num_envs"), [(0, 1), (1, 0)])
def test_nothing_to_run_is_refused(episodes: int, num_envs: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run(ScriptedAgent(environment_spec(WALK)), episodes, num_envs)


def test_a_plan_past_the_environments_end_is_refused() -> None:
    agent = ScriptedAgent(environment_spec(WALK), PlannerConfig(horizon=31))
    with pytest.raises(UserError, match=r"planner.horizon=31 goes past the environment's end: .* at most 30 steps"):
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
    """Two episodes of a walk without any end, of agents that stay within it."""
    agent = ScriptedAgent(environment_spec("evaluation-tests/EndlessWalk-v0"), PlannerConfig(horizon=2))
    return run(agent, 2, 2, replace(QUIET, max_episode_steps=max_episode_steps, longest_episode=longest_episode))


def test_episodes_without_a_limit_end_as_the_datas_longest_does(caplog: pytest.LogCaptureFixture) -> None:
    record = unlimited(longest_episode=4)
    assert [(episode.length, episode.terminated) for episode in record.episodes] == [(4, False)] * 2
    assert record.max_episode_steps == 4
    assert [one.getMessage() for one in caplog.records] == [
        "environment 'evaluation-tests/EndlessWalk-v0' has no time limit: episodes end after 4 steps, as the data's "
        "longest does; evaluation.max_episode_steps=N (to evaluate.py, max_episode_steps=N) sets another limit"
    ]


def test_a_limit_that_is_given_counts(caplog: pytest.LogCaptureFixture) -> None:
    assert [episode.length for episode in unlimited(4, max_episode_steps=7).episodes] == [7, 7]
    walk = ScriptedAgent(environment_spec(WALK, success_at=1, max_episode_steps=3), PlannerConfig(horizon=2))
    assert max(e.length for e in run(walk, 8, 4, replace(QUIET, max_episode_steps=5, longest_episode=2)).episodes) == 5
    assert caplog.records == []


def test_where_no_limit_is_known_one_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"'evaluation-tests/EndlessWalk-v0' has no time limit.*give max_episode_steps"):
        unlimited(longest_episode=None)
