"""Evaluation of an agent in its environment: ``results.json``, plots and videos."""

import csv
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..environments.batch import environment_title, make_environments
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .maze_plot import plot_trajectories, read_walls
from .measurements import planning_measurements, write_measurements
from .plots import plot_plan, plot_returns
from .records import ActingAgent, EpisodeRecord, RolloutOptions, RolloutRecord
from .results import EvaluationRequest, acts_by, build_results, return_interval, write_results
from .rollout import run_episodes
from .scores import LEAST_EPISODES
from .video import VideoRecorder, log, unavailable_reason

_TRACED_EPISODES = 1
_DRAWN_PATHS = 40


def evaluate(agent: ActingAgent, request: EvaluationRequest, run_directory: Path) -> dict[str, Any]:
    """Act in the agent's environment, print a table of the results, and return the contents of ``results.json``.

    Writes ``results.json``, ``figures.csv``, ``plots/returns.png``, ``plots/plan_vs_outcome.png`` if plans look ahead,
    ``plots/trajectories.png`` if the environment is a maze, and ``videos/episode_<i>.mp4`` if requested; the directory
    is made if needed. Until ``results.json`` is written, ``episodes.csv`` holds the finished episodes, even if the
    process is killed.

    Raises:
        UserError: the environment cannot be made, does not match or fails, or the directory is not writable.
    """
    run_directory = Path(run_directory)
    recorder = _recorder(request, agent.environment, run_directory / "videos")
    kept = _FinishedEpisodes(run_directory / "episodes.csv")
    dataset = request.training.dataset
    limits = request.max_episode_steps, dataset.longest_episode
    options = RolloutOptions(request.progress, _TRACED_EPISODES, recorder, _DRAWN_PATHS, *limits, kept.add)
    wanted = request.episodes, request.num_envs, request.first_episode_seed
    try:
        record = run_episodes(agent, agent.environment, *wanted, options)
    except UserError as error:
        if kept.number:
            error.args = (f"{error}; {kept.file} has the {kept.number} finished episodes",)
        raise
    finally:
        if recorder is not None:
            recorder.close()
    title = environment_title(agent.environment)
    results = build_results(request, agent.settings, title, record, agent.imitates)
    write_results(results, run_directory / "results.json")
    kept.file.unlink(missing_ok=True)
    write_measurements(run_directory / "figures.csv", *planning_measurements(results))
    _plot(agent.environment, dataset.returns.numpy(), results, record, run_directory)
    Console().print(results_table(results))
    return results


class _FinishedEpisodes:
    """A CSV file of the finished episodes, each written immediately so that it survives the end of the process.

    The first finished episode replaces the file of an earlier evaluation.
    """

    def __init__(self, file: Path) -> None:
        self.file, self.number = file, 0

    def add(self, episode: EpisodeRecord) -> None:
        """Append an episode; raises UserError if it cannot be written."""
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a" if self.number else "w", newline="", encoding="utf-8") as opened:
                writer = csv.DictWriter(opened, [field.name for field in fields(EpisodeRecord)])
                if not self.number:
                    writer.writeheader()
                writer.writerow(asdict(episode))
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror or error}") from error
        self.number += 1


def _recorder(request: EvaluationRequest, environment: EnvironmentSpec, directory: Path) -> VideoRecorder | None:
    """Return a recorder of the first episodes, or None; warns if videos were requested but cannot be made."""
    if request.video == 0:
        return None
    with make_environments(environment, 1) as batch:
        metadata = batch.environments[0].metadata
        reason = unavailable_reason(batch.environments[0])
    if reason is not None:
        log.warning("no video: %s", reason)
        return None
    return VideoRecorder(directory, request.video, float(metadata.get("render_fps") or 30))


