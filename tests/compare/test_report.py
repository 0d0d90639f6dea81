"""Tables worked out by hand, in each output format, and the note about few runs."""

import csv
from pathlib import Path

import numpy as np
import pytest

from trajectory_transformer.compare.figure import plot_comparison
from trajectory_transformer.compare.report import Report, as_latex, as_markdown, as_text, compare, write
from trajectory_transformer.compare.runs import Run, read_run
from trajectory_transformer.compare.statistics import Estimate

from .written import write_run


def make(folder: Path, differences: tuple[str, ...] = (), **scores: list[list[float]]) -> Report:
    """Runs of methods with scores (task, seed); a method's commit is its first seven letters."""
    methods = {
        method: [
            read_run(
                method,
                write_run(folder / method / f"{t}_{seed}", one, f"task_{t}", seed, commit=f"{method:7}")
                / "results.json",
                "reference",
            )
            for t, task in enumerate(tasks)
            for seed, one in enumerate(task)
        ]
        for method, tasks in scores.items()
    }
    return compare(methods, "percent", differences, ["a remark"])


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_tables_by_hand(tmp_path: Path) -> None:
    report = make(tmp_path, a=[[10.0, 30.0]], b=[[20.0, 20.0, 80.0]])
    write(report, tmp_path / "out")
    first, second = rows(tmp_path / "out", "tasks")
    assert (first["method"], first["runs"], first["seeds"], first["episodes"]) == ("a", "2", "2", "4")
    half = 12.706204736 * 10  # Student's t with one degree of freedom, and a standard error of 10
    assert [float(first[f"normalized_score{end}"]) for end in ("", " low", " high")] == pytest.approx(
        [20, 20 - half, 20 + half]
    )
    assert float(second["return_mean"]) == pytest.approx(400)
    assert [float(row["mean"]) for row in rows(tmp_path / "out", "aggregates")] == pytest.approx([20, 40])
    assert [float(row["optimality gap"]) for row in rows(tmp_path / "out", "aggregates")] == pytest.approx([80, 60])
    (pair,) = rows(tmp_path / "out", "improvement")
    assert float(pair["probability of improvement"]) == pytest.approx(2 / 6)  # 30 is above 20 twice
    budget = rows(tmp_path / "out", "budget")
    assert [float(row["a"] or -1) for row in budget] == pytest.approx([20, 30, -1])
    assert [float(row["b"]) for row in budget] == pytest.approx([40, 60, 80])
    profile = rows(tmp_path / "out", "profiles")
    thresholds = [float(row["normalized_score"]) for row in profile]
    assert (thresholds[0], thresholds[-1], len(thresholds)) == (0.0, pytest.approx(80), 101)
    assert [float(profile[25][name]) for name in ("a", "b")] == pytest.approx([1 / 2, 1 / 3])  # above 20
    assert [row["folder"] for row in rows(tmp_path / "out", "runs")][-1] == str(tmp_path / "b" / "0_2")


def test_tasks_by_methods(tmp_path: Path) -> None:
    """The data's mean return of 200 has the score 20 in ``write_run``."""
    report = make(tmp_path, a=[[10.0, 30.0], [50.0]], b=[[20.0, 20.0], [60.0]], c=[[5.0]])
    (table,) = (table for table in report.tables if table.name == "scores")
    texts = [" ".join(row) for row in table.texts()]
    assert texts[:3] == [
        "task data a b c",
        "task_0 20.0 20.0 [-107.1, 147.1] 20.0 [20.0, 20.0] 5.0",
        "task_1 20.0 50.0 60.0 ",
    ]
    assert [row[0] for row in table.rows[2:]] == ["interquartile mean", "mean"]
    for row in table.rows[2:]:  # over the task that all have
        assert [cell.value for cell in row[2:] if isinstance(cell, Estimate)] == [20, 20, 5]
    assert not any(t.name == "scores" for t in make(tmp_path / "one", a=[[1.0]], b=[[2.0]]).tables)


