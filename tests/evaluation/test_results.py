"""results.json follows the contract, is never partial, and a wrong one is refused with the field's name."""

import copy
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from trajectory_transformer import files
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import results as module
from trajectory_transformer.evaluation.evaluate import agent_title, results_table, summary_rows
from trajectory_transformer.evaluation.measurements import planning_measurements
from trajectory_transformer.evaluation.records import EpisodeRecord, RolloutRecord
from trajectory_transformer.evaluation.results import (
    EvaluationRequest,
    build_results,
    current_commit,
    package_versions,
    read_results,
    return_interval,
    write_results,
)
from trajectory_transformer.planning.plan import PlanCounts

from .scripted import request_of, training_on


def make_request(reference: tuple[float, float] | None = (0.0, 200.0), source: str = "dataset") -> EvaluationRequest:
    return request_of(2, 2, 5, training_on([1.0, 2.0, 6.0], reference, source, best_fraction=0.1))


def make_results(
    request: EvaluationRequest | None = None,
    success: bool | None = True,
    deadline_ms: float | None = None,
    counts: PlanCounts = PlanCounts(8),  # noqa: B008 - frozen
    imitates: bool = False,
) -> dict[str, Any]:
    episodes = (EpisodeRecord(5, 10.0, 3, True, success), EpisodeRecord(6, 30.0, 5, False, success and False))
    record = RolloutRecord(episodes, np.array([0.001, 0.002, 0.003, 0.004, 0.005]), 8, 4.0, (), counts)
    planner = PlannerConfig(deadline_ms=deadline_ms)
    return build_results(request or make_request(), planner, "Walk-v0", record, imitates)


def test_imitation_is_measured_by_the_return_of_its_data() -> None:
    """Planned returns 10 and 30; the data's are 1, 2 and 6."""
    summary = make_results(imitates=True)["summary"]
    mean, low, high = summary["percent_of_data_return"]
    assert mean == pytest.approx(100 * 20 / 3)
    assert [low, high] == pytest.approx([100 * end / 3 for end in summary["return_ci95"]])
    losing = request_of(2, 2, 5, training_on([-1.0, -2.0]))
    assert "percent_of_data_return" not in make_results(losing, imitates=True)["summary"]
    assert "percent_of_data_return" not in make_results()["summary"]


def test_fields_are_the_contract_s() -> None:
    results = make_results()
    assert list(results) == [
        "schema", "command", "commit", "versions", "seed", "dataset", "env_id", "num_envs", "max_episode_steps",
        "checkpoint", "trained", "learner", "planner", "deadline", "behavior", "reference_scores", "episodes",
        "summary",
    ]  # fmt: skip
    assert results["schema"] == 1
    assert results["dataset"] == "tests/walk-v0,b-v1"
    assert results["num_envs"] == 2
    assert results["behavior"] == {"return_mean": 3.0, "return_max": 6.0, "episodes": 3}
    assert results["reference_scores"] == {"min": 0.0, "max": 200.0, "source": "dataset"}
    trained = results["trained"]
    assert [trained.pop(name)[option] for name, option in (("model", "n_embd"), ("data", "discount"))] == [64, 0.99]
    assert trained == {"fingerprint": "0f" * 32, "validation_fraction": 0.1, "seed": 4, "weights": "ab" * 32}
    assert results["learner"] == {"name": "bc", "best_fraction": 0.1}
    assert results["planner"]["name"] == "return"
    assert results["planner"]["horizon"] == PlannerConfig().horizon
    assert results["deadline"] is None
    assert results["episodes"][0] == {
        "seed": 5, "return": 10.0, "length": 3, "terminated": True, "success": True, "normalized_score": 5.0,
    }  # fmt: skip
    summary = results["summary"]
    assert summary["return_mean"] == 20.0
    assert summary["return_std_error"] == pytest.approx(10.0)
    assert summary["return_iqm"] == 20.0
    assert summary["return_ci95"] == [10.0, 30.0]
    assert summary["normalized_score_mean"] == 10.0
    assert summary["success_rate"] == 0.5
    assert summary["plan_latency_ms"] == {"p50": pytest.approx(3.0), "p95": pytest.approx(4.8)}
    assert summary["env_steps_per_second"] == 2.0


