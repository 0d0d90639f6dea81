"""How fast this machine trains, tokenises and plans: ``python -m trajectory_transformer.benchmark [PART …]``.

Parts: ``training``, ``tokenising``, ``planning``; none given means all. Every figure is a median, and speed is also
given as a fraction of what this machine reaches in large matrix products, measured in the same minute.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from .configuration import DataConfig, DiscretizerConfig, ModelConfig, PlannerConfig
from .data.discretizer import make_discretizer
from .data.environment import EnvironmentSpec, SpaceLeaf, SpaceSpec
from .data.episodes import Episode, OfflineData
from .data.transitions import join_episodes
from .data.windows import TokenWindows
from .layout import TransitionLayout
from .model.config import TrajectoryTransformerConfig
from .model.gpt import TrajectoryTransformerModel
from .planning.planner import BeamPlanner
from .training.datamodule import split_episodes

SEQUENCE_LENGTH, NUM_BINS = 10, 100
HOPPER, HALFCHEETAH = TransitionLayout(11, 3), TransitionLayout(17, 6)
TINY = ModelConfig(n_layer=2, n_head=2, n_embd=64, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)
BASE = ModelConfig()


@dataclass(frozen=True)
class PlanningSetting:
    """One row of the planning table."""

    name: str
    layout: TransitionLayout
    model: ModelConfig
    planner: PlannerConfig
    environments: int = 1


PLANNING = (
    PlanningSetting("default (hopper, tiny)", HOPPER, TINY, PlannerConfig(horizon=4, beam_width=16)),
    PlanningSetting("default, 20 environments", HOPPER, TINY, PlannerConfig(horizon=4, beam_width=16), 20),
    PlanningSetting("halfcheetah, base", HALFCHEETAH, BASE, PlannerConfig(horizon=5, beam_width=32)),
    PlanningSetting("halfcheetah, base, 8 environments", HALFCHEETAH, BASE, PlannerConfig(horizon=5, beam_width=32), 8),
    PlanningSetting(
        "halfcheetah, base, sliding", HALFCHEETAH, BASE, PlannerConfig(horizon=5, beam_width=32, window="sliding")
    ),
)


def median_seconds(run: Callable[[], object], rounds: int) -> float:
    """Median wall time of ``run`` over some rounds, after one that does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def matmul_rate() -> float:
    """Multiply-adds, counted as two operations, per second of 2048 × 2048 products in float32."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / median_seconds(lambda: a @ b, rounds=9)


def forward_operations(config: TrajectoryTransformerConfig, keys: float) -> float:
    """Operations of one token's forward pass that attends to ``keys`` keys, with its head."""
    width = config.n_embd
    return config.n_layer * (24 * width**2 + 4 * keys * width) + 2 * width * (config.vocab_size + 1)


def make_model(layout: TransitionLayout, options: ModelConfig) -> TrajectoryTransformerModel:
    """A model with random weights for windows of :data:`SEQUENCE_LENGTH` transitions."""
    torch.manual_seed(0)
    sizes = asdict(layout) | {"transition_dim": layout.transition_dim, "block_size": layout.block_size(SEQUENCE_LENGTH)}
    return TrajectoryTransformerModel(TrajectoryTransformerConfig(vocab_size=NUM_BINS, **sizes, **asdict(options)))


def training_rows(rate: float) -> list[tuple[str, str, str]]:
    """Tokens per second of whole updates: forward, backward, clipping, AdamW."""
    rows = []
    for name, layout, options, batch in (
        ("tiny, hopper", HOPPER, TINY, 64),
        ("base, halfcheetah", HALFCHEETAH, BASE, 32),
    ):
        model = make_model(layout, options).train()
        optimizer = torch.optim.AdamW(model.decay_parameter_groups(0.1), lr=1e-4, fused=True)
        tokens = torch.randint(0, NUM_BINS, (2, batch, model.config.block_size))
        mask = torch.ones(tokens.shape[1:])

        def update(model=model, optimizer=optimizer, tokens=tokens, mask=mask) -> None:
            optimizer.zero_grad()
            output = model(tokens[0], targets=tokens[1], attention_mask=mask, use_cache=False)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        per_second = tokens[0].numel() / median_seconds(update, rounds=7)
        needed = 3 * forward_operations(model.config, model.config.block_size)
        dropout = f", dropout {options.attn_pdrop}" if options.attn_pdrop else ""
        rows.append(
            (
                f"training, {name}, batch {batch}{dropout}",
                f"{per_second:,.0f} tokens/s",
                f"{per_second * needed / rate:.0%} of the matrix-product rate",
            )
        )
    return rows


