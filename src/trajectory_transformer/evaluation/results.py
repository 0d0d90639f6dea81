"""``results.json``: built, written atomically, and read back with every field checked."""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration import PlannerConfig
from ..errors import UserError
from ..learners.policy_agent import PolicySettings
from .records import RolloutRecord
from .scores import normalized_scores, summarize_returns, wilson_interval

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "lightning", "numpy", "gymnasium", "mujoco")
_NUMBER = (int, float)
_NUMBER_OR_NULL = (int, float, type(None))
# What every field must be: a type or several, a mapping of fields, or a list of such.
_SCHEMA: dict[str, Any] = {
    "schema": int,
    "command": str,
    "commit": (str, type(None)),
    "versions": {"python": str},
    "seed": int,
    "dataset": str,
    "env_id": str,
    "checkpoint": str,
    "planner": {"name": str, "horizon": int, "beam_width": int},
    "behavior": {"return_mean": _NUMBER, "return_max": _NUMBER, "episodes": int},
    "reference_scores": {"min": _NUMBER_OR_NULL, "max": _NUMBER_OR_NULL, "source": str},
    "episodes": [
        {
            "seed": int,
            "return": _NUMBER,
            "length": int,
            "terminated": bool,
            "success": (bool, type(None)),
            "normalized_score": _NUMBER_OR_NULL,
        }
    ],
    "summary": {
        "return_mean": _NUMBER,
        "return_std_error": _NUMBER,
        "return_iqm": _NUMBER,
        "return_ci95": [_NUMBER],
        "normalized_score_mean": _NUMBER_OR_NULL,
        "success_rate": _NUMBER_OR_NULL,
        "plan_latency_ms": {"p50": _NUMBER, "p95": _NUMBER},
        "env_steps_per_second": _NUMBER,
    },
}


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and what the results are compared with.

    Attributes:
        episodes: how many, at least 1; episode i has seed ``first_episode_seed + i``.
        num_envs: environments planned for at once.
        seed: of the run.
        video: how many of the first episodes to film.
        dataset_ids: Minari ids that the checkpoint was trained on.
        behavior_returns: (episodes,) undiscounted returns of that data, at least one.
        reference_scores: (minimum, maximum) return for normalised scores, or None.
        reference_source: where they come from: "dataset", "d4rl" or "none".
        checkpoint: path, as it is to be recorded.
        command: the command line, as it is to be recorded.
        commit: of the code that runs, or None.
        progress: show a progress bar.
        first_episode_seed: of its environment and its planning; None: ``seed``.
    """

    episodes: int
    num_envs: int
    seed: int
    video: int
    dataset_ids: tuple[str, ...]
    behavior_returns: np.ndarray
    reference_scores: tuple[float, float] | None
    reference_source: str
    checkpoint: str
    command: str
    commit: str | None
    progress: bool = True
    first_episode_seed: int | None = None

    @property
    def episode_seed(self) -> int:
        """Seed of the first episode."""
        return self.seed if self.first_episode_seed is None else self.first_episode_seed


def build_results(
    request: EvaluationRequest,
    planner: PlannerConfig | PolicySettings,
    env_id: str,
    record: RolloutRecord,
    imitates: bool = False,
) -> dict[str, Any]:
    """The content of ``results.json``: scores in percent, latencies in milliseconds of an ``Agent.act`` that plans.

    Where the agent ``imitates``, "summary" has "percent_of_data_return", mean and ends of its 95 % interval, of the
    behaviour's mean return, if that is positive: a share of a loss says nothing.
    """
    returns = np.array([episode.episode_return for episode in record.episodes])
    scores = normalized_scores(returns, request.reference_scores)
    low, high = request.reference_scores or (None, None)
    behavior = float(np.mean(request.behavior_returns, dtype=np.float64))
    summary = _summary(record, returns, scores)
    if imitates and behavior > 0:
        told = (summary["return_mean"], *summary["return_ci95"])
        summary["percent_of_data_return"] = [100 * value / behavior for value in told]
    return {
        "schema": SCHEMA_VERSION,
        "command": request.command,
        "commit": request.commit,
        "versions": package_versions(),
        "seed": request.seed,
        "dataset": ",".join(request.dataset_ids),
        "env_id": env_id,
        "num_envs": min(request.num_envs, request.episodes),
        "checkpoint": request.checkpoint,
        "planner": asdict(planner),
        "deadline": None if planner.deadline_ms is None else {"ms": planner.deadline_ms, **asdict(record.counts)},
        "behavior": {
            "return_mean": behavior,
            "return_max": float(np.max(request.behavior_returns)),
            "episodes": len(request.behavior_returns),
        },
        "reference_scores": {"min": low, "max": high, "source": request.reference_source},
        "episodes": _episode_rows(record, scores),
        "summary": summary,
    }


def _episode_rows(record: RolloutRecord, scores: np.ndarray | None) -> list[dict[str, Any]]:
    return [
        {
            "seed": episode.seed,
            "return": episode.episode_return,
            "length": episode.length,
            "terminated": episode.terminated,
            "success": episode.success,
            "normalized_score": None if scores is None else float(scores[i]),
        }
        for i, episode in enumerate(record.episodes)
    ]


def _summary(record: RolloutRecord, returns: np.ndarray, scores: np.ndarray | None) -> dict[str, Any]:
    summary = summarize_returns(returns)
    successes = [episode.success for episode in record.episodes if episode.success is not None]
    p50, p95 = np.percentile(1000.0 * record.plan_seconds, [50, 95])
    return {
        "return_mean": summary.mean,
        "return_std_error": summary.standard_error,
        "return_iqm": summary.interquartile_mean,
        "return_ci95": list(summary.interval),
        "normalized_score_mean": None if scores is None else float(scores.mean()),
        "success_rate": float(np.mean(successes)) if successes else None,
        "success_ci95": list(wilson_interval(sum(successes), len(successes))) if successes else None,
        "plan_latency_ms": {"p50": float(p50), "p95": float(p95)},
        "env_steps_per_second": record.env_steps / max(record.seconds, 1e-9),
    }


def current_commit() -> str | None:
    """Commit of the repository that this package's source lies in, or None outside a repository or without git."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that results depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def write_results(results: dict[str, Any], path: Path) -> None:
    """Write valid JSON under the final name in one move, so that a reader never sees half of it.

    Raises:
        UserError: a field is wrong or not finite, or the file cannot be written.
    """
    require_valid(results, str(path))
    text = json.dumps(results, indent=2, allow_nan=False) + "\n"
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = Path(file.name)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"results cannot be written to {path}: {error.strerror or error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """The content of a ``results.json``, with every field of the schema present and of its type.

    Raises:
        UserError: the file is missing, is not JSON, or a field is missing or wrong; the message names it.
    """
    try:
        results = json.loads(Path(path).read_text())
    except OSError as error:
        raise UserError(f"results file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"results file {path} is not valid JSON: {error}") from error
    require_valid(results, str(path))
    return results


def require_valid(results: Any, name: str) -> None:
    """Refuse ``results`` that differ from schema 1; fields beyond it are allowed."""
    fault = _fault(results, _SCHEMA, "")
    if fault is None and results["schema"] != SCHEMA_VERSION:
        fault = f"field 'schema' is {results['schema']}, this version reads {SCHEMA_VERSION}"
    if fault is None and len(results["summary"]["return_ci95"]) != 2:
        fault = "field 'summary.return_ci95' must hold two numbers"
    if fault is not None:
        raise UserError(f"results {name}: {fault}")


def _fault(value: Any, expected: Any, where: str) -> str | None:
    """What is wrong with ``value``, or None."""
    label = f"field '{where}'" if where else "the file"
    if isinstance(expected, dict):
        if not isinstance(value, dict):
            return f"{label} must be a mapping"
        prefix = f"{where}." if where else ""
        missing = [f"{prefix}{key}" for key in expected if key not in value]
        if missing:
            return f"field '{missing[0]}' is missing"
        return next(filter(None, (_fault(value[k], e, f"{prefix}{k}") for k, e in expected.items())), None)
    if isinstance(expected, list):
        if not isinstance(value, list):
            return f"{label} must be a list"
        return next(filter(None, (_fault(v, expected[0], f"{where}[{i}]") for i, v in enumerate(value))), None)
    kinds = expected if isinstance(expected, tuple) else (expected,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
        return f"{label} is {value!r}, expected {names}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{label} is {value}, expected a finite number"
    return None
