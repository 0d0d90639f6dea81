"""Planning speed of this machine, relative to the arithmetic remaining with exact caching."""

import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..configuration import DiscretizerConfig, ModelConfig, PlannerConfig
from ..data.discretizer import make_discretizer
from ..layout import TransitionLayout
from ..model.config import TransformerConfig
from ..planning.planner import BeamPlanner
from .machine import BASE, HALFCHEETAH, HOPPER, NUM_BINS, TINY, Hardware, forward_operations, make_model, peak_memory


@dataclass(frozen=True)
class PlanningSetting:
    """The setting of a row of the planning table."""

    name: str
    layout: TransitionLayout
    model: ModelConfig
    planner: PlannerConfig
    environments: int = 1


SMALL, SHORT = (PlannerConfig(horizon=h, beam_width=width, context=5) for h, width in ((4, 16), (5, 32)))
LONG = PlannerConfig(horizon=15, beam_width=128, context=5, window="sliding")
PLANNING = (
    PlanningSetting("hopper, tiny", HOPPER, TINY, SMALL),
    PlanningSetting("hopper, tiny", HOPPER, TINY, SMALL, 20),
    PlanningSetting("halfcheetah, base", HALFCHEETAH, BASE, SHORT),
    PlanningSetting("halfcheetah, base", HALFCHEETAH, BASE, SHORT, 8),
    PlanningSetting("halfcheetah, base", HALFCHEETAH, BASE, replace(SHORT, window="sliding")),
    PlanningSetting("hopper, base", HOPPER, BASE, LONG),
    PlanningSetting("walker2d, base", HALFCHEETAH, BASE, LONG),
)


@dataclass(frozen=True)
class PlanningSpeed:
    """The time, per environment and action, and memory of a setting."""

    milliseconds: tuple[float, float]  # 50th and 95th percentile
    ideal_milliseconds: float  # time of the arithmetic remaining with exact caching, at ``rate``
    # Shares of model, sampling and search, with sum 1; None on a GPU, where they run as one graph.
    shares: tuple[float, float, float] | None
    peak_memory: int  # MiB of a separate process; on a GPU, its GPU memory
    rate: float  # operations per second of large matrix products


def planning_operations(setting: PlanningSetting, config: TransformerConfig) -> float:
    """Return the operations of one environment's search with exact caching and a growing cache.

    The context is encoded once for all beams; action and reward tokens run for all candidates, value and observation
    tokens for kept beams only. Whenever a sliding window moves, its planned part is encoded again for each beam.
    """
    layout, planner = setting.layout, setting.planner
    wide, narrow = planner.beam_width * planner.n_expand, planner.beam_width
    length = (planner.context - 1) * layout.transition_dim + layout.observation_dim
    total = length * (forward_operations(config, length / 2) - 2 * config.n_embd * (config.vocab_size + 1))
    for t in range(planner.horizon):
        total += sum(wide * forward_operations(config, length + n + 1) for n in range(layout.action_dim + 1))
        length += layout.action_dim + 1
        if t == planner.horizon - 1:
            break
        length += 1
        if planner.window == "sliding" and length >= planner.context * layout.transition_dim:
            length -= layout.transition_dim
            planned = min(t + 1, planner.context - 1) * layout.transition_dim
            total += narrow * planned * forward_operations(config, length / 2)
        else:
            total += narrow * forward_operations(config, length)
        total += sum(narrow * forward_operations(config, length + n + 1) for n in range(layout.observation_dim))
        length += layout.observation_dim
    return total


def measure(setting: PlanningSetting, hardware: Hardware, seconds: float = 4.0) -> PlanningSpeed:
    """Measure plans with random weights for about ``seconds``, at least five, alternating with matrix products.

    On a shared machine the rate changes within seconds, so plans are compared with products measured at the same time.
    """
    torch.set_num_threads(hardware.threads)
    layout, environments = setting.layout, setting.environments
    model = make_model(layout, setting.model).to(hardware.device)
    values = torch.randn(20_000, layout.transition_dim, generator=torch.Generator().manual_seed(0))
    discretizer = make_discretizer(DiscretizerConfig(num_bins=NUM_BINS)).fit(values).to(hardware.device)
    options = replace(setting.planner, discount=0.99, precision="bf16" if hardware.bf16 else "32")
    planner = BeamPlanner(model, discretizer, options)
    length = (setting.planner.context - 1) * layout.transition_dim + layout.observation_dim
    prefix = torch.randint(0, NUM_BINS, (environments, length), generator=torch.Generator().manual_seed(0))
    prefix, generators = prefix.to(hardware.device), [torch.Generator().manual_seed(n) for n in range(environments)]
    planner.plan(prefix, generators)  # warm-up; on a GPU, the search is captured
    before, taken, rates, memory = planner.decoding_seconds, [], [], 0
    while len(taken) < 5 or sum(taken) < seconds:
        taken.append(hardware.seconds(lambda: planner.plan(prefix, generators)))
        if sum(taken) >= len(rates) * seconds / 10:
            memory = memory or peak_memory(hardware.device)  # of the planner, without the matrix products
            rates.append(hardware.matmul_rate(rounds=3))
    after, rate = planner.decoding_seconds, statistics.median(rates)
    model_share, sampling_share = ((b - a) / sum(taken) for a, b in zip(before, after, strict=True))
    p50, p95 = np.percentile(taken, [50, 95]) * 1e3 / environments
    shares = (model_share, sampling_share, 1.0 - model_share - sampling_share) if hardware.device == "cpu" else None
    ideal = planning_operations(setting, model.config) / rate * 1e3
    return PlanningSpeed((float(p50), float(p95)), ideal, shares, memory, rate)


def measure_alone(setting: PlanningSetting, hardware: Hardware) -> PlanningSpeed:
    """Call :func:`measure` in a separate process, so that the peak memory is that of this setting."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, setting, hardware).result()


COLUMNS = (
    "setting", "window", "horizon", "beam", "environments", "ms per action p50", "p95", "× ideal",
    "model / sampling / search %", "peak MiB",
)  # fmt: skip


def planning_row(setting: PlanningSetting, speed: PlanningSpeed) -> tuple[str, ...]:
    """Return the cells of a row, as in :data:`COLUMNS`."""
    planner, (p50, p95) = setting.planner, speed.milliseconds
    shares = " / ".join(f"{share:.0%}".rstrip("%") for share in speed.shares) if speed.shares else "–"
    counts = str(planner.horizon), str(planner.beam_width), str(setting.environments)
    times = f"{p50:.1f}", f"{p95:.1f}", f"{p50 / speed.ideal_milliseconds:.2f}"
    return setting.name, planner.window, *counts, *times, shares, str(speed.peak_memory)