def random_episodes(layout: TransitionLayout, episodes: int, steps: int) -> OfflineData:
    """Normally distributed episodes, every other one terminated."""
    generator = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape, dtype=np.float32)

    def space(size: int) -> SpaceSpec:
        return SpaceSpec((SpaceLeaf((), "box", (size,), (-np.inf,) * size, (np.inf,) * size),))

    made = [
        Episode(normal(steps + 1, layout.observation_dim), normal(steps, layout.action_dim), normal(steps), bool(i % 2))
        for i in range(episodes)
    ]
    environment = EnvironmentSpec("", None, space(layout.observation_dim), space(layout.action_dim))
    return OfflineData(["benchmark/random-v0"], made, environment, None, "none", "")


def tokenising_rows(episodes: int = 1000, steps: int = 1000, rounds: int = 3) -> list[tuple[str, str, str]]:
    """Seconds from validated episodes to windows that can be gathered: what a run does between reading and updating.

    Split, returns-to-go, bins of the training part, tokens of both parts.
    """
    data = random_episodes(HALFCHEETAH, episodes, steps)

    def tokenise() -> list[TokenWindows]:
        options = DataConfig()
        split = split_episodes(data, options.validation_fraction, seed=0)
        tables = [join_episodes(part, options.discount, options.termination_penalty) for part in split]
        discretizer = make_discretizer(DiscretizerConfig(num_bins=NUM_BINS)).fit(tables[0].values)
        return [TokenWindows(table, discretizer, SEQUENCE_LENGTH, torch.device("cpu")) for table in tables]

    windows = sum(map(len, tokenise()))
    name = f"episodes to windows, {windows:,} transitions of width {HALFCHEETAH.transition_dim}"
    return [(name, f"{median_seconds(tokenise, rounds):.1f} s", "")]


def planning_operations(setting: PlanningSetting, config: TrajectoryTransformerConfig) -> float:
    """Operations of one environment's search that exact caching leaves, on a cache that grows.

    The context is encoded once for all beams; action and reward tokens run for all candidates, value and observation
    tokens for kept beams alone. In a sliding window the planned part of the window is encoded again, once for each
    beam, whenever the window moves.
    """
    layout, planner = setting.layout, setting.planner
    wide, narrow = planner.beam_width * planner.n_expand, planner.beam_width
    length = (planner.context - 1) * layout.transition_dim + layout.observation_dim
    total = length * (forward_operations(config, length / 2) - 2 * config.n_embd * (config.vocab_size + 1))
    for t in range(planner.horizon):
        for _ in range(layout.action_dim + 1):
            length += 1
            total += wide * forward_operations(config, length)
        if t == planner.horizon - 1:
            break
        length += 1
        if planner.window == "sliding" and length >= planner.context * layout.transition_dim:
            length -= layout.transition_dim
            planned = min(t + 1, planner.context - 1) * layout.transition_dim
            total += narrow * planned * forward_operations(config, length / 2)
        else:
            total += narrow * forward_operations(config, length)
        for _ in range(layout.observation_dim):
            length += 1
            total += narrow * forward_operations(config, length)
    return total


def planning_rows(rate: float, rounds: int = 5) -> list[tuple[str, str, str]]:
    """Milliseconds per action, and their ratio to the arithmetic that exact caching leaves."""
    rows = []
    for setting in PLANNING:
        model = make_model(setting.layout, setting.model)
        fitted = make_discretizer(DiscretizerConfig(num_bins=NUM_BINS)).fit(
            torch.randn(20_000, setting.layout.transition_dim)
        )
        planner = BeamPlanner(model, fitted, replace(setting.planner, discount=0.99))
        time_steps = (setting.planner.context - 1) * setting.layout.transition_dim + setting.layout.observation_dim
        prefix = torch.randint(0, NUM_BINS, (setting.environments, time_steps))
        generators = [torch.Generator().manual_seed(seed) for seed in range(setting.environments)]
        seconds = median_seconds(partial(planner.plan, prefix, generators), rounds) / setting.environments
        ideal = planning_operations(setting, model.config) / rate
        rows.append(
            (
                f"planning, {setting.name}: horizon {setting.planner.horizon}, beam {setting.planner.beam_width}",
                f"{seconds * 1e3:.1f} ms per action",
                f"{seconds / ideal:.1f} × the arithmetic at the matrix-product rate",
            )
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.benchmark", description=__doc__)
    parts = ("training", "tokenising", "planning")
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; all if none is named")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rate = matmul_rate()
    measure: dict[str, Callable[[], list[tuple[str, str, str]]]] = {
        "training": lambda: training_rows(rate),
        "tokenising": tokenising_rows,
        "planning": lambda: planning_rows(rate),
    }
    table = Table("what", "speed", "against this machine", title="Random weights; medians", title_justify="left")
    for part in arguments.parts or parts:
        for row in measure[part]():
            table.add_row(*row)
    Console().print(table)
    Console().print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {arguments.threads} threads, "
        f"torch {torch.__version__}, {rate / 1e9:.0f} GFLOP/s in 2048 × 2048 products"
    )


if __name__ == "__main__":
    main()
