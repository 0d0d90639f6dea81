"""Episodes in the real environment, several at a time."""

import contextlib
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..environments.batch import (
    EnvironmentBatch,
    EnvironmentFailure,
    StepResult,
    environment_title,
    make_environments,
)
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..progress import WorkProgress
from .film import PlanFilm
from .records import (
    ActingAgent,
    EpisodePath,
    EpisodeRecord,
    EpisodeTrace,
    PlannerRecord,
    PlanTrace,
    RolloutOptions,
    RolloutRecord,
)

log = logging.getLogger(__name__)
_COLUMN = "{task.fields[finished]}/{task.total:.0f} episodes, mean return {task.fields[mean]}"


def run_episodes(
    agent: ActingAgent,
    environment: EnvironmentSpec,
    episodes: int,
    num_envs: int,
    seed: int,
    options: RolloutOptions = RolloutOptions(),  # noqa: B008 - frozen
) -> RolloutRecord:
    """Run ``episodes`` episodes, at most ``num_envs`` at once.

    Episode i resets its environment and the agent's random numbers with ``seed + i``, so that it depends neither on
    ``num_envs`` nor on the other episodes.

    Raises:
        ValueError: ``episodes`` or ``num_envs`` is below 1.
        UserError: the environment cannot be made, does not match, has no time limit or one below the plan's horizon,
            has no goal for a planner that needs one, raises an exception, or returns an invalid result.
    """
    if episodes < 1 or num_envs < 1:
        raise ValueError(f"episodes and num_envs must be at least 1, got {episodes} and {num_envs}")
    with (
        make_environments(
            environment, min(num_envs, episodes), options.recorder is not None, options.max_episode_steps
        ) as batch,
        WorkProgress(_COLUMN, options.progress) as progress,
    ):
        if limit_episodes(batch, options.longest_episode):
            log.warning(
                "environment '%s' has no time limit: episodes end after %d steps, the length of the data's longest "
                "episode; evaluation.max_episode_steps=N (for evaluate.py, max_episode_steps=N) sets another limit",
                environment_title(environment), options.longest_episode,
            )  # fmt: skip
        require_possible(agent.settings, agent.needs_goal, batch)
        rollout = _Rollout(agent, batch, episodes, seed, options)
        task = progress.add_task("planning", total=episodes, finished=0, mean="–")
        while rollout.active.any():
            rollout.step()
            state = rollout.progress()
            progress.update(task, **state)
            if options.stepped is not None:
                options.stepped(state["finished"], state["mean"])
        return rollout.record()


@dataclass
class _Running:
    """The running episode of a row."""

    episode: int
    episode_return: float = 0.0
    length: int = 0
    terminated: bool = False
    success: bool | None = None
    observations: list[np.ndarray] = field(default_factory=list)
    plans: list[PlanTrace] = field(default_factory=list)
    path: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)


