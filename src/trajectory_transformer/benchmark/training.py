"""Speed of training, and of converting episodes to training windows, on this machine."""

from functools import partial

import numpy as np
import torch

from ..available_memory import keep_freed_memory
from ..configuration import DataConfig, DiscretizerConfig
from ..data.discretizer import make_discretizer
from ..data.episodes import Episode, OfflineData
from ..data.transitions import join_episodes
from ..data.windows import TokenWindows
from ..environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from ..layout import TransitionLayout
from ..training.datamodule import split_episodes
from . import machine
from .machine import BASE, HALFCHEETAH, HOPPER, NUM_BINS, TINY, Hardware


def training_rows(hardware: Hardware, rate: float) -> list[tuple[str, str, str]]:
    """Return rows with the tokens/s of updates (forward, backward, clipping, AdamW), and their share of ``rate``."""
    on_cpu, rows = hardware.device == "cpu", []
    keep_freed_memory()  # as train.py does
    for name, layout, options, batch in (  # on a GPU, the original's batch size
        ("tiny, hopper", HOPPER, TINY, 64),
        ("base, halfcheetah", HALFCHEETAH, BASE, 32 if on_cpu else 256),
    ):
        model = machine.make_model(layout, options).train().to(hardware.device)
        if hardware.compiled:
            model.compile()
        optimizer = torch.optim.AdamW(model.decay_parameter_groups(0.1), lr=1e-4, fused=True)
        tokens = torch.randint(0, NUM_BINS, (2, batch, model.config.block_size)).to(hardware.device)
        mask = torch.ones(tokens.shape[1:], device=hardware.device)

        def update(model=model, optimizer=optimizer, tokens=tokens, mask=mask) -> None:
            optimizer.zero_grad()
            with torch.autocast(hardware.device, torch.bfloat16, enabled=hardware.bf16):
                output = model(tokens[0], targets=tokens[1], attention_mask=mask, use_cache=False)
            output.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        per_second = tokens[0].numel() / hardware.median_seconds(update, rounds=7 if on_cpu else 30)
        share = per_second * 3 * machine.forward_operations(model.config, model.config.block_size) / rate
        dropout = f", dropout {options.attn_pdrop}" if options.attn_pdrop else ""
        name = f"training, {name}, batch {batch}{dropout}"
        rows.append((name, f"{per_second:,.0f} tokens/s", f"{share:.0%} of the matrix-product rate"))
    return rows


def random_episodes(layout: TransitionLayout, episodes: int, steps: int) -> OfflineData:
    """Make normally distributed episodes, every other one terminated."""
    normal = partial(np.random.default_rng(0).standard_normal, dtype=np.float32)
    sizes = layout.observation_dim, layout.action_dim
    made = [
        Episode(normal((steps + 1, sizes[0])), normal((steps, sizes[1])), normal(steps), bool(i % 2))
        for i in range(episodes)
    ]
    observation, action = (SpaceSpec((SpaceLeaf((), "box", (n,), (-np.inf,) * n, (np.inf,) * n),)) for n in sizes)
    environment = EnvironmentSpec("", None, observation, action)
    return OfflineData(["benchmark/random-v0"], made, environment, None, "none", "")


def tokenising_rows(
    hardware: Hardware, episodes: int = 1000, steps: int = 1000, rounds: int = 3
) -> list[tuple[str, str, str]]:
    """Return a row with the CPU seconds from validated episodes to windows: split, returns-to-go, bins, tokens."""
    data = random_episodes(HALFCHEETAH, episodes, steps)

    def tokenise() -> list[TokenWindows]:
        options = DataConfig(termination_penalty=None)
        split = split_episodes(data, options.validation_fraction, seed=0)
        tables = [join_episodes(part, options) for part in split]
        discretizer = make_discretizer(DiscretizerConfig(num_bins=NUM_BINS)).fit(tables[0].values)
        return [TokenWindows(table, discretizer, machine.SEQUENCE_LENGTH) for table in tables]

    windows = sum(map(len, tokenise()))
    name = f"episodes to windows, {windows:,} transitions of width {HALFCHEETAH.transition_dim}"
    return [(name, f"{hardware.median_seconds(tokenise, rounds):.1f} s", "")]
