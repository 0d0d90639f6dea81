"""Runs read from ``results.json`` and ``config.yaml``, and the differences that make them incomparable."""

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..app.jobs import RunRecord
from ..app.main import read_config
from ..app.sweep import SweepJob, read_jobs
from ..configuration import TrainConfig, require
from ..environments.reference_scores import reference_scores
from ..errors import UserError
from ..evaluation.results import flat, read_results
from ..evaluation.scores import normalized_scores

NORMALIZATIONS = {
    "reference": "0 and 100 are the reference returns that the results name, or D4RL's for the environment",
    "mean": "0 is a return of 0, 100 the data's mean return",
    "best": "0 is a return of 0, 100 the return of the data's best episode",
    "mean-best": "0 is the data's mean return, 100 the return of its best episode",
}
SEEDS = "seeds of the episodes"  # they follow from the run's seed, so only runs of one seed must share them
BARE = re.compile(r"[-+]?[\d.][\d._]*(e[-+]?\d+)?|[-+]?inf|nan|true|false|null|none|\[.*", re.IGNORECASE)
VERSIONS = ("gymnasium", "mujoco")
Member = TypeVar("Member")


@dataclass(frozen=True)
class Run:
    """An evaluation of a trained policy."""

    method: str
    folder: str
    task: str  # ids of its data, joined by commas
    seed: int | None  # seed of the training and of the data split; None if unknown
    weights: str | None  # SHA-256 of the trained network's weights; None in older files
    score: float  # normalised mean return in percent
    data_score: float  # that of the data's episodes
    results: dict[str, Any]
    facts: dict[str, str | None]  # facts that must be equal; None if unknown
    settings: dict[str, Any]  # options by which policies of one method may differ

    @property
    def episode_return(self) -> float:
        return self.results["summary"]["return_mean"]

    @property
    def commit(self) -> str:
        name, dash, changed = (self.results["commit"] or "unknown").partition("-")
        return f"{name[:7]}{dash}{changed}"


def grouped(members: Iterable[Member], key: str) -> dict[Any, list[Member]]:
    """Group members by an attribute, in the order of first occurrence."""
    groups: dict[Any, list[Member]] = defaultdict(list)
    for member in members:
        groups[getattr(member, key)].append(member)
    return groups


