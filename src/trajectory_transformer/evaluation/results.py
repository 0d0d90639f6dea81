"""``results.json``: its construction, atomic writing, and validated reading."""

import contextlib
import functools
import importlib.metadata
import json
import platform
import reprlib
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypeAlias

import numpy as np
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ..errors import UserError
from ..files import write_output
from .records import EpisodeRecord, PlannerRecord, RolloutRecord
from .scores import LEAST_EPISODES, normalized_scores, return_summary, wilson_interval

if TYPE_CHECKING:  # compare, which reads results, does not load torch
    from ..checkpoint import TrainingRecord

SCHEMA_VERSION = 1
_PACKAGES = ("torch", "lightning", "numpy", "gymnasium", "mujoco")
_FiniteOrNone: TypeAlias = FiniteFloat | None


def _typed(name: str, fields: Mapping[str, Any]) -> Any:
    """Return a ``TypedDict`` of these fields; nested mappings become nested ones."""
    types = {key: _typed(key, kind) if isinstance(kind, Mapping) else kind for key, kind in fields.items()}
    return TypedDict(name, types)  # pyright: ignore


_EPISODE = {
    "seed": int,
    "return": FiniteFloat,
    "length": int,
    "terminated": bool,
    "success": bool | None,
    "normalized_score": _FiniteOrNone,
}
_SUMMARY = {
    "return_mean": FiniteFloat,
    "return_std_error": FiniteFloat,
    "return_iqm": FiniteFloat,
    "return_ci95": Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)],
    "normalized_score_mean": _FiniteOrNone,
    "success_rate": _FiniteOrNone,
    "plan_latency_ms": {"p50": FiniteFloat, "p95": FiniteFloat},
    "env_steps_per_second": FiniteFloat,
}
_RESULTS = {  # fields that all versions of schema 1 have
    "schema": int,
    "command": str,
    "commit": str | None,
    "versions": {"python": str},
    "seed": int,
    "dataset": str,
    "env_id": str,
    "checkpoint": str,
    "planner": {"name": str, "horizon": int, "beam_width": int},
    "behavior": {"return_mean": FiniteFloat, "return_max": FiniteFloat, "episodes": int},
    "reference_scores": {"min": _FiniteOrNone, "max": _FiniteOrNone, "source": str},
    "episodes": list[_typed("episode", _EPISODE)],
    "summary": _SUMMARY,
    "trained": NotRequired[
        _typed(
            "trained",
            {"fingerprint": str, "validation_fraction": FiniteFloat, "seed": int, "weights": NotRequired[str]},
        )
        | None
    ],
    "learner": NotRequired[dict[str, Any] | None],
}


@dataclass(frozen=True)
class EvaluationRequest:
    """A requested evaluation of a trained agent."""

    training: "TrainingRecord"  # of the agent, with whose data the results are compared
    checkpoint: str  # path, for the record
    weights: str  # Checkpoint.fingerprint, for the record
    model: Mapping[str, Any]  # Checkpoint.model, for the record
    command: str  # command line, for the record
    commit: str | None  # commit of the code
    episodes: int  # at least 1; episode i has seed ``first_episode_seed + i``, for environment and planning
    num_envs: int  # environments planned for at once
    seed: int  # seed of the run
    first_episode_seed: int
    video: int = 0  # number of first episodes to record
    max_episode_steps: int | None = None  # as in RolloutOptions
    progress: bool = True  # show a progress bar
    choice: Mapping[str, Any] | None = None  # how the weights were chosen during training, for the record


def episodes_summary(episodes: Sequence[EpisodeRecord], reference: tuple[float, float] | None) -> dict[str, Any]:
    """Return the scores of at least one episode: the fields of "summary" in ``results.json`` except for timings."""
    returns = np.array([episode.episode_return for episode in episodes])
    scores = normalized_scores(returns, reference)
    successes = [episode.success for episode in episodes if episode.success is not None]
    return {
        **return_summary(returns),
        "normalized_score_mean": None if scores is None else float(scores.mean()),
        "success_rate": float(np.mean(successes)) if successes else None,
        "success_ci95": list(wilson_interval(sum(successes), len(successes))) if successes else None,
    }


