"""Train and plan with the original's own code on one of this project's data sets, for comparison.

    python -m results.drop_in.original_code train ORIGINAL DIRECTORY [--epochs 2]
    python -m results.drop_in.original_code plan ORIGINAL DIRECTORY CSV --episodes 40 [--first-seed 0]
    python -m results.drop_in.original_code compare CSV RESULTS    # results.json of evaluate.py, or CSV

ORIGINAL is a checkout of jannerm/trajectory-transformer (8834a6e); it is imported, with stand-ins for gym, d4rl and the
parts that render. DIRECTORY gets ``state_<epochs>.pt``, as the original would save it.
"""

import argparse
import csv
import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch
from trajectory_transformer.evaluation.environments import make_environments

from tests.golden.make_figures import load
from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.sources import load_offline_data

DATA = DataConfig("embedded/pointmaze/umaze-v0", observation_indices=[2, 3, 4, 5, 6, 7])
DISCOUNT, BINS, TRANSITIONS = 0.99, 100, 5
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 64}
SEARCH = {"horizon": 3, "beam_width": 8, "n_expand": 2, "context": 3, "plan_freq": 3, "k_obs": 1, "cdf_act": 0.6}


def original(root: str) -> dict[str, Any]:
    """The original's modules that matter, on the CPU."""
    load(root, "trajectory.models.transformers")
    for name in ("trajectory.utils", "trajectory.datasets", "trajectory.search"):
        package = types.ModuleType(name)
        package.__path__ = [str(Path(root, *name.split(".")))]
        sys.modules[name] = package
        setattr(sys.modules["trajectory"], name.split(".")[1], package)
    for name in ("gym", "d4rl"):
        sys.modules[name] = types.ModuleType(name)
    names = ("utils.arrays", "utils.progress", "utils.training", "datasets.sequence", "models.transformers")
    modules = {name: importlib.import_module(f"trajectory.{name}") for name in names}
    vars(modules["utils.arrays"])["DEVICE"] = "cpu"
    vars(sys.modules["trajectory.utils"])["Silent"] = modules["utils.progress"].Silent
    for name in ("search.core", "search.utils"):
        modules[name] = importlib.import_module(f"trajectory.{name}")
    return modules


class FlatEnvironment:
    """The data set as a D4RL environment gives it: one array for each field."""

    name, max_episode_steps = "embedded", 300

    def __init__(self) -> None:
        episodes = load_offline_data(DATA).episodes
        ends = [np.arange(len(episode)) == len(episode) - 1 for episode in episodes]
        terminated = [end & episode.terminated for end, episode in zip(ends, episodes, strict=True)]
        self.dataset = {
            "observations": np.concatenate([episode.observations[:-1] for episode in episodes]),
            "actions": np.concatenate([episode.actions for episode in episodes]),
            "rewards": np.concatenate([episode.rewards for episode in episodes]),
            "terminals": np.concatenate(terminated),
            "timeouts": np.concatenate(ends) & ~np.concatenate(terminated),
        }
        self.unwrapped = self

    def get_dataset(self) -> dict[str, np.ndarray]:
        return self.dataset


def build(modules: dict[str, Any]) -> tuple[Any, Any]:
    """The original's data set, with its discretiser, and its untrained model."""
    dataset = modules["datasets.sequence"].DiscretizedDataset(
        FlatEnvironment(), N=BINS, sequence_length=TRANSITIONS, step=1, discount=DISCOUNT, penalty=-100,
        max_path_length=300,
    )  # fmt: skip
    config = types.SimpleNamespace(
        vocab_size=BINS, block_size=TRANSITIONS * dataset.joined_dim - 1, observation_dim=dataset.observation_dim,
        action_dim=dataset.action_dim, transition_dim=dataset.joined_dim, action_weight=5, reward_weight=1,
        value_weight=1, embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1, **SIZES,
    )  # fmt: skip
    return dataset, modules["models.transformers"].GPT(config)


def train(options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    modules = original(options.original)
    dataset, model = build(modules)
    tokens = len(dataset) * (TRANSITIONS * dataset.joined_dim - 1)
    settings = types.SimpleNamespace(
        device="cpu", batch_size=64, learning_rate=6e-4, betas=(0.9, 0.95), grad_norm_clip=1.0, weight_decay=0.1,
        lr_decay=True, warmup_tokens=tokens // 10, final_tokens=tokens * options.epochs, num_workers=0,
    )  # fmt: skip
    start = time.monotonic()
    modules["utils.training"].Trainer(settings).train(model, dataset, n_epochs=options.epochs)
    Path(options.directory).mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), Path(options.directory) / f"state_{options.epochs}.pt")
    np.save(Path(options.directory) / "edges.npy", dataset.discretizer.thresholds)
    print(f"{len(dataset):,} windows, {time.monotonic() - start:.0f} s")