def _plot(
    environment: EnvironmentSpec, behavior: np.ndarray, results: dict[str, Any], record: RolloutRecord, directory: Path
) -> None:
    plots, title = directory / "plots", results["env_id"]
    returns = np.array([episode.episode_return for episode in record.episodes])
    plot_returns(behavior, returns, return_interval(results), title, plots / "returns.png", acts_by(results))
    for trace in record.traces:
        # A policy, or a plan of a single action, has only the present state.
        if len(trace.plans[0].observations) > 1:
            plot_plan(trace, environment.observation_names, title, plots / "plan_vs_outcome.png")
    if record.paths:
        with make_environments(environment, 1) as batch:
            walls = read_walls(batch.environments[0])
        if walls is not None:
            plot_trajectories(walls, record, title, plots / "trajectories.png")


def summary_rows(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return names and formatted values of the main results; ``results`` as in ``results.json``."""
    summary, behavior, episodes = results["summary"], results["behavior"], results["episodes"]
    interval, actor = return_interval(results), acts_by(results)
    rows = [
        ("behaviour mean return", f"{behavior['return_mean']:.5g}  ({behavior['episodes']} episodes)"),
        ("behaviour best return", f"{behavior['return_max']:.5g}"),
        (f"{actor} mean return", f"{summary['return_mean']:.5g}  ({len(episodes)} episodes)"),
        (
            "  its 95 % interval",
            "{:.5g} to {:.5g}".format(*interval) if interval else f"needs at least {LEAST_EPISODES} episodes",
        ),
        (f"{actor} interquartile mean", f"{summary['return_iqm']:.5g}"),
        (f"{actor} best return", f"{max(episode['return'] for episode in episodes):.5g}"),
    ]
    if "percent_of_data_return" in summary:
        form = "{:.0f} %  (95 % interval {:.0f} to {:.0f} %)" if interval else "{:.0f} %"
        rows.append(("share of the data's return", form.format(*summary["percent_of_data_return"])))
    if summary["normalized_score_mean"] is not None:
        source = results["reference_scores"]["source"]
        rows.append(("normalised score", f"{summary['normalized_score_mean']:.1f} %  (reference: {source})"))
    if summary["success_rate"] is not None:
        percents = [100 * share for share in (summary["success_rate"], *summary["success_ci95"])]
        rows.append(("success rate", "{:.0f} %  (95 % interval {:.0f} to {:.0f} %)".format(*percents)))
    if (choice := results.get("choice")) is not None:
        step = choice["best_by_return" if choice["by"] == "return" else "best_by_loss"]["step"]
        spent = f"{choice['episodes']} other episodes were played while training"
        rows.append(("weights", f"of update {step}, best by {choice['by']}  ({spent})"))
    together = "1 environment" if results["num_envs"] == 1 else f"{results['num_envs']} environments at once"
    latency = "{p50:.1f} ms median, {p95:.1f} ms 95th percentile".format(**summary["plan_latency_ms"])
    if (act := results["planner"].get("act")) is not None:
        rows.append(("executed action", f"planner.act={act}"))
    rows.append(("plan latency" if actor == "planner" else "time per action", f"{latency}, for {together}"))
    if (deadline := results["deadline"]) is not None:
        percents = {name: 100 * deadline[name] / deadline["plans"] for name in ("shortened", "narrowed", "late")}
        shares = ", ".join(f"{round(percent, 1):g} % {name}" for name, percent in percents.items())
        rows.append((f"deadline {deadline['ms']:g} ms", f"{deadline['plans']} plans: {shares}"))
    return [*rows, ("environment steps per second", f"{summary['env_steps_per_second']:.1f}")]


def agent_title(results: dict[str, Any]) -> str:
    """Return what acted, such as "return planner" or "bc policy"; ``results`` as in ``results.json``."""
    actor = acts_by(results)
    return f"{results['planner']['name'].removesuffix(f'_{actor}')} {actor}"


def results_table(results: dict[str, Any]) -> Table:
    """Return a table of the main results for the terminal; ``results`` as in ``results.json``."""
    title = f"{results['env_id']}: {agent_title(results)}"
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for row in summary_rows(results):
        table.add_row(*row)
    return table
