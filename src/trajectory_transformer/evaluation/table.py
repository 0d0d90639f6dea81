"""The results of an evaluation as a table for the screen."""

from typing import Any

from rich.table import Table


def results_table(results: dict[str, Any]) -> Table:
    """What a researcher looks at first; ``results`` as in ``results.json``."""
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