def plan(options: argparse.Namespace) -> None:
    modules = original(options.original)
    dataset, model = build(modules)
    states = sorted(Path(options.directory).glob("state_*.pt"))
    model.load_state_dict(torch.load(states[-1], weights_only=True))
    environment = load_offline_data(DATA).environment
    with open(options.csv, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "return", "length", "seconds"])
        for seed in range(options.first_seed, options.first_seed + options.episodes):
            start = time.monotonic()
            total, length = episode(modules, dataset, model, environment, seed)
            writer.writerow([seed, total, length, round(time.monotonic() - start, 1)])
            file.flush()


def episode(modules: dict[str, Any], dataset: Any, model: Any, environment: Any, seed: int) -> tuple[float, int]:
    """One episode planned by the original's functions, in the order of its ``scripts/plan.py``."""
    core, helpers, discretizer = modules["search.core"], modules["search.utils"], dataset.discretizer
    torch.manual_seed(seed)
    context: list[torch.Tensor] = []
    total, length, sequence = 0.0, 0, torch.empty(0)
    with make_environments(environment, 1) as batch:
        batch.reset(0, seed)
        while True:
            observation = batch.observations[0].copy()
            if length % SEARCH["plan_freq"] == 0:
                prefix = helpers.make_prefix(discretizer, context, observation, True)
                sequence = core.beam_plan(
                    model, lambda x: discretizer.value_fn(x, "mean"), prefix, SEARCH["horizon"], SEARCH["beam_width"],
                    SEARCH["n_expand"], dataset.observation_dim, dataset.action_dim, DISCOUNT, SEARCH["context"],
                    verbose=False, k_obs=SEARCH["k_obs"], cdf_act=SEARCH["cdf_act"],
                )  # fmt: skip
            else:
                sequence = sequence[1:]
            plan = discretizer.reconstruct(sequence)
            action = helpers.extract_actions(plan, dataset.observation_dim, dataset.action_dim, t=0)
            found = batch.step(action[None], np.ones(1, dtype=bool))
            reward = float(found.rewards[0])
            total, length = total + reward, length + 1
            if found.terminated[0] or found.truncated[0]:
                return total, length
            context = helpers.update_context(context, discretizer, observation, action, reward, SEARCH["context"])


def compare(options: argparse.Namespace) -> None:
    """Means, standard errors, and how often a random division of all episodes would look as different."""
    there, here = returns(Path(options.csv)), returns(Path(options.results))
    generator = np.random.default_rng(0)
    samples = [np.array(list(found.values())) for found in (there, here)]
    for name, sample in zip(("original's code", "evaluate.py"), samples, strict=True):
        error = sample.std(ddof=1) / len(sample) ** 0.5
        print(f"{name}: {len(sample)} episodes, return {sample.mean():.1f} ± {error:.1f}, {(sample > 0).mean():.0%} "
              f"of them above 0, highest {sample.max():.0f}")  # fmt: skip
    paired = np.array([here[seed] - found for seed, found in there.items() if seed in here])
    error = paired.std(ddof=1) / len(paired) ** 0.5
    print(f"same start and goal, {len(paired)} episodes: {paired.mean():+.1f} ± {error:.1f}")
    both, size = np.concatenate(samples), len(samples[0])
    statistics = {"difference of means": lambda a, b: abs(a.mean() - b.mean()), "Kolmogorov-Smirnov distance": distance}
    for name, statistic in statistics.items():
        found = statistic(*samples)
        shuffled = [
            statistic(order[:size], order[size:]) for order in (generator.permutation(both) for _ in range(2000))
        ]
        print(f"{name} {found:.2f}, p = {np.mean([value >= found for value in shuffled]):.2f} of 2,000 permutations")


def returns(path: Path) -> dict[int, float]:
    """Return of each seed, from a CSV file or a ``results.json``."""
    if path.suffix == ".json":
        rows = json.loads(path.read_text(encoding="utf-8"))["episodes"]
    else:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    return {int(row["seed"]): float(row["return"]) for row in rows}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Largest difference of the two empirical distribution functions."""
    values = np.concatenate([a, b])
    return max(abs((a <= value).mean() - (b <= value).mean()) for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for command, names in (
        (train, ["original", "directory"]),
        (plan, ["original", "directory", "csv"]),
        (compare, ["csv", "results"]),
    ):
        sub = commands.add_parser(command.__name__)
        for name in names:
            sub.add_argument(name)
        sub.set_defaults(run=command)
        sub.add_argument("--epochs", type=int, default=2)
        sub.add_argument("--episodes", type=int, default=40)
        sub.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