class _Rollout:
    """The state of the rollout: the running episode of each row, and the finished ones."""

    def __init__(
        self, agent: ActingAgent, batch: EnvironmentBatch, episodes: int, seed: int, options: RolloutOptions
    ) -> None:
        self.agent, self.batch, self.episodes, self.seed, self.options = agent, batch, episodes, seed, options
        rows, batch.place = len(batch.environments), self._place
        self.rows = [_Running(episode) for episode in range(rows)]
        self.active = np.ones(rows, dtype=bool)
        self.next_episode = rows
        self.finished: list[_Running] = []
        self.plan_seconds: list[float] = []
        self.started = time.perf_counter()
        self.render_seconds = 0.0
        self.film = None if options.recorder is None else PlanFilm(agent, batch)
        agent.reset(rows, seeds=[seed + episode for episode in range(rows)])
        for row in range(rows):
            self._begin(row)

    def step(self) -> None:
        """Act and step once in every active row; begin the next episode in rows whose episode has ended."""
        active = self.active.copy()
        if self.batch.desired_goals is not None and self.agent.needs_goal:
            self.agent.aim(self.batch.desired_goals)
        started = time.perf_counter()
        actions = self.agent.act(self.batch.observations, active=active)
        if self.agent.planned.any():
            self.plan_seconds.append(time.perf_counter() - started)
        for row in np.flatnonzero(self.agent.planned):
            if (running := self.rows[row]).episode < self.options.traces:
                running.plans.append(PlanTrace(running.length, self.agent.last_plan.observations[row].copy()))
        for row in np.flatnonzero(active):
            self._shoot(int(row), planned=bool(self.agent.planned[row]))
        with self._naming_episodes(ahead=1):
            result = self.batch.step(actions, active)
        done = result.terminated | result.truncated
        for row in np.flatnonzero(active):
            self._account(int(row), result)
        self.agent.observe(result.actions, result.rewards, done | ~active)
        for row in np.flatnonzero(done & active):
            self._shoot(int(row), ended=True)
            self._finish(int(row), bool(result.terminated[row]))

    def _account(self, row: int, result: StepResult) -> None:
        """Add the row's step to its episode."""
        running = self.rows[row]
        running.length += 1
        running.episode_return += float(result.rewards[row])
        if (reported := result.successes[row]) is not None:
            running.success = reported or bool(running.success)
        self._look(row)

    def _look(self, row: int) -> None:
        """Keep the row's observation and position if its episode is traced."""
        running = self.rows[row]
        if running.episode < self.options.traces:
            running.observations.append(self.batch.observations[row].copy())
        achieved, desired = self.batch.achieved_goals, self.batch.desired_goals
        if running.episode < self.options.paths and achieved is not None and desired is not None:
            running.path.append((achieved[row].copy(), desired[row].copy()))

    def _shoot(self, row: int, planned: bool = False, ended: bool = False) -> None:
        """Record a frame of the row with its plan, if its episode is recorded."""
        film, recorder, running = self.film, self.options.recorder, self.rows[row]
        if film is None or recorder is None:
            return
        started = time.perf_counter()
        if planned:
            film.planned(row, running.length)
        state = row, running.length, running.episode_return, ended
        with self._naming_episodes():
            recorder.capture(running.episode, running.length, lambda: film.frame(*state))
        self.render_seconds += time.perf_counter() - started

    def _finish(self, row: int, terminated: bool) -> None:
        """Store the row's finished episode, and begin the next one, if any is left."""
        self.rows[row].terminated = terminated
        self.finished.append(self.rows[row])
        if self.options.finished is not None:
            self.options.finished(self._record_of(self.rows[row]))
        if self.next_episode == self.episodes:
            self.active[row] = False
            return
        self.rows[row] = _Running(self.next_episode)
        self.agent.begin_episode(row, self.seed + self.next_episode)
        self.next_episode += 1
        self._begin(row)

    def _begin(self, row: int) -> None:
        with self._naming_episodes():
            self.batch.reset(row, self.seed + self.rows[row].episode)
        if self.film is not None:
            self.film.begin(row)
        self._look(row)

    def _place(self, row: int, function: str) -> str:
        episode, step = self.rows[row].episode, self.rows[row].length + (function == "step()")
        return f"episode {episode}, step {step}, seed {self.seed + episode}"

    @contextlib.contextmanager
    def _naming_episodes(self, ahead: int = 0) -> Iterator[None]:
        """Convert an environment's failure into a UserError that names the episode and step; a reset is step 0."""
        try:
            yield
        except EnvironmentFailure as failure:
            running = self.rows[failure.row]
            step, title = running.length + ahead, environment_title(self.batch.spec)
            message = (
                f"environment '{title}' failed at step {step} of episode {running.episode} (seed "
                f"{self.seed + running.episode}): {failure.reason}"
            )
            own = failure.own
            raise (UserError(message) if own is None else UserError.of_own_code(message, own)) from failure

    def _record_of(self, run: _Running) -> EpisodeRecord:
        return EpisodeRecord(self.seed + run.episode, run.episode_return, run.length, run.terminated, run.success)

    def progress(self) -> dict[str, Any]:
        """Return the fields of the progress bar; a running episode counts by its share of the time limit."""
        limit = self.batch.max_episode_steps or math.inf
        running = sum(row.length for row, active in zip(self.rows, self.active, strict=True) if active)
        returns = [run.episode_return for run in self.finished]
        mean = f"{np.mean(returns):.5g}" if returns else "–"
        return {"completed": len(returns) + running / limit, "finished": len(returns), "mean": mean}

    def record(self) -> RolloutRecord:
        runs = sorted(self.finished, key=lambda run: run.episode)
        episodes = tuple(map(self._record_of, runs))
        traces = tuple(
            EpisodeTrace(run.episode, np.stack(run.observations), tuple(run.plans)) for run in runs if run.observations
        )
        paths = tuple(EpisodePath(run.episode, *map(np.stack, zip(*run.path, strict=True))) for run in runs if run.path)
        steps = sum(run.length for run in runs)
        seconds, limit = time.perf_counter() - self.started - self.render_seconds, self.batch.max_episode_steps
        return RolloutRecord(
            episodes, np.array(self.plan_seconds), steps, seconds, traces, self.agent.counts, paths, limit
        )


def limit_episodes(batch: EnvironmentBatch, longest_episode: int | None) -> bool:
    """Limit episodes without a limit to the data's longest, and return True; UserError if that is unknown, too."""
    if batch.max_episode_steps is not None:
        return False
    if longest_episode is None:
        raise UserError(
            f"environment '{environment_title(batch.spec)}' has no time limit, and the length of its data's "
            "episodes is unknown; give max_episode_steps=N (for train.py, evaluation.max_episode_steps=N)"
        )
    batch.limit(longest_episode)
    return True


def require_possible(settings: PlannerRecord, needs_goal: bool, batch: EnvironmentBatch) -> None:
    """Raise UserError for plans longer than an episode, or that need a goal which the environment lacks."""
    limit = batch.max_episode_steps
    if limit is not None and settings.horizon > limit:
        raise UserError(
            f"planner.horizon={settings.horizon} exceeds the environment's time limit: its episodes have at most "
            f"{limit} steps; shorten it"
        )
    if needs_goal and batch.desired_goals is None:
        raise UserError(
            f"planner={settings.name} needs an environment whose observations have a desired_goal; in others, set "
            "the goal with Agent.aim"
        )
