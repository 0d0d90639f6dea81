"""Evaluation from an agent to ``results.json``, pictures and films."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from ..environments.batch import environment_title, make_environments
from ..environments.spec import EnvironmentSpec
from .maze_plot import plot_trajectories, read_walls
from .measurements import planning_measurements, write_measurements
from .plots import plot_plan, plot_returns, plot_training
from .records import ActingAgent, RolloutOptions, RolloutRecord
from .results import EvaluationRequest, build_results, write_results
from .rollout import run_episodes
from .video import VideoRecorder, log, unavailable_reason

_TRACED_EPISODES = 1
_DRAWN_PATHS = 40


def evaluate(agent: ActingAgent, request: EvaluationRequest, run_directory: Path) -> dict[str, Any]:
    """Plan episodes in the agent's environment and record what came of it.

    Writes ``results.json``, ``figures.csv``, ``plots/returns.png``, ``plots/plan_vs_outcome.png`` where plans look
    ahead, ``plots/trajectories.png`` where the environment is a maze, ``videos/episode_<i>.mp4`` if asked for, and
    ``plots/training.png`` if the directory holds ``metrics.csv``; prints a table.

    Args:
        agent: acts; its ``environment`` is what it acts in.
        request: how many episodes, and what to compare them with.
        run_directory: where files go; made if it is missing.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: the environment cannot be made or does not fit, or the directory cannot be written.
    """
    run_directory = Path(run_directory)
    env_id = environment_title(agent.environment)
    recorder = _recorder(request, agent.environment, run_directory / "videos")
    options = RolloutOptions(request.progress, _TRACED_EPISODES, recorder, _DRAWN_PATHS)
    try:
        record = run_episodes(
            agent, agent.environment, request.episodes, request.num_envs, request.first_episode_seed, options
        )
    finally:
        if recorder is not None:
            recorder.close()
    results = build_results(request, agent.settings, env_id, record, agent.imitates)
    write_results(results, run_directory / "results.json")
    write_measurements(run_directory / "figures.csv", *planning_measurements(results))
    _plot(agent.environment, request, results, record, run_directory)
    Console().print(results_table(results))
    return results


def _recorder(request: EvaluationRequest, environment: EnvironmentSpec, directory: Path) -> VideoRecorder | None:
    """A recorder of the first episodes, or None, with one warning if films were asked for and cannot be made."""
    if request.video == 0:
        return None
    with make_environments(environment, 1) as batch:
        metadata = batch.environments[0].metadata
        reason = unavailable_reason(metadata, uses_mujoco="mujoco" in sys.modules)
    if reason is not None:
        log.warning("no video: %s", reason)
        return None
    return VideoRecorder(directory, request.video, float(metadata.get("render_fps") or 30))


def _plot(
    environment: EnvironmentSpec,
    request: EvaluationRequest,
    results: dict[str, Any],
    record: RolloutRecord,
    run_directory: Path,
) -> None:
    plots = run_directory / "plots"
    returns = np.array([episode.episode_return for episode in record.episodes])
    interval = tuple(results["summary"]["return_ci95"])
    plot_returns(request.behavior_returns, returns, interval, results["env_id"], plots / "returns.png")
    names = _observation_names(environment)
    for trace in record.traces[:1]:
        if len(trace.plans[0].observations) == 1:  # only the present: a policy, or a plan of a single action
            continue
        plot_plan(trace, names, results["env_id"], plots / "plan_vs_outcome.png")
    _plot_paths(environment, record, results["env_id"], plots / "trajectories.png")
    plot_training(run_directory / "metrics.csv", plots / "training.png")


def _plot_paths(environment: EnvironmentSpec, record: RolloutRecord, title: str, path: Path) -> None:
    """Draw the paths where the environment is a maze."""
    if not record.paths:
        return
    with make_environments(environment, 1) as batch:
        walls = read_walls(batch.environments[0])
    if walls is not None:
        plot_trajectories(walls, record, title, path)


def _observation_names(environment: EnvironmentSpec) -> list[str]:
    """Names of the observation dimensions that the model sees."""
    names = [f"observation{name}" if name.startswith("[") else name for name in environment.observation.names()]
    chosen = environment.observation_indices
    return names if chosen is None else [names[index] for index in chosen]


def results_table(results: dict[str, Any]) -> Table:
    """The main results, for the screen; ``results`` as in ``results.json``."""
    summary, behavior, count = results["summary"], results["behavior"], len(results["episodes"])
    low, high = summary["return_ci95"]
    latency = summary["plan_latency_ms"]
    rows = [
        ("behaviour mean return", f"{behavior['return_mean']:.5g}  ({behavior['episodes']} episodes)"),
        ("behaviour best return", f"{behavior['return_max']:.5g}"),
        ("planner mean return", f"{summary['return_mean']:.5g}  ({count} episodes)"),
        ("  its 95 % interval", f"{low:.5g} to {high:.5g}" if count > 1 else "needs more than one episode"),
        ("planner interquartile mean", f"{summary['return_iqm']:.5g}"),
        ("planner best return", f"{max(episode['return'] for episode in results['episodes']):.5g}"),
    ]
    if "percent_of_data_return" in summary:
        shares = summary["percent_of_data_return"]
        rows.append(("share of the data's return", "{:.0f} %  (95 % interval {:.0f} to {:.0f} %)".format(*shares)))
    if summary["normalized_score_mean"] is not None:
        source = results["reference_scores"]["source"]
        rows.append(("normalised score", f"{summary['normalized_score_mean']:.1f} %  (reference: {source})"))
    if summary["success_rate"] is not None:
        low, high = summary["success_ci95"]
        interval = f"(95 % interval {100 * low:.0f} to {100 * high:.0f} %)"
        rows.append(("success rate", f"{100 * summary['success_rate']:.0f} %  {interval}"))
    together = "1 environment" if results["num_envs"] == 1 else f"{results['num_envs']} environments at once"
    quantiles = f"{latency['p50']:.1f} ms median, {latency['p95']:.1f} ms 95th percentile"
    rows.append(("plan latency", f"{quantiles}, for {together}"))
    if (deadline := results["deadline"]) is not None:
        shares = [
            f"{round(100 * deadline[what] / deadline['plans'], 1):g} % {what}"
            for what in ("shortened", "narrowed", "late")
        ]
        rows.append((f"deadline {deadline['ms']:g} ms", f"{deadline['plans']} plans: {', '.join(shares)}"))
    rows.append(("environment steps per second", f"{summary['env_steps_per_second']:.1f}"))
    table = Table(
        title=f"{results['env_id']}: {results['planner']['name']} planner", show_header=False, title_justify="left"
    )
    table.add_column(style="cyan", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table