def test_every_table_names_its_commits(tmp_path: Path) -> None:
    alike = compare({"x": make_runs(tmp_path)}, "percent")
    assert all(table.origin == "commit 0123456" for table in alike.tables)
    differ = make(tmp_path, ("the data differ",), first=[[1.0]], second=[[2.0]])
    origin = "different commits: first first  ; second second ; NOT COMPARABLE, see the notes"
    assert all(table.plain()[1][0][-1] == table.origin == origin for table in differ.tables)
    assert all(form(differ).count(f"({origin})") == 4 for form in (as_text, as_markdown, as_latex))
    assert differ.notes[0] == "NOT COMPARABLE, compared because of --anyway: the data differ"


def make_runs(folder: Path) -> list[Run]:
    return [read_run("x", write_run(folder / "x", 1.0) / "results.json", "reference")]


def test_only_common_tasks_are_aggregated(tmp_path: Path) -> None:
    report = make(tmp_path, a=[[10.0], [90.0]], b=[[20.0]])
    assert [one.value for one in report.aggregates["a"]] == [10, 10, 10, 90]
    assert len(report.tables[0].rows) == 3
    assert "aggregates are over the 1 of 2 tasks that all methods have" in report.notes


@pytest.mark.parametrize(
    ("a", "b", "told"),
    [
        ([[1.0]], [[2.0]], "one run of each cannot show a difference: train more seeds"),
        (
            [[1.0, 2.0]],
            [[3.0, 4.0]],
            "too few runs to conclude: if the methods were equal, all runs of one would be above all runs of the other "
            "in every task, by chance, with probability 0.33",
        ),
        ([[1.0]] * 6, [[2.0]] * 6, "no conclusion without an interval"),
        ([[1.0, 2.0, 3.0, 4.0]], [[5.0, 6.0, 7.0, 8.0]], "b improves on a"),
        ([[5.0, 6.0, 7.0, 8.0]], [[1.0, 2.0, 3.0, 4.0]], "a improves on b"),
        ([[1.0, 2.0, 3.0, 4.0]], [[1.5, 2.5, 3.5, 4.5]], "the interval contains 0.5: no difference is shown"),
    ],
)
def test_what_can_be_concluded(tmp_path: Path, a: list[list[float]], b: list[list[float]], told: str) -> None:
    (verdict,) = (note for note in make(tmp_path, a=a, b=b).notes if note.startswith("a against b"))
    assert told in verdict


def test_few_runs_are_said_to_be_few(tmp_path: Path) -> None:
    notes = make(tmp_path, one=[[1.0]], two=[[1.0, 2.0]], five=[[1.0] * 5]).notes
    assert "one: some task has a single run, so there is no interval over runs" in notes
    assert "two: fewer than 5 runs of some task, so intervals are rough, and often too narrow" in notes
    assert not any(note.startswith("five:") for note in notes)
    assert "one in twenty of the intervals of 3 pairs is expected to miss the true value" in notes


def test_bootstrap_intervals_need_five_runs_and_enough_for_a_conclusion(tmp_path: Path) -> None:
    """Of two runs they are nothing but the two scores, and the probability of improvement is 0 or 1 for certain."""
    report = make(tmp_path, two=[[1.0, 2.0]], four=[[3.0, 4.0, 5.0, 6.0]], five=[[1.0, 2.0, 3.0, 4.0, 9.0]])
    has = {method: own[0].low is not None for method, own in report.aggregates.items()}
    assert has == {"two": False, "four": False, "five": True}
    assert {method: own[9].low is not None for method, own in report.profiles.items()} == has
    assert "two, four: fewer than 5 runs in all, so no bootstrap interval of the scores over all tasks" in report.notes
    (table,) = (table for table in report.tables if table.name == "improvement")
    ends = {(str(row[0]), str(row[1])): row[2].low for row in table.rows if isinstance(row[2], Estimate)}
    assert {pair for pair, low in ends.items() if low is not None} == {("four", "five")}
    assert any(note.startswith("two against four: probability of improvement 0.00: too few") for note in report.notes)


