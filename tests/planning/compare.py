"""Compare the returns of the fast planner and of the oracle in ``reference_planner.py`` on the same episodes.

    python -m tests.planning.compare CHECKPOINT OUT.csv [--horizon 3] [--beam-width 8] [--episodes 20] [--threads 1]

One row for each episode: its seed, and the return with either planner. Prints the means, and a bootstrap interval of
the difference between episodes of the same seed.
"""

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from tests.planning.reference_planner import ReferenceBeamPlanner
from trajectory_transformer.evaluation.records import RolloutOptions
from trajectory_transformer.evaluation.rollout import run_episodes
from trajectory_transformer.evaluation.scores import bootstrap_interval
from trajectory_transformer.planning.agent import Agent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--horizon", type=int, default=3)
    parser.add_argument("--beam-width", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    fast = Agent.from_checkpoint(arguments.checkpoint, horizon=arguments.horizon, beam_width=arguments.beam_width)
    planner = fast._planner
    slow = Agent(
        ReferenceBeamPlanner(planner.model, planner.discretizer, replace(planner.settings, decoder="eager")),
        fast.environment,
    )
    returns = {}
    for name, agent in (("planner", fast), ("oracle", slow)):
        record = run_episodes(agent, agent.environment, arguments.episodes, arguments.episodes, 0, RolloutOptions())
        returns[name] = np.array([episode.episode_return for episode in record.episodes])
        print(f"{name}: mean return {returns[name].mean():.1f} in {record.seconds:.0f} s", flush=True)
    low, high = bootstrap_interval(returns["planner"] - returns["oracle"])
    difference = (returns["planner"] - returns["oracle"]).mean()
    print(f"planner - oracle: {difference:.1f}, 95 % interval {low:.1f} to {high:.1f}")
    with arguments.out.open("w", newline="") as file:
        rows = enumerate(zip(returns["planner"], returns["oracle"], strict=True))
        csv.writer(file).writerows([["seed", "planner", "oracle"], *([seed, *pair] for seed, pair in rows)])


if __name__ == "__main__":
    main()
