"""Make ``comparison.json`` beside this file: rliable's statistics of a published score table.

    python -m venv V && V/bin/pip install rliable==1.2.0 'pandas<3'
    V/bin/python tests/golden/make_comparison.py IRIS

IRIS is a checkout of eloialonso/iris (75e5ab5), whose ``results/data`` has the returns of five runs of IRIS and of
SimPLe on each of Atari 100k's 26 games, and those of a random and a human player. Scores are in percent of the way from
the latter two, so that rliable's 1 is 100 here. ``few`` is rliable's intervals of ``FEW`` resamples, with the indices
that it drew for them (resample, run, task); ``many`` those of ``MANY``, for comparison with any other generator's.
"""

import json
import sys
from pathlib import Path

import numpy as np
from rliable import library, metrics  # pyright: ignore[reportMissingImports] - no dependency of ours

FEW, MANY = 20, 20_000
AGGREGATES = {
    "interquartile mean": metrics.aggregate_iqm,
    "median": metrics.aggregate_median,
    "mean": metrics.aggregate_mean,
    "optimality gap": lambda scores: metrics.aggregate_optimality_gap(scores, gamma=100),
}
PAIR = "probability of improvement"
THRESHOLDS = [0, 10, 25, 50, 100, 200, 400]


def statistics(scores: np.ndarray) -> np.ndarray:
    return np.array([function(scores) for function in AGGREGATES.values()])


def improvement(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.array([metrics.probability_of_improvement(x, y)])


def main(root: Path) -> None:
    raw = {name: json.loads((root / f"{name}.json").read_text()) for name in ("IRIS", "SimPLe", "RANDOM", "HUMAN")}
    games = sorted(raw["IRIS"])
    low, high = (np.array([raw[name][game][0] for game in games]) for name in ("RANDOM", "HUMAN"))
    scores = {
        name: 100 * (np.array([raw[name][game] for game in games]).T - low) / (high - low)
        for name in ("IRIS", "SimPLe")
    }
    drawn: list[np.ndarray] = []
    choice = np.random.choice

    def listening(count: int, shape: tuple[int, ...], replace: bool) -> np.ndarray:
        drawn.append(choice(count, shape, replace=replace))
        return drawn[-1]

    def interval(given: object, function: object, repetitions: int) -> np.ndarray:
        np.random.seed(0)
        return library.get_interval_estimates({"it": given}, function, reps=repetitions)[1]["it"]

    golden: dict[str, object] = {"scores": {name: table.T.tolist() for name, table in scores.items()}}
    np.random.choice = listening
    pair = [scores["IRIS"], scores["SimPLe"]]
    few = {PAIR: interval(pair, improvement, FEW)[:, 0].tolist()}
    pair_indices, drawn[:] = [index.tolist() for index in drawn[-2 * FEW :]], []
    few |= dict(zip(AGGREGATES, interval(scores["IRIS"], statistics, FEW).T.tolist(), strict=True))
    indices = [index.tolist() for index in drawn[-FEW:]]
    np.random.choice = choice
    few |= {"indices": indices, "pair_indices": pair_indices}
    many = {PAIR: interval(pair, improvement, MANY // 10)[:, 0].tolist()}
    many |= dict(zip(AGGREGATES, interval(scores["IRIS"], statistics, MANY).T.tolist(), strict=True))
    golden["points"] = {
        PAIR: float(improvement(*pair)[0]),
        **{name: dict(zip(AGGREGATES, statistics(table).tolist(), strict=True)) for name, table in scores.items()},
    }
    golden["profile"] = {
        str(tau): float(value)
        for tau, value in zip(THRESHOLDS, library.score_distributions(scores["IRIS"], THRESHOLDS), strict=True)
    }
    golden |= {"few": few, "many": many}
    Path(__file__).with_name("comparison.json").write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "results" / "data")
