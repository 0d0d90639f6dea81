"""Tables of the documentation: rows by hand, named mistakes, and the committed pages against results/."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tools.tables import filled, main, pages
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import Measurement, RunFacts, write_measurements

from ..compare.written import write_run

ROOT = Path(__file__).parents[2]
MARKER = "<!-- table: results/maze/*.csv | success_rate, return_mean -->"
END = "<!-- end of table -->"
BEHAVIOR = Measurement("behaviour", "return_mean", 12.25, None, None, 351)


def put(root: Path, name: str, *measurements: Measurement, seed: int = 0, dataset: str = "maze/rooms-v0") -> None:
    facts = RunFacts(dataset, "Rooms-v0", seed, "0123456789abcdef", f"python evaluate.py seed={seed}")
    write_measurements(root / "results" / "maze" / name, facts, measurements)


def page(root: Path, *lines: str) -> Path:
    file = root / "README.md"
    file.write_text("\n".join(lines) + "\n")
    return file


def test_a_table_by_hand(tmp_path: Path) -> None:
    """Two seeds of one run, with the data's figure in common, and another run."""
    goal, score = (
        Measurement("goal", "success_rate", 0.9, 0.8, 1.0, 20),
        Measurement("goal", "return_mean", 1234.5, 900, 1500, 20),
    )
    put(tmp_path, "wide_seed0.csv", BEHAVIOR, goal, score)
    other = (
        Measurement("goal", "success_rate", 0.6, 0.5, 0.7, 20),
        Measurement("goal", "return_mean", 1000.0, 900, 1500, 20),
    )
    put(tmp_path, "wide_seed10.csv", BEHAVIOR, *other, seed=10)
    put(
        tmp_path,
        "alone.csv",
        Measurement("critic", "success_rate", 2 / 3, 0.25, 1.0, 7),
        Measurement("critic", "loss", 1, 0, 2, 9),
    )
    expected = [
        "before",
        MARKER,
        "",
        "| run | method | success rate | return mean | count |",
        "| --- | --- | --- | --- | --- |",
        "| alone | critic | 0.667 (0.25 to 1) | – | 7 |",
        "| maze/rooms-v0 | behaviour | – | 12.2 | 351 |",
        "| wide | goal | 0.75 [0.6, 0.9] | 1117 [1000, 1234] | 2 × 20 |",
        "",
        "In brackets: 95 % intervals. A row of several seeds has the mean of their values, and in square brackets the "
        "least and the greatest.",
        "",
        '<details markdown="1"><summary>Data, seed, commit and command of each run</summary>',
        "",
        "- alone (maze/rooms-v0; seed 0; commit 0123456): `python evaluate.py seed=0`",
        "- wide_seed0 (maze/rooms-v0; seed 0; commit 0123456): `python evaluate.py seed=0`",
        "- wide_seed10 (maze/rooms-v0; seed 10; commit 0123456): `python evaluate.py seed=10`",
        "",
        "</details>",
        "",
        END,
        "after",
    ]
    file = page(tmp_path, "before", MARKER, "an old table", END, "after")
    assert filled(tmp_path, file).splitlines() == expected
    file.write_text(filled(tmp_path, file))
    assert filled(tmp_path, file).splitlines() == expected


def test_figures_of_the_data_that_differ_are_averaged_like_any_other(tmp_path: Path) -> None:
    put(tmp_path, "a_seed0.csv", BEHAVIOR)
    put(tmp_path, "a_seed1.csv", Measurement("behaviour", "return_mean", 14.25, None, None, 100), seed=1)
    text = filled(tmp_path, page(tmp_path, "<!-- table: results/maze/*.csv | return_mean -->", END))
    assert "| maze/rooms-v0 | behaviour | 13.2 [12.2, 14.2] | 351 + 100 |" in text