def find_results(words: Sequence[str], by: str | None = None) -> tuple[dict[str, list[Path]], list[str]]:
    """Find the results files of each method, and the runs without results.

    Each word is ``NAME=FOLDER,…`` or ``FOLDER``, where folders may be glob patterns or files. With ``by``, the names of
    options, separated by commas, each combination of their values in the runs' command lines is a method.

    Raises:
        UserError: a word has no results or cannot be read, two methods share a file, or a run was not given the option.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    unfinished: list[str] = []
    for word in words:
        name, equals, rest = word.partition("=")
        alone = not equals or Path(word).exists()
        require(alone or (name != "" and rest != ""), f"{word}: give NAME=FOLDER")
        for place in [word] if alone else [rest] if Path(rest).exists() else rest.split(","):
            require(place != "", f"'{word}': the name of a folder is empty; give . for the current folder")
            paths = [Path(place)] if Path(place).exists() else sorted(map(Path, glob.glob(place, recursive=True)))
            require(bool(paths), f"{word}: there is no '{place}'")
            some, left = False, [run for path in paths for run in _unfinished(path)]
            for path in paths:
                try:
                    files = sorted(path.rglob("results.json")) if path.is_dir() else [path] * (path.suffix == ".json")
                except OSError as error:  # a folder in it vanished, say
                    raise UserError(f"{word}: '{error.filename}' cannot be read: {error.strerror}") from None
                method = path.resolve().name if alone else name
                found[method] += [file for file in files if file not in found[method]]
                some = some or bool(files)
            reason = f"its runs have none ({'; '.join(left)})" if left else "give folders of runs that were evaluated"
            require(some, f"{word}: '{place}' holds no results.json; {reason}")
            unfinished += left
    if by is not None:
        found = grouped_by_option([file for files in found.values() for file in files], by)
    owners: dict[Path, str] = {}
    for method, files in found.items():
        for file in files:
            owner = owners.setdefault(file.resolve(), method)
            require(owner == method, f"{file} belongs to both {owner} and {method}; give each method its own folders")
    return {method: files for method, files in found.items() if files}, unfinished


def grouped_by_option(files: Iterable[Path], by: str) -> dict[str, list[Path]]:
    """Group results files by the values of options on the command line of each run or its sweep."""
    options = by.split(",")
    require(all(options), f"--by {by} lacks the name of an option: give --by OPTION, or --by OPTION,OPTION")
    found: dict[str, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(files):
        record = RunRecord.read(file.parent)
        given = {} if record is None else record.parameters
        others = f"; it was given {', '.join(given)}" if given else ""
        for option in options:
            require(option in given, f"--by {option}: {file.parent} was not given that option{others}")
        values = [given[option] for option in options]
        if any(BARE.fullmatch(value) for value in values):  # says nothing by itself
            values = [f"{option.rpartition('.')[2]}={value}" for option, value in zip(options, values, strict=True)]
        found[" ".join(values)].append(file)
    return found


def _unfinished(folder: Path) -> list[str]:
    """Return the runs in a folder that failed or did not finish, with the reasons."""
    own = RunRecord.read(folder)
    jobs = (read_jobs(folder) if folder.is_dir() else []) or ([] if own is None else [SweepJob(".", own)])
    left = [job for job in jobs if job.status != "finished" and not (folder / job.name / "results.json").exists()]
    return [f"{folder / job.name}: {job.record.reason or job.status}" for job in left]


def read_run(method: str, file: Path, normalization: str) -> Run:
    """Read a run; raises UserError if its file is invalid, or its return cannot be normalised."""
    results = read_results(file)
    folder = file.parent if file.name == "results.json" else file  # a renamed copy
    own, told, checkpoint = _training_config(folder), results.get("trained") or {}, Path(results["checkpoint"])
    config = own or (_training_config(checkpoint.parent.parent) if checkpoint.is_file() else None)
    if config is not None:
        told = {"seed": config.seed, "validation_fraction": config.data.validation_fraction, **told}
    ends = _reference(results, normalization, str(file))
    means = [results[of]["return_mean"] for of in ("summary", "behavior")]
    scores = normalized_scores(np.array(means), ends)
    assert scores is not None
    score, data_score = map(float, scores)
    seeds = sorted(episode["seed"] for episode in results["episodes"])
    in_a_row = seeds == list(range(seeds[0], seeds[-1] + 1)) if seeds else False
    held_out, steps = told.get("validation_fraction"), results.get("max_episode_steps")
    facts = {
        "fingerprint of the data": told.get("fingerprint", "")[:12] or None,
        "returns of the data": "{episodes} episodes of mean {return_mean:.6g}, best {return_max:.6g}".format(
            **results["behavior"]
        ),
        "environment": results["env_id"],
        "held-out share of the data": None if held_out is None else f"{held_out:g}",
        "number of episodes": str(len(seeds)),
        "max_episode_steps": None if "max_episode_steps" not in results else str(steps),
        "returns of score 0 and 100": "{:.6g} and {:.6g}".format(*ends),
        SEEDS: f"{seeds[0]} to {seeds[-1]}" if in_a_row else ", ".join(map(str, seeds)),
    }
    planner = asdict(own.planner) if own is not None else results["planner"]
    recorded = {"trained": {name: told.get(name, {}) for name in ("model", "data")}}
    settings = {"planner": planner} | (recorded if config is None else _training_options(config))
    return Run(
        method,
        str(folder),
        results["dataset"],
        told.get("seed"),
        told.get("weights"),
        score,
        data_score,
        results,
        facts,
        flat(settings, "."),
    )


def _training_config(folder: Path) -> TrainConfig | None:
    """Return the training options in a folder, or None if there are none that this version can read."""
    try:
        return read_config(folder, None)
    except UserError:
        return None


def _training_options(config: TrainConfig) -> dict[str, Any]:
    data = {name: value for name, value in asdict(config.data).items() if name not in ("dataset_id", "source")}
    parts = {name: asdict(getattr(config, name)) for name in ("model", "optimizer")}
    return {"learner": config.learner, "data": data, **parts, "trainer": {"max_steps": config.trainer.max_steps}}


def _reference(results: Mapping[str, Any], normalization: str, file: str) -> tuple[float, float]:
    """Return the returns that count as 0 and 100; raises UserError if there are none."""
    mean, best = (results["behavior"][name] for name in ("return_mean", "return_max"))
    if normalization == "reference":
        known = {f"ref_{end}_score": results["reference_scores"][end] for end in ("min", "max")}
        ends = reference_scores(known, results["env_id"])[0]
        choices = ", ".join(name for name in NORMALIZATIONS if name != normalization)
        hint = f"{file}: no reference returns are known for {results['env_id']}; choose --normalize={{{choices}}}"
    else:
        ends = {"mean": (0.0, mean), "best": (0.0, best), "mean-best": (mean, best)}[normalization]
        hint = (
            f"{file}: --normalize={normalization} defines no scores, because {ends[1]:g} would be 100 and {ends[0]:g} 0"
        )
    if ends is None or not ends[0] < ends[1]:
        raise UserError(f"{hint} ({NORMALIZATIONS[normalization]})")
    return ends


def differences(methods: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """Yield the differences that make runs of one task incomparable, with their folders."""
    runs = [run for own in methods.values() for run in own]
    for task, same in grouped(runs, "task").items():
        for fact in (fact for fact in same[0].facts if fact != SEEDS):
            yield from _different(task, fact, same)
        for seed, of_seed in grouped(same, "seed").items():
            if seed is not None:
                for difference in _different(f"{task}, seed {seed}", SEEDS, of_seed):
                    yield f"{difference}; evaluate.py seed=N plays N, N + 1, …"
        lacking = [method for method, own in methods.items() if task not in {run.task for run in own}]
        if lacking:
            yield f"{task}: no results of {', '.join(lacking)}, but of {_places(same, 4)}"


def _different(place: str, fact: str, runs: Sequence[Run]) -> Iterator[str]:
    values: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if (value := run.facts[fact]) is not None:
            values[value].append(run)
    if len(values) > 1:
        *told, (most, of_most) = sorted(values.items(), key=lambda item: len(item[1]))
        words = [*(f"{value} in {_places(own, len(own))}" for value, own in told), f"{most} in {_places(of_most, 4)}"]
        yield f"{place}: {fact}: {'; '.join(words)}"


def _places(runs: Sequence[Run], at_most: int) -> str:
    folders = list(dict.fromkeys(run.folder for run in runs))
    others = len(folders) - at_most
    return ", ".join(folders[:at_most]) + (f" and {others} others" if others > 0 else "")


def remarks(methods: Mapping[str, Sequence[Run]]) -> Iterator[str]:
    """Yield remarks on unknown or different facts of comparable runs.

    Raises:
        UserError: a policy was evaluated twice, and would be counted twice.
    """
    runs = [run for own in methods.values() for run in own]
    for fact in runs[0].facts:
        if unknown := [run for run in runs if run.facts[fact] is None]:
            yield f"the {fact} is unknown, and therefore not compared, for {_places(unknown, 3)}"
    if unknown := [run for run in runs if run.seed is None]:
        yield f"the training seed is unknown, and assumed to differ, for {_places(unknown, 3)}"
    for package in VERSIONS:
        versions = sorted({str(run.results["versions"].get(package, "unknown")) for run in runs})
        if len(versions) > 1:
            yield f"versions of {package} differ: {', '.join(versions)}"
    seeds: dict[str, list[str]] = defaultdict(list)
    for task, same in grouped(runs, "task").items():
        own = {m: sorted({run.seed for run in of if run.seed is not None}) for m, of in grouped(same, "method").items()}
        if len({tuple(numbers) for numbers in own.values()}) > 1:
            seeds["; ".join(f"{method} {', '.join(map(str, numbers))}" for method, numbers in own.items())].append(task)
    for numbers, tasks in seeds.items():
        yield f"the seeds, and therefore the data splits, differ in {', '.join(tasks)}: {numbers}"
    mixed: dict[tuple[str, str], list[str]] = defaultdict(list)
    for method, own in methods.items():
        for task, same in grouped(own, "task").items():
            for one, other in ((a, b) for i, b in enumerate(same) for a in same[:i] if a.seed == b.seed is not None):
                require(
                    bool(_varied([one, other])),
                    f"{method}: {one.folder} and {other.folder} have equal seed ({one.seed}) and settings on {task}; "
                    "a policy counts once: give only one of them, or each its own NAME",
                )
            if names := _varied(same):
                mixed[method, ", ".join(names)].append(task)
    for (method, names), of_tasks in mixed.items():
        yield f"{method} mixes settings of {names} in {', '.join(of_tasks)}: its numbers are over all of them"


def _varied(runs: Sequence[Run]) -> list[str]:
    """Return the options that differ between the runs that record them."""
    values: dict[str, set[str]] = defaultdict(set)
    for run in runs:
        for name, value in run.settings.items():
            values[name].add(repr(value))
    return [name for name, different in values.items() if len(different) > 1]
