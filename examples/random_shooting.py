"""A search of your own: random shooting, the best of many sampled plans, none of which is given up on the way.

``PYTHONPATH=examples python train.py --config-dir examples/configs planner=random_shooting``
"""

from dataclasses import dataclass

import torch

from trajectory_transformer.planning.search import Search


@dataclass
class RandomShooting(Search):
    """Samples ``beam_width * n_expand`` plans; ``values`` is the weight of the return-to-go after a plan."""

    values: float = 1.0

    def __call__(self, problem):
        decoder, layout, settings, uniforms = problem.decoder, problem.layout, problem.settings, problem.uniforms
        number = settings.beam_width * settings.n_expand
        decoder.prefill(problem.prefix)
        decoder.expand(number)
        observations = problem.observations.unsqueeze(1).expand(-1, number, -1)
        transitions, rewards, tokens = [], [], None
        for t in range(settings.horizon):
            if tokens is not None:
                draws = uniforms[:, t, layout.observation]
                observations = decoder.extend(draws, problem.of_observations, given=tokens[:, :, 1])
            actions = decoder.extend(uniforms[:, t, layout.action], problem.of_actions)
            estimates, tokens = problem.outcome()
            transitions.append(torch.cat([observations, actions, tokens], dim=2))
            rewards.append(estimates[:, :, 0])
        plans, rewards, value = torch.stack(transitions, dim=2), torch.stack(rewards, dim=2), estimates[:, :, 1]
        discounts = settings.discount ** torch.arange(settings.horizon + 1, device=rewards.device)
        scores = (rewards * discounts[:-1]).sum(dim=2) + self.values * discounts[-1] * value
        return problem.best_of(plans, rewards, value, scores)
