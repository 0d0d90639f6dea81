"""TS∞ with linear-Gaussian members, whose distributions are known in closed form."""

import torch
from torch import Tensor

from trajectory_transformer.analysis.continuations import continue_with_members

HORIZON, SAMPLES = 4, 6000
BOUNDS = (torch.tensor([-100.0, -100.0]), torch.tensor([100.0, 100.0]))


class LinearMembers:
    """Member m: next = factor[m] * observation + action, with standard deviation 0.5 in both dimensions."""

    def __init__(self, *factors: float) -> None:
        self.factors = torch.tensor(factors)
        self.asked: list[Tensor] = []

    @property
    def num_members(self) -> int:
        return len(self.factors)

    def distribution(self, observations: Tensor, actions: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        self.asked.append(members)
        mean = self.factors[members].unsqueeze(1) * observations + actions
        return mean, torch.full_like(mean, 0.5)


def test_each_member_keeps_its_samples_and_they_follow_its_distribution() -> None:
    dynamics, start = LinearMembers(0.5, -1.0), torch.tensor([1.0, -2.0])
    actions = torch.tensor([[0.3], [0.0], [-0.2], [1.0]])
    run = continue_with_members(dynamics, start, actions, SAMPLES, BOUNDS, torch.Generator().manual_seed(0))
    assert run.observations.shape == (SAMPLES, HORIZON, 2)
    assert all(torch.equal(members, dynamics.asked[0]) for members in dynamics.asked)
    assert dynamics.asked[0].bincount().tolist() == [SAMPLES // 2, SAMPLES // 2]
    for member, factor in enumerate((0.5, -1.0)):
        rows = run.observations[dynamics.asked[0] == member]
        mean, variance = start, torch.tensor(0.0)
        for t in range(HORIZON):
            mean, variance = factor * mean + actions[t], factor**2 * variance + 0.25
            tolerance = 5 * (variance / len(rows)).sqrt().item()
            torch.testing.assert_close(rows[:, t].mean(dim=0), mean, atol=tolerance, rtol=0)
            torch.testing.assert_close(
                rows[:, t].var(dim=0), variance.expand(2), rtol=5 * (2 / len(rows)) ** 0.5, atol=0
            )


def test_each_step_starts_from_the_sample_of_the_last() -> None:
    dynamics, actions = LinearMembers(0.5), torch.zeros(2, 1)
    run = continue_with_members(dynamics, torch.ones(2), actions, 3, BOUNDS, torch.Generator().manual_seed(0))
    torch.testing.assert_close(run.means[:, 1], 0.5 * run.observations[:, 0])
    torch.testing.assert_close(run.means[:, 0], torch.full((3, 2), 0.5))
    assert (run.deviations == 0.5).all()


def test_samples_that_explode_stay_within_three_times_the_range() -> None:
    dynamics, actions = LinearMembers(1e30), torch.zeros(4, 1)
    bounds = (torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 4.0]))
    run = continue_with_members(dynamics, torch.ones(2), actions, 5, bounds, torch.Generator().manual_seed(0))
    assert (run.observations >= torch.tensor([-3.0, -4.0])).all()
    assert (run.observations <= torch.tensor([3.0, 8.0])).all()
    assert (run.observations[:, -1].abs() > torch.tensor([1.0, 4.0])).all()
