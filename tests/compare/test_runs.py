"""Runs found and read on disk; differences are reported with the folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.compare.runs import Run, differences, find_results, read_run, remarks
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.errors import UserError

from .written import write_run


def read(**folders: list[Path]) -> dict[str, list[Run]]:
    return {
        method: [read_run(method, folder / "results.json", "reference") for folder in own]
        for method, own in folders.items()
    }


def test_methods_are_folders_lists_patterns_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("sweep/job=1,seed=0", "sweep/job=1,seed=1", "b", "c_0", "c_1", "alone"):
        write_run(Path(name), 1.0)
    Path("c_0.log").write_text("", encoding="utf-8")
    (Path("file.json")).write_text(Path("b/results.json").read_text(encoding="utf-8"), encoding="utf-8")
    words = ["a=sweep,b", "c=c_*", "alone", "file=file.json", "c=c_0"]
    found, unfinished = find_results(words)
    assert {method: [str(file) for file in files] for method, files in found.items()} == {
        "a": ["sweep/job=1,seed=0/results.json", "sweep/job=1,seed=1/results.json", "b/results.json"],
        "c": ["c_0/results.json", "c_1/results.json"],
        "alone": ["alone/results.json"],
        "file": ["file.json"],
    }
    assert not unfinished
    assert find_results(["x=sweep/job=1,seed=0"])[0] == {"x": [Path("sweep/job=1,seed=0/results.json")]}
    assert find_results(["sweep/job=1,seed=1"])[0] == {"job=1,seed=1": [Path("sweep/job=1,seed=1/results.json")]}


def test_runs_that_have_not_finished_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "sweep" / "0", 1.0)
    RunRecord("finished").write(tmp_path / "sweep" / "0")
    for folder, record in (("1", RunRecord("failed", reason="no memory")), ("2", RunRecord("interrupted"))):
        (tmp_path / "sweep" / folder).mkdir()
        record.write(tmp_path / "sweep" / folder)
    assert find_results([f"a={tmp_path}"])[1] == [
        f"{tmp_path}/sweep/1: no memory",
        f"{tmp_path}/sweep/2: interrupted",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a=nowhere"], "a=nowhere: there is no 'nowhere'"),
        ([""], "^'': the name of a folder is empty; give . for the current folder"),
        (["a=.,"], "^'a=.,': the name of a folder is empty"),
        (["a=no*"], r"there is no 'no\*'"),
        (["a="], "a=: give NAME=FOLDER"),
        (["=run"], "=run: give NAME=FOLDER"),
        (["empty"], "'empty' holds no results.json; give folders of runs that were evaluated"),
        (["a=run", "b=."], "run/results.json belongs to both a and b"),
    ],
)
def test_words_that_name_no_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("run"), 1.0)
    Path("empty").mkdir()
    with pytest.raises(UserError, match=message):
        find_results(words)


def test_runs_that_are_alike(tmp_path: Path) -> None:
    methods = read(
        a=[write_run(tmp_path / f"a{seed}", 1.0, seed=seed) for seed in (0, 1)],
        b=[write_run(tmp_path / f"b{seed}", 2.0, seed=seed) for seed in (0, 1)],
    )
    assert list(differences(methods)) == []
    assert list(remarks(methods)) == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (
            {"trained": {"fingerprint": "0" * 64}},
            "fingerprint of the data: 000000000000 in {b}; ffffffffffff",
        ),
        (
            {"behavior": {"episodes": 8}},
            "returns of the data: 8 episodes of mean 200, best 400 in {b}; 7 epi",
        ),
        ({"env_id": "Other-v0"}, "environment: Other-v0 in {b}; Env-v0 in {a0}, {a1}"),
        ({"trained": {"validation_fraction": 0.2}}, "held-out share of the data: 0.2 in {b}; 0.1 in {a0}"),
        ({"max_episode_steps": None}, "max_episode_steps: None in {b}; 5 in {a0}, {a1}"),
        ({"reference_scores": {"max": 500.0}}, "returns of score 0 and 100: 0 and 500 in {b}; 0 and 1000"),
    ],
)
def test_what_differs_is_told_with_its_folder(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    a0, a1 = (write_run(tmp_path / f"a{seed}", 1.0, seed=seed) for seed in (0, 1))
    b = write_run(tmp_path / "b", 1.0, **changed)
    (only,) = differences(read(a=[a0, a1], b=[b]))
    assert only.startswith("a-v0: " + told.format(a0=a0, a1=a1, b=b))


def test_all_folders_but_those_of_the_most_frequent_value_are_named(tmp_path: Path) -> None:
    a, b = ([write_run(tmp_path / f"{m}{seed}", 1.0, seed=seed, env_id=m) for seed in range(6)] for m in "ab")
    (told,) = differences(read(a=a, b=b))
    assert told == f"a-v0: environment: a in {', '.join(map(str, a))}; b in {', '.join(map(str, b[:4]))} and 2 others"


def test_episodes_of_one_seed_must_be_the_same(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, 1.0) for name in "ab")
    episodes = json.loads((a / "results.json").read_text())["episodes"]
    other = write_run(tmp_path / "c", 1.0, episodes=[episode | {"seed": 7 * i} for i, episode in enumerate(episodes)])
    fewer = write_run(tmp_path / "d", 1.0, episodes=episodes[:1])
    assert list(differences(read(a=[a], b=[b]))) == []
    assert list(differences(read(a=[a], b=[other]))) == [
        f"a-v0, seed 0: seeds of the episodes: 0 to 1 in {a}; 0, 7 in {other}; evaluate.py seed=N plays N, N + 1, …"
    ]
    assert next(differences(read(a=[a, b], b=[fewer]))) == f"a-v0: number of episodes: 1 in {fewer}; 2 in {a}, {b}"


def test_a_task_that_a_method_lacks(tmp_path: Path) -> None:
    a, b, c = (write_run(tmp_path / name, 1.0, task=task) for name, task in (("a", "x"), ("b", "x"), ("c", "y")))
    assert list(differences(read(one=[a, c], two=[b]))) == [f"y: no results of two, but of {c}"]


def test_older_results_are_read_with_what_their_config_says(tmp_path: Path) -> None:
    config = TrainConfig()
    config.data.validation_fraction = 0.25
    told = read(a=[write_run(tmp_path / "run", 1.0, seed=3, config=config, trained=None)])["a"][0]
    assert (told.seed, told.facts["held-out share of the data"], told.settings["model.n_layer"]) == (3, "0.25", 4)
    evaluated = write_run(
        tmp_path / "evaluated",
        1.0,
        seed=9,
        trained=None,
        checkpoint=str(tmp_path / "run" / "checkpoints" / "best.ckpt"),
    )
    (evaluated / "config.yaml").write_text("checkpoint: x\n")
    assert read(a=[evaluated])["a"][0].seed is None  # there is no such checkpoint
    (tmp_path / "run" / "checkpoints").mkdir()
    (tmp_path / "run" / "checkpoints" / "best.ckpt").touch()
    assert read(a=[evaluated])["a"][0].seed == 3  # of the training, not of the evaluation


def test_copies_under_names_of_their_own(tmp_path: Path) -> None:
    file = (write_run(tmp_path / "run", 1.0) / "results.json").rename(tmp_path / "hopper_seed0.json")
    assert read_run("a", file, "reference").folder == str(file)


def test_what_is_unknown_is_said(tmp_path: Path) -> None:
    old = write_run(tmp_path / "old", 1.0, trained=None)
    new = write_run(tmp_path / "new", 1.0)
    methods = read(a=[old], b=[new])
    assert list(differences(methods)) == []
    notes = list(remarks(methods))
    assert notes[:3] == [
        f"the fingerprint of the data is unknown, and therefore not compared, for {old}",
        f"the held-out share of the data is unknown, and therefore not compared, for {old}",
        f"the training seed is unknown, and assumed to differ, for {old}",
    ]


def test_seeds_versions_and_settings_that_differ_are_said(tmp_path: Path) -> None:
    a = [write_run(tmp_path / f"a{seed}", 1.0, seed=seed, config=TrainConfig()) for seed in (0, 1)]
    b = write_run(tmp_path / "b", 1.0, versions={"mujoco": "3.1"})
    config = TrainConfig()
    config.model.n_layer = 1
    c = write_run(tmp_path / "c", 1.0, seed=1, config=config)
    assert list(remarks(read(a=[*a, c], b=[b]))) == [
        "versions of mujoco differ: 3.0, 3.1",
        "the seeds, and therefore the data splits, differ in a-v0: a 0, 1; b 0",
        "a mixes settings of model.n_layer in a-v0: its numbers are over all of them",
    ]


def test_copies_of_models_of_other_sizes_are_said(tmp_path: Path) -> None:
    """A copy of results.json alone, without config.yaml beside it, has the options of model and data."""
    trained = {"fingerprint": "0f" * 32, "validation_fraction": 0.1}
    for seed, size in enumerate((64, 128)):
        told = trained | {"seed": seed, "model": {"n_embd": size, "n_head": 2}, "data": {"discount": 0.99}}
        write_run(tmp_path / str(size), 1.0, trained=told)
    assert list(remarks(read(a=[tmp_path / "64", tmp_path / "128"]))) == [
        "a mixes settings of trained.model.n_embd in a-v0: its numbers are over all of them"
    ]


def test_a_policy_counts_once(tmp_path: Path) -> None:
    a, b = (write_run(tmp_path / name, 1.0, config=TrainConfig()) for name in "ab")
    with pytest.raises(UserError, match=rf"x: {a} and {b} have equal seed \(0\) and settings on a-v0"):
        list(remarks(read(x=[a, b])))


def test_normalisations_and_refusals(tmp_path: Path) -> None:
    """A return of 300, where the data's mean is 200 and its best 400."""
    file = write_run(tmp_path / "run", 30.0) / "results.json"
    scores = [read_run("a", file, name).score for name in ("reference", "mean", "best", "mean-best")]
    assert scores == [pytest.approx(value) for value in (30, 150, 75, 50)]
    without = write_run(tmp_path / "b", 1.0, reference_scores={"min": None, "max": None}) / "results.json"
    with pytest.raises(UserError, match=r"no reference returns are known for Env-v0; choose --normalize={mean, best,"):
        read_run("a", without, "reference")
    known = write_run(tmp_path / "c", 323.43, env_id="Hopper-v5", reference_scores={"min": None, "max": None})
    assert read_run("a", known / "results.json", "reference").score == pytest.approx(100.0)
    negative = write_run(tmp_path / "d", 1.0, behavior={"return_mean": -5.0}) / "results.json"
    with pytest.raises(UserError, match="--normalize=mean defines no scores, because -5 would be 100 and 0 0"):
        read_run("a", negative, "mean")


def test_methods_by_an_option_of_a_sweep(tmp_path: Path) -> None:
    for number, (method, seed) in enumerate([("tt", 0), ("bc", 0), ("tt", 1)]):
        run = write_run(tmp_path / str(number), 1.0, seed=seed)
        RunRecord("finished", {"method": method, "seed": str(seed)}, 1.0).write(run)
    found, unfinished = find_results([str(tmp_path)], by="method")
    assert {method: [file.parent.name for file in files] for method, files in found.items()} == {
        "tt": ["0", "2"],
        "bc": ["1"],
    }
    assert unfinished == []
    assert list(find_results([str(tmp_path)], by="seed")[0]) == ["seed=0", "seed=1"]  # a number says nothing
    assert list(find_results([str(tmp_path)], by="method,seed")[0]) == [
        "method=tt seed=0",
        "method=bc seed=0",
        "method=tt seed=1",
    ]
    with pytest.raises(UserError, match=r"--by model: .*/0 was not given that option; it was given method, seed"):
        find_results([str(tmp_path)], by="model")
