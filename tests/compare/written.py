"""Writes runs to disk, for tests that read them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trajectory_transformer.app.jobs import config_text
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.evaluation.results import read_results


def write_run(
    folder: Path, score: float, task: str = "a-v0", seed: int = 0, config: TrainConfig | None = None, **changed: Any
) -> Path:
    """A run's ``results.json``, and its ``config.yaml`` where one is given; ``changed`` are fields of the former."""
    episodes = [
        {"seed": 1000 * seed + i, "return": 10 * score, "length": 5, "terminated": True, "success": None,
         "normalized_score": score}
        for i in range(2)
    ]  # fmt: skip
    summary = {
        "return_mean": 10 * score, "return_std_error": 0.0, "return_iqm": 10 * score, "return_ci95": [0.0, 1.0],
        "normalized_score_mean": score, "success_rate": None, "plan_latency_ms": {"p50": 1.0, "p95": 1.0},
        "env_steps_per_second": 1.0,
    }  # fmt: skip
    results: dict[str, Any] = {
        "schema": 1, "command": "", "commit": "0123456789", "versions": {"python": "3", "mujoco": "3.0"}, "seed": seed,
        "dataset": task, "env_id": "Env-v0", "max_episode_steps": 5, "checkpoint": f"{folder}/checkpoints/best.ckpt",
        "planner": {"name": "return", "horizon": 1, "beam_width": 1},
        "behavior": {"return_mean": 200.0, "return_max": 400.0, "episodes": 7},
        "reference_scores": {"min": 0.0, "max": 1000.0, "source": "dataset"}, "episodes": episodes, "summary": summary,
        "trained": {"fingerprint": "f" * 64, "validation_fraction": 0.1, "seed": seed},
    }  # fmt: skip
    for name, value in changed.items():
        results[name] = results[name] | value if isinstance(value, Mapping) and results.get(name) else value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results))
    read_results(folder / "results.json")  # such as a run writes
    if config is not None:
        config.seed = seed
        (folder / "config.yaml").write_text(config_text(config))
    return folder
