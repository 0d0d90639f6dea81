"""The value of a longer horizon for a trained model: ``python -m tools.look_ahead RUN/checkpoints/best.ckpt``.

A planner of horizon h scores an action by the discounted rewards of h transitions drawn from the model, plus its
return-to-go after them. For transitions of held-out episodes, with the recorded action first, this prints for each h
the share of the variance of the real returns that the score explains, and how much the score varies between two draws.
A longer horizon can help only if it raises the share.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from trajectory_transformer.app.experiment import held_out_episodes
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.transitions import join_episodes
from trajectory_transformer.planning.planner import make_decoder
from trajectory_transformer.planning.sampling import draw
from trajectory_transformer.planning.trained_transformer import TrainedTransformer


@torch.inference_mode()
def scores(
    trained: TrainedTransformer, transitions: Tensor, horizon: int, discount: float, generator: torch.Generator
) -> Tensor:
    """Scores (horizon, n) of the first actions of ``transitions`` (n, transition_dim), by plans of 1, 2, … transitions.

    Actions after the first, and all observations, are drawn from the model at temperature 1.
    """
    layout, discretizer = trained.model.layout, trained.discretizer
    decoder = make_decoder(trained.model, PlannerConfig(beam_width=1, n_expand=1))
    given = discretizer.encode(transitions)
    decoder.prefill(given[:, layout.observation])
    decoder.expand(1)
    rewards, found = torch.zeros(len(given)), []
    for step in range(horizon):
        for column in range(layout.observation_dim if step == 0 else 0, layout.transition_dim):
            logits = decoder.logits[:, 0]
            if column in (layout.reward, layout.value):
                columns = slice(column, column + 1)
                expected = discretizer.expectation(logits.softmax(dim=-1).unsqueeze(1), columns)[:, 0]
                if column == layout.value:
                    found.append(rewards + discount ** (step + 1) * expected)
                    if len(found) == horizon:
                        return torch.stack(found)
                else:
                    rewards = rewards + discount**step * expected
            tokens = draw(logits[:, :-1], torch.rand(len(given), generator=generator))
            taken = step == 0 and column < layout.reward
            decoder.step((given[:, column] if taken else tokens).unsqueeze(1))
    raise ValueError(f"horizon must be at least 1, got {horizon}")


def look_ahead(checkpoint: Checkpoint, count: int, horizon: int) -> list[tuple[float, float]]:
    """The share of variance explained, and the draws' deviation in deviations of the returns, for each horizon.

    Args:
        checkpoint: a transformer's.
        count: number of held-out transitions; none is among the last 100 of an episode that a time limit ended.
        horizon: the furthest, at most the model's ``sequence_length``.
    """
    trained, data = TrainedTransformer.of(checkpoint), checkpoint.training.data
    table = join_episodes(held_out_episodes(checkpoint), data)
    ends, position = torch.from_numpy(table.lengths).cumsum(0), torch.arange(len(table.values))
    episode = torch.searchsorted(ends, position, right=True)
    known = torch.from_numpy(table.terminated)[episode] | (ends[episode] - position > 100)
    generator = torch.Generator().manual_seed(0)
    places = position[known][torch.randperm(int(known.sum()), generator=generator)[:count]]
    rows = torch.from_numpy(table.values)[places]
    layout = trained.model.layout
    real = rows[:, layout.reward] + data.discount * rows[:, layout.value]
    first, second = (scores(trained, rows, horizon, data.discount, generator) for _ in range(2))
    share = 1 - ((torch.cat([first, second]) - real) ** 2).view(2, horizon, -1).mean(dim=(0, 2)) / real.var()
    noise = (first - second).std(dim=1) / 2**0.5 / real.std()
    return list(zip(share.tolist(), noise.tolist(), strict=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="number of held-out transitions")
    parser.add_argument("--horizon", type=int, default=4, help="the furthest, at most the model's data.sequence_length")
    asked = parser.parse_args()
    for steps, (explained, deviation) in enumerate(
        look_ahead(Checkpoint.read(asked.checkpoint), asked.count, asked.horizon), 1
    ):
        print(f"horizon {steps}: share {explained:.3f}, deviation between draws {deviation:.3f}")
