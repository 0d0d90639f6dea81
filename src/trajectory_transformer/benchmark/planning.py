"""Planning speed of this machine, against the arithmetic that exact caching leaves."""

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
    """One row of the planning table."""

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
    """Time and memory of a setting, for each environment and action."""

    milliseconds: tuple[float, float]  # 50th and 95th percentile
    ideal_milliseconds: float  # of the arithmetic that exact caching leaves, at ``rate``
    # Of the model, of sampling, of the search itself, adding up to 1; None on a GPU, where they run as one graph.
    shares: tuple[float, float, float] | None
    peak_memory: int  # MiB of a process that does nothing else; on a GPU, of the GPU's
    rate: float  # operations per second of large matrix products


def planning_operations(setting: PlanningSetting, config: TransformerConfig) -> float:
    """Operations of one environment's search that exact caching leaves, on a cache that grows.

    The context is encoded once for all beams; action and reward tokens run for all candidates, value and observation
    tokens for kept beams alone. Whenever a sliding window moves, its planned part is encoded again for each beam.
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
    """Plan with random weights for about so many seconds, at least five times, and multiply matrices in between.

    On a shared machine the rate of products changes within seconds; so plans are held against those beside them.
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
    planner.plan(prefix, generators)  # a GPU captures it
    before, taken, rates, memory = planner.decoding_seconds, [], [], 0
    while len(taken) < 5 or sum(taken) < seconds:
        taken.append(hardware.seconds(lambda: planner.plan(prefix, generators)))
        if sum(taken) >= len(rates) * seconds / 10:
            memory = memory or peak_memory(hardware.device)  # the planner's, without what the products need
            rates.append(hardware.matmul_rate(rounds=3))
    after, rate = planner.decoding_seconds, statistics.median(rates)
    model_share, sampling_share = ((b - a) / sum(taken) for a, b in zip(before, after, strict=True))
    p50, p95 = np.percentile(taken, [50, 95]) * 1e3 / environments
    shares = (model_share, sampling_share, 1.0 - model_share - sampling_share) if hardware.device == "cpu" else None
    ideal = planning_operations(setting, model.config) / rate * 1e3
    return PlanningSpeed((float(p50), float(p95)), ideal, shares, memory, rate)


def measure_alone(setting: PlanningSetting, hardware: Hardware) -> PlanningSpeed:
    """As :func:`measure`, in a process of its own, so that its peak memory is this setting's."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, setting, hardware).result()


COLUMNS = (
    "setting", "window", "horizon", "beam", "environments", "ms per action p50", "p95", "× ideal",
    "model / sampling / search %", "peak MiB",
)  # fmt: skip


def planning_row(setting: PlanningSetting, speed: PlanningSpeed) -> tuple[str, ...]:
    """Cells under :data:`COLUMNS`."""
    planner, (p50, p95) = setting.planner, speed.milliseconds
    shares = " / ".join(f"{share:.0%}".rstrip("%") for share in speed.shares) if speed.shares else "–"
    counts = str(planner.horizon), str(planner.beam_width), str(setting.environments)
    times = f"{p50:.1f}", f"{p95:.1f}", f"{p50 / speed.ideal_milliseconds:.2f}"
    return setting.name, planner.window, *counts, *times, shares, str(speed.peak_memory)