def test_equal_figures_of_a_method_stay_figures_of_their_seeds(tmp_path: Path) -> None:
    for seed in (0, 1):
        put(tmp_path, f"a_seed{seed}.csv", Measurement("goal", "success_rate", 1.0, 0.9, 1.0, 5), seed=seed)
    text = filled(tmp_path, page(tmp_path, "<!-- table: results/maze/*.csv | success_rate -->", END))
    assert "| a | goal | 1 [1, 1] | 2 × 5 |" in text
    assert "95 %" not in text


def test_runs_on_the_same_data_share_its_row(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        put(tmp_path, name, BEHAVIOR, Measurement("goal", "return_mean", 20.0, None, None, 5))
    text = filled(tmp_path, page(tmp_path, "<!-- table: results/maze/*.csv | return_mean -->", END))
    rows = [line for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows == ["| maze/rooms-v0 | behaviour | 12.2 | 351 |", "| a | goal | 20 | 5 |", "| b | goal | 20 | 5 |"]


def test_columns_in_which_all_rows_agree_are_left_out(tmp_path: Path) -> None:
    goals = [Measurement(method, "return_mean", value, 1, 3, 20) for method, value in (("goal", 2.0), ("critic", 2.5))]
    put(tmp_path, "a.csv", *goals)
    text = filled(tmp_path, page(tmp_path, "<!-- table: results/maze/*.csv | return_mean -->", END))
    assert text.splitlines()[2:8] == [
        "| method | return mean |",
        "| --- | --- |",
        "| goal | 2 (1 to 3) |",
        "| critic | 2.5 (1 to 3) |",
        "",
        "Count of each row: 20. In brackets: 95 % intervals.",
    ]


def test_a_comparison_of_copies(tmp_path: Path) -> None:
    for method, scores in (("bc", (10.0, 20.0)), ("tt", (30.0, 40.0))):
        for task, score in enumerate(scores):
            run = write_run(tmp_path / "runs", score, f"task{task}-v0")
            copy = tmp_path / "results" / "maze" / "runs" / method / f"{task}_seed0.json"
            copy.parent.mkdir(parents=True, exist_ok=True)
            (run / "results.json").rename(copy)
    text = filled(tmp_path, page(tmp_path, "<!-- comparison: results/maze/runs | scores, aggregates -->", END))
    lines = text.splitlines()
    assert lines[2].startswith("Scores, with 95 % intervals: of each task by Student's t")
    assert lines[4:9] == [
        "| task | data | bc | tt |",
        "| --- | --- | --- | --- |",
        "| task0-v0 | 20.0 | 10.0 | 30.0 |",
        "| task1-v0 | 20.0 | 20.0 | 40.0 |",
        "| interquartile mean |  | 15.0 | 35.0 |",
    ]
    assert "| tt | 35.0 | 35.0 | 35.0 | 65.0 |" in lines
    with pytest.raises(UserError, match=r"line 1: the comparison has no table score; there are tasks, scores"):
        filled(tmp_path, page(tmp_path, "<!-- comparison: results/maze/runs | score -->", END))
    with pytest.raises(UserError, match=r"line 1: results/none has no folder of a method"):
        filled(tmp_path, page(tmp_path, "<!-- comparison: results/none | scores -->", END))


def test_check_names_the_stale_page_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(tmp_path, "a.csv", BEHAVIOR)
    file = page(tmp_path, "no table")
    (tmp_path / "docs").mkdir()
    stale = tmp_path / "docs" / "maze.md"
    stale.write_text(f"<!-- table: results/maze/a.csv | return_mean -->\n{END}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/maze.md: stale\n"
    assert len(stale.read_text().splitlines()) == 2
    assert main([]) == 0
    assert capsys.readouterr().out == "docs/maze.md: written\n"
    assert file.read_text() == "no table\n"
    assert main(["--check"]) == 0
    assert capsys.readouterr().out == ""


MISTAKES = [
    (["<!-- table: maze/*.csv | loss -->", END], r"README\.md, line 1: `<!-- table: maze/.*` is not a marker such as"),
    (["<!-- table results/maze/a.csv | loss -->", END], r"README\.md, line 1: .* is not a marker such as"),
    (["<!-- table: results/maze/b.csv | loss -->", END], r"README\.md, line 1: no file matches results/maze/b\.csv"),
    (["", "<!-- table: results/maze/a.csv | los -->", END], r"line 2: no file has a figure los; there are return_mean"),
    (["<!-- table: results/maze/a.csv | return_mean -->"], r"README\.md, line 1: the table has no end; put `<!--"),
    (["<!-- comparison: results/maze -->", END], r"README\.md, line 1: `<!-- comparison: .* is not a marker such as"),
    (["text", END], r"README\.md, line 2: no table begins before this end"),
    (["<!-- table: results/maze/a.csv | return_mean -->"] * 2, r"line 2: the table of line 1 has not ended"),
]  # fmt: skip


@pytest.mark.parametrize(("lines", "message"), MISTAKES)
def test_a_wrong_marker_is_named_with_its_page_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    put(tmp_path, "a.csv", BEHAVIOR)
    with pytest.raises(UserError, match=message):
        filled(tmp_path, page(tmp_path, *lines))


def truncate(file: Path) -> None:
    file.write_text(file.read_text(encoding="utf-8").splitlines()[0] + "\n", encoding="utf-8")


def edit(old: str, new: str) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new), encoding="utf-8")

    return change


def repeat(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    file.write_text(text + text.splitlines()[-1] + "\n", encoding="utf-8")


DAMAGE = [
    (truncate, r"README\.md, line 1: results/maze/a_seed1\.csv has no figures"),
    (edit("method,", "kind,"), r"a_seed1\.csv: line 1 must be method,name,value"),
    (edit("12.25", "many"), r"a_seed1\.csv, line 2: is not a figure \(could not convert string to float: 'many'\)"),
    (edit("351,maze/rooms-v0,Rooms-v0,1", "351"), r"a_seed1\.csv, line 2: is not a figure"),
    (repeat, r"a_seed1\.csv, line 3: return_mean of behaviour is repeated"),
    (edit("maze/rooms-v0,Rooms-v0,1", "maze/rooms-v0,Rooms-v0,2"), r"its name says seed 1, line 2 seed 2"),
    (edit("maze/rooms-v0", "other-v0"), r"a_seed1\.csv and results/maze/a_seed0\.csv have different data"),
    (edit("behaviour,", "goal,"), r"a_seed1\.csv has no return_mean of behaviour, which the same run with another"),
    (lambda file: file.write_bytes(b"\xff"), r"a_seed1\.csv cannot be read: 'utf-8'"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGE)
def test_a_wrong_file_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    put(tmp_path, "a_seed0.csv", BEHAVIOR)
    put(tmp_path, "a_seed1.csv", BEHAVIOR, seed=1)
    damage(tmp_path / "results" / "maze" / "a_seed1.csv")
    with pytest.raises(UserError, match=message):
        filled(tmp_path, page(tmp_path, "<!-- table: results/maze/*.csv | return_mean -->", END))


def test_two_runs_in_one_file_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "a.csv", BEHAVIOR)
    put(tmp_path, "b.csv", Measurement("goal", "return_mean", 1.0, None, None, 1), seed=1)
    folder = tmp_path / "results" / "maze"
    both = (folder / "a.csv").read_text() + (folder / "b.csv").read_text().splitlines()[1] + "\n"
    (folder / "a.csv").write_text(both)
    with pytest.raises(UserError, match=r"results/maze/a\.csv, line 3: belongs to another run than line 2"):
        filled(tmp_path, page(tmp_path, "<!-- table: results/maze/a.csv | return_mean -->", END))


def test_a_folder_without_a_readme_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert capsys.readouterr().err.startswith(f"error: there is no README.md in '{tmp_path}'")


@pytest.mark.parametrize("file", pages(ROOT), ids=lambda file: file.name)
def test_the_committed_tables_are_those_of_the_results(file: Path) -> None:
    assert file.read_text(encoding="utf-8") == filled(ROOT, file), "run python -m tools.tables"