def test_unknown_references_and_silent_environments_give_null() -> None:
    results = make_results(make_request(None, "none"), success=None)
    assert results["reference_scores"] == {"min": None, "max": None, "source": "none"}
    assert results["summary"]["normalized_score_mean"] is None
    assert results["summary"]["success_rate"] is None
    assert results["episodes"][1]["normalized_score"] is None
    assert results["episodes"][1]["success"] is None


DEADLINE: dict[str, Any] = {"deadline_ms": 20.0, "counts": PlanCounts(1200, shortened=360, narrowed=24, late=1)}


def test_what_a_deadline_did(tmp_path: Path) -> None:
    results = make_results(**DEADLINE)
    assert results["deadline"] == {"ms": 20.0, "plans": 1200, "shortened": 360, "narrowed": 24, "late": 1}
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


def test_versions_name_what_results_depend_on() -> None:
    assert set(package_versions()) == {"python", "torch", "lightning", "numpy", "gymnasium", "mujoco"}


def test_commit_is_the_repository_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(module, "__file__", str(tmp_path / "results.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert current_commit() is None
    git("init", "-q")
    assert current_commit() is None  # no commit yet
    git("commit", "-q", "--allow-empty", "-m", "first")
    assert current_commit() == git("rev-parse", "HEAD")
    (tmp_path / "code.py").write_text("1\n")
    assert current_commit() == git("rev-parse", "HEAD")  # a file that the repository does not know
    git("add", "code.py")
    assert current_commit() == git("rev-parse", "HEAD") + "-dirty"
    git("commit", "-q", "-m", "second")
    assert current_commit() == git("rev-parse", "HEAD")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert current_commit() is None  # no git


def test_written_results_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    results = make_results()
    write_results(results, path)
    write_results(results, path)
    assert read_results(path) == json.loads(path.read_text()) == results
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


def test_results_from_before_a_policy_s_training_was_told_are_read(tmp_path: Path) -> None:
    results = make_results()
    del results["trained"]
    write_results(results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == results


def changed(where: list[Any], value: Any) -> dict[str, Any]:
    results = copy.deepcopy(make_results())
    place = results
    for key in where[:-1]:
        place = place[key]
    if value is ...:
        del place[where[-1]]
    else:
        place[where[-1]] = value
    return results


WRONG = [
    (["schema"], 2, "schema"),
    (["schema"], True, "schema"),
    (["commit"], 3, "commit"),
    (["summary"], ..., "'summary' is missing"),
    (["summary", "return_mean"], float("nan"), "summary.return_mean"),
    (["summary", "return_ci95"], [1.0], "summary.return_ci95"),
    (["summary", "plan_latency_ms", "p95"], ..., "summary.plan_latency_ms.p95"),
    (["episodes"], {}, "episodes"),
    (["episodes", 1, "return"], None, r"episodes\[1\].return"),
    (["episodes", 0, "terminated"], 1, r"episodes\[0\].terminated"),
    (["planner"], "return", "planner"),
    (["reference_scores", "source"], None, "reference_scores.source"),
    (["trained", "seed"], "0", "trained.seed"),
]


@pytest.mark.parametrize(("where", "value", "words"), WRONG)
def test_wrong_fields_are_named(tmp_path: Path, where: list[Any], value: Any, words: str) -> None:
    results, path = changed(where, value), tmp_path / "results.json"
    with pytest.raises(UserError, match=words):
        write_results(results, path)
    assert not path.exists()
    path.write_text(json.dumps(results))
    with pytest.raises(UserError, match=words):
        read_results(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_files_that_are_no_results(tmp_path: Path, content: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"results\.json"):
        read_results(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_results(tmp_path / "results.json")


def test_a_full_disk_leaves_the_earlier_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_results(make_results(), path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        write_results(changed(["seed"], 9), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_results(make_results(), tmp_path / "file" / "results.json")


def shown(results: dict[str, Any]) -> str:
    console = Console(width=120)
    with console.capture() as capture:
        console.print(results_table(results))
    return capture.get()


def test_table_shows_behaviour_and_planner() -> None:
    text = shown(make_results())
    for words in (
        "Walk-v0",
        "3  (3 episodes)",
        "20  (2 episodes)",
        "at least 5 episodes",
        "10.0 %",
        "dataset",
        "50 %",
        "3.0 ms",
    ):
        assert words in text, words


def with_episodes(results: dict[str, Any], number: int) -> dict[str, Any]:
    return results | {"episodes": results["episodes"][:1] * number}


@pytest.mark.parametrize(("number", "interval"), [(1, None), (4, None), (5, (10.0, 30.0)), (20, (10.0, 30.0))])
def test_an_interval_is_reported_from_five_episodes_on(number: int, interval: tuple[float, float] | None) -> None:
    """In the terminal's table, which is also the page's, and in figures.csv; results.json has the resampled ends."""
    results = with_episodes(make_results(imitates=True), number)
    assert return_interval(results) == interval
    rows = dict(summary_rows(results))
    assert rows["  its 95 % interval"] == ("needs at least 5 episodes" if interval is None else "10 to 30")
    assert rows["share of the data's return"].startswith("667 %")
    assert ("95 % interval 333 to 1000 %" in rows["share of the data's return"]) == (interval is not None)
    ends = {one.name: (one.low, one.high) for one in planning_measurements(results)[1] if one.method == "return"}
    assert ends["return_mean"] == (interval or (None, None))
    assert (ends["percent_of_data_return"] == (None, None)) == (interval is None)
    assert ends["success_rate"] != (None, None)  # Wilson's, which is as wide as it must be


def test_a_policy_is_not_called_a_planner() -> None:
    """It has no plans; what its actions take is told, too."""
    policy = make_results() | {"planner": {"name": "huber_policy", "horizon": 1, "beam_width": 1, "deadline_ms": None}}
    assert (agent_title(policy), agent_title(make_results())) == ("huber policy", "return planner")
    text = shown(policy)
    for words in ("Walk-v0: huber policy", "policy mean return", "policy best return", "time per action"):
        assert words in text
    assert "plan" not in text
    assert "planner mean return" in shown(make_results())
    assert "plan latency" in shown(make_results())


@pytest.mark.parametrize(
    ("num_envs", "words"), [(1, "for 1 environment "), (2, "for 2 environments at"), (20, "for 2 environments at")]
)
def test_table_says_for_how_many_environments_an_action_took_so_long(num_envs: int, words: str) -> None:
    assert words in shown(make_results(replace(make_request(), num_envs=num_envs)))


def test_table_says_what_a_deadline_did() -> None:
    (row,) = (line for line in shown(make_results(**DEADLINE)).splitlines() if "deadline" in line)
    assert [cell.strip() for cell in row.split("│")[1:3]] == [
        "deadline 20 ms",
        "1200 plans: 30 % shortened, 2 % narrowed, 0.1 % late",
    ]
    assert "deadline" not in shown(make_results())


@pytest.mark.parametrize(("by", "words"), [("loss", "of update 30, best by loss"), ("return", "of update 20, best by")])
def test_table_says_how_the_weights_were_chosen(by: str, words: str) -> None:
    choice = {"by": by, "episodes": 40, "best_by_loss": {"step": 30}, "best_by_return": {"step": 20}}
    results = make_results(replace(make_request(), choice=choice))
    assert results["choice"] == choice
    text = " ".join(shown(results).replace("│", " ").split())
    assert words in text
    assert "40 other episodes" in text
    assert "weights" not in shown(make_results())


def test_table_leaves_out_what_is_unknown() -> None:
    text = shown(make_results(make_request(None, "none"), success=None))
    assert "normalised" not in text
    assert "success" not in text
