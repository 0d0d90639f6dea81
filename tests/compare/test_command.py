"""The compare command: without torch, mistakes with exit code 2, tables to W&B offline."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.compare.__main__ import main

from .written import write_run

COMMAND = "from trajectory_transformer.compare.__main__ import main; code = main(sys.argv[1:])"


def test_it_never_loads_torch(tmp_path: Path) -> None:
    write_run(tmp_path / "a", 1.0)
    write_run(tmp_path / "b", 2.0)
    code = f"import sys; {COMMAND}; print([m for m in ('torch', 'lightning') if m in sys.modules]); sys.exit(code)"
    words = [f"one={tmp_path / 'a'}", f"two={tmp_path / 'b'}", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(f"written to {tmp_path / 'out'}\n[]\n")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "compare.txt", "compare.md", "compare.tex", "compare.png", "tasks.csv", "aggregates.csv", "improvement.csv",
        "budget.csv", "profiles.csv", "runs.csv",
    }  # fmt: skip


def test_a_comparison_that_is_not_fair_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", 1.0), write_run(tmp_path / "b", 2.0, env_id="Other-v0")
    assert main([str(a), str(b)]) == 2
    told = capsys.readouterr()
    sentence = f"a-v0: environment: Env-v0 in {a}; Other-v0 in {b}"
    assert told.out == ""
    refusal = "these runs cannot be compared fairly (--anyway compares them and notes the differences)"
    assert told.err == f"error: {refusal}:\n  {sentence}\n"
    assert main([str(a), str(b), "--anyway"]) == 0
    assert f"- NOT COMPARABLE, compared because of --anyway: {sentence}\n" in capsys.readouterr().out


def test_methods_without_a_common_task_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_run(tmp_path / "a", 1.0, task="x"), write_run(tmp_path / "b", 2.0, task="y")
    assert main([str(a), str(b), "--anyway"]) == 2
    assert capsys.readouterr().err == "error: no task has results of all methods (a, b)\n"


def test_a_wrong_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "a", 1.0)
    (run / "results.json").write_text(json.dumps({"schema": 1}))
    assert main([str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"error: results {run}/results.json: field 'command' is missing")


def test_an_output_folder_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(write_run(tmp_path / "a", 1.0)), "--out", str(tmp_path / "file")]) == 2
    assert "comparison cannot be written to" in capsys.readouterr().err


def test_folders_may_follow_options_and_methods_may_be_combinations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two sweeps of method and model, each run in a folder of its own; the figures are those of each pair."""
    jobs = [("bc", "tiny", 1.0), ("bc", "base", 2.0), ("tt", "tiny", 3.0), ("tt", "base", 4.0)]
    for number, (method, model, score) in enumerate(jobs):
        sweep = tmp_path / ("first" if method == "bc" else "second")
        run = write_run(sweep / str(number), score)
        RunRecord("finished", {"method": method, "model": model, "seed": "0"}).write(run)
    words = [str(tmp_path / "first"), "--by", "method,model", str(tmp_path / "second")]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    capsys.readouterr()
    with (tmp_path / "out" / "tasks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["method"]: float(row["normalized_score"]) for row in rows} == {
        f"{a} {b}": score for a, b, score in jobs
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "the following arguments are required: NAME=FOLDER; --help explains the options"),
        (["RUN", "--normalise", "best"], "unrecognized arguments: --normalise best; --help explains the options"),
        (
            ["RUN", "--by", "method,"],
            "--by method, lacks the name of an option: give --by OPTION, or --by OPTION,OPTION",
        ),
        (["RUN", "--by", "method,seed"], "--by method: RUN was not given that option"),
        (["--anyway", "nowhere"], "nowhere: there is no 'nowhere'"),
        (
            ["RUN", "--out", ""],
            "argument --out: the name is empty; give . for the current folder; --help explains the options",
        ),
        (["RUN", "--out"], "argument --out: expected one argument; --help explains the options"),
    ],
)
def test_a_mistake_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    run = str(write_run(tmp_path / "a", 1.0))
    assert main([word.replace("RUN", run) for word in words]) == 2
    assert capsys.readouterr().err == f"error: {message.replace('RUN', run)}\n"


def test_runs_that_did_not_finish_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweep" / "0").mkdir(parents=True)
    RunRecord("interrupted", {"seed": "0"}, None, "interrupted").write(tmp_path / "sweep" / "0")
    assert main([str(tmp_path / "sweep")]) == 2
    place = tmp_path / "sweep"
    reason = f"'{place}' holds no results.json; its runs have none ({place}/0: interrupted)"
    assert capsys.readouterr().err == f"error: {place}: {reason}\n"


def test_the_reader_may_stop_early(tmp_path: Path) -> None:
    """As in ``compare … | head -1``."""
    run = str(write_run(tmp_path / "a", 1.0))
    code = f"import sys; {COMMAND}; sys.exit(code)"
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-u", "-c", code, run], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_tables_go_to_wandb_offline(tmp_path: Path) -> None:
    runs = [str(write_run(tmp_path / name, score)) for name, score in (("a", 1.0), ("b", 2.0))]
    words = [*runs, "--wandb", "a-project", "--out", str(tmp_path / "out")]
    code = f"import os, sys; os.environ['WANDB_MODE'] = 'offline'; {COMMAND}; sys.exit(code)"
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "out" / "wandb").glob("offline-run-*")
    tables = {file.name.split("_")[0]: json.loads(file.read_text()) for file in folder.rglob("*.table.json")}
    assert set(tables) == {"tasks", "aggregates", "improvement", "budget", "profiles", "runs"}
    assert tables["budget"] == {"columns": ["n", "a", "b", "origin"], "data": [[1, 1.0, 2.0, "commit 0123456"]]}
    assert list(folder.rglob("*.png"))