def test_forms(tmp_path: Path) -> None:
    report = make(tmp_path, a_1=[[10.0, 30.0]], b=[[20.0, 2000.0]])
    assert "1010 [-11569, 13589]" in as_text(report)
    assert "\nb       1010 " in as_text(report)
    markdown = as_markdown(report)
    assert "| n | a_1 | b |\n| --- | --- | --- |\n| 1 | 20.0 | 1010 |\n| 2 | 30.0 | 2000 |\n" in markdown
    latex = as_latex(report)
    assert "\\begin{tabular}{lll}\n\\toprule\nn & a\\_1 & b \\\\\n\\midrule\n1 & 20.0 & 1010 \\\\\n" in latex
    assert "\\caption{By task: mean over runs and its 95 \\% interval" in latex
    assert all("a remark" in form for form in (as_text(report), markdown, latex))


def test_picture(tmp_path: Path) -> None:
    """Methods with and without an interval."""
    plot_comparison(make(tmp_path, a=[[10.0]], b=[[20.0, 4.0]]), "title", tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def evaluated(folder: Path, method: str, scores: dict[tuple[str, int, str], float]) -> list[Run]:
    """Runs of a method with scores of (task, seed, weights); weights "" are those of an older file, without any."""
    runs = []
    for (task, seed, weights), score in scores.items():
        told = {"weights": weights * 64} if weights else {}
        path = write_run(folder / method / f"{task}_{seed}_{weights}", score, task, seed, trained=told)
        runs.append(read_run(method, path / "results.json", "reference"))
    return runs


def test_methods_that_plan_with_the_same_models_are_compared_on_each_of_them(tmp_path: Path) -> None:
    """Although the models differ far more than the methods, which the unpaired comparison cannot tell apart."""
    a = {("x", 0, "a"): 10.0, ("x", 1, "b"): 50.0, ("x", 2, "c"): 90.0, ("x", 3, "d"): 20.0}
    b = {("x", 0, "a"): 8.0, ("x", 1, "b"): 47.0, ("x", 2, "c"): 88.0, ("x", 3, "d"): 17.0}
    report = compare({"a": evaluated(tmp_path, "a", a), "b": evaluated(tmp_path, "b", b)}, "percent")
    (table,) = (table for table in report.tables if table.name == "paired")
    half = 3.18244630528 * np.sqrt(1 / 3) / 2  # differences 2, 3, 2, 3
    ((one, other, tasks, models, found),) = table.rows
    assert (one, other, tasks, models) == ("a", "b", 1, 4)
    assert isinstance(found, Estimate)
    assert (found.value, found.low, found.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert (
        "a against b on the same trained models: a difference of 2.5 [1.6, 3.4] in score: a improves on b"
        in report.notes
    )
    assert any(
        "a against b: probability of improvement" in note and "no difference is" in note for note in report.notes
    )
    turned = compare({"b": evaluated(tmp_path, "b", b), "a": evaluated(tmp_path, "a", a)}, "percent").notes
    assert (
        "b against a on the same trained models: a difference of -2.5 [-3.4, -1.6] in score: a improves on b" in turned
    )


def test_only_the_models_that_both_evaluated_are_paired(tmp_path: Path) -> None:
    a = {("x", 0, "a"): 10.0, ("x", 1, "b"): 50.0, ("x", 2, ""): 1.0, ("y", 0, "c"): 3.0, ("y", 1, "d"): 4.0}
    b = {("x", 0, "a"): 8.0, ("x", 2, ""): 2.0, ("x", 4, "e"): 2.0, ("y", 0, "c"): 7.0, ("y", 1, "f"): 2.0}
    c = {("x", 0, "g"): 8.0, ("y", 0, ""): 7.0}
    methods = {"a": evaluated(tmp_path, "a", a), "b": evaluated(tmp_path, "b", b), "c": evaluated(tmp_path, "c", c)}
    report = compare(methods, "percent")
    (table,) = (table for table in report.tables if table.name == "paired")
    assert table.rows == [["a", "b", 2, 2, Estimate(-1.0)]]  # 2 and -4
    told = "a difference of -1.00 in score, and no conclusion without an interval, which takes two models of each task"
    assert f"a against b on the same trained models: {told}" in report.notes


def test_no_table_without_a_model_in_common(tmp_path: Path) -> None:
    assert not any(table.name == "paired" for table in make(tmp_path, a=[[1.0]], b=[[2.0]]).tables)