def build_results(
    request: EvaluationRequest, planner: PlannerRecord, env_id: str, record: RolloutRecord, imitates: bool = False
) -> dict[str, Any]:
    """Return the contents of ``results.json``: scores in percent, latencies of planning ``Agent.act`` calls in ms.

    If the agent ``imitates`` and the behaviour's mean return is positive, "summary" has "percent_of_data_return": the
    mean return and the ends of its 95 % interval, in percent of the behaviour's mean return.
    """
    training, dataset = request.training, request.training.dataset
    returns, data_returns = np.array([episode.episode_return for episode in record.episodes]), dataset.returns.numpy()
    scores = normalized_scores(returns, dataset.reference_scores)
    low, high = dataset.reference_scores or (None, None)
    behavior = float(np.mean(data_returns, dtype=np.float64))
    p50, p95 = np.percentile(1000.0 * record.plan_seconds, [50, 95])
    summary = {
        **episodes_summary(record.episodes, dataset.reference_scores),
        "plan_latency_ms": {"p50": float(p50), "p95": float(p95)},
        "env_steps_per_second": record.env_steps / max(record.seconds, 1e-9),
    }
    if imitates and behavior > 0:
        values = (summary["return_mean"], *summary["return_ci95"])
        summary["percent_of_data_return"] = [100 * value / behavior for value in values]
    return {
        "schema": SCHEMA_VERSION,
        "command": request.command,
        "commit": request.commit,
        "versions": package_versions(),
        "seed": request.seed,
        "dataset": ",".join(dataset.ids),
        "env_id": env_id,
        "num_envs": min(request.num_envs, request.episodes),
        "max_episode_steps": record.max_episode_steps,
        "checkpoint": request.checkpoint,
        "trained": {  # from which ``compare`` decides whether two policies are comparable, and of one trained network
            "fingerprint": dataset.fingerprint,
            "validation_fraction": training.data.validation_fraction,
            "seed": training.seed,
            "weights": request.weights,
            "model": dict(request.model),
            "data": {k: v for k, v in asdict(training.data).items() if k not in ("dataset_id", "source")},
        },
        "learner": {"name": training.kind} | {k: v for k, v in training.learner.items() if k != "_target_"},
        "planner": asdict(planner),
        "deadline": None if planner.deadline_ms is None else {"ms": planner.deadline_ms, **asdict(record.counts)},
        "behavior": {
            "return_mean": behavior,
            "return_max": float(np.max(data_returns)),
            "episodes": len(data_returns),
        },
        "reference_scores": {"min": low, "max": high, "source": dataset.reference_source},
        "episodes": [
            {
                "seed": episode.seed,
                "return": episode.episode_return,
                "length": episode.length,
                "terminated": episode.terminated,
                "success": episode.success,
                "normalized_score": None if scores is None else float(scores[index]),
            }
            for index, episode in enumerate(record.episodes)
        ],
        "summary": summary,
        **({} if request.choice is None else {"choice": dict(request.choice)}),
    }


def return_interval(results: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean return to report, or None if there are too few episodes for one.

    ``results`` are the contents of ``results.json``, which has the resampled ends in any case.
    """
    low, high = results["summary"]["return_ci95"]
    return (low, high) if len(results["episodes"]) >= LEAST_EPISODES else None


def acts_by(results: Mapping[str, Any]) -> str:
    """Return the kind of agent in the contents of ``results.json``: "planner", or "policy" if it does not search."""
    return "planner" if "n_expand" in results["planner"] else "policy"


def current_commit() -> str | None:
    """Return the commit of the repository that contains this package; None outside a repository or without git.

    "-dirty" follows it if tracked files have uncommitted changes.
    """
    describe = ["describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    command = ["git", "-C", str(Path(__file__).parent), *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages on which results depend."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions


def flat(values: Mapping[str, Any], separator: str, prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings; keys become those on the way to a value, joined by the separator after ``prefix``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, separator, f"{name}{separator}") if isinstance(value, Mapping) else {name: value}
    return found


def write_results(results: dict[str, Any], path: Path) -> None:
    """Validate results and write them atomically; raises UserError if a field is wrong or the file is not writable."""
    require_valid(results, str(path))
    write_output("results", path, json.dumps(results, indent=2, allow_nan=False) + "\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read and validate a ``results.json``; raises UserError if it is not JSON, or a field is missing or wrong."""
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"results file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"results file {path} is not valid JSON: {error}") from error
    require_valid(results, str(path))
    return results


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    """Return the validator of results, which takes longer to make than to use."""
    return TypeAdapter(_typed("results", _RESULTS))


def require_valid(results: Any, name: str) -> None:
    """Raise UserError for ``results`` that do not conform to schema 1; additional fields are allowed."""
    try:
        _adapter().validate_python(results, strict=True)
    except ValidationError as error:
        fault = error.errors()[0]
        place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in fault["loc"]).removeprefix(".")
        label = f"field '{place}'" if place else "the file"
        reason = "is missing" if fault["type"] == "missing" else f"is {reprlib.repr(fault['input'])}: {fault['msg']}"
        raise UserError(f"results {name}: {label} {reason}") from None
    if results["schema"] != SCHEMA_VERSION:
        raise UserError(
            f"results {name}: field 'schema' is {results['schema']}, but this version reads {SCHEMA_VERSION}"
        )
