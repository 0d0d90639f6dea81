"""Lightning data module of the transformer: episodes discretised and tokenised once, then windows of tokens."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from ..configuration import DataConfig
from ..data.discretizer import Discretizer, make_discretizer
from ..data.episodes import Episode
from ..data.goals import goal_transitions
from ..data.transitions import TransitionTable, join_episodes
from ..data.windows import TokenWindows, WindowBatch
from ..layout import TransitionLayout
from ..training.datamodule import OfflineDataModule


class TrajectoryDataModule(OfflineDataModule[WindowBatch]):
    """Discretiser of the training part → windows of tokens, one from each transition on.

    With ``goal_conditioned``, windows begin with the state in which their episode ends, and neither reward nor value
    tells anything.
    """

    layout: TransitionLayout  # from which the model's sizes follow
    discretizer: Discretizer  # fitted on the training episodes only
    train_table: TransitionTable
    validation_table: TransitionTable

    def __init__(self, config: DataConfig, seed: int, goal_conditioned: bool = False) -> None:
        super().__init__(config, seed)
        self.goal_conditioned = goal_conditioned
        self._goals: dict[str, Tensor] = {}  # (episodes, goal_dim) real values

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        environment = self.data.environment
        self.layout = TransitionLayout(environment.observation_dim, environment.action_dim)
        discount, penalty = self.config.discount, self.config.termination_penalty
        self.train_table = join_episodes(train, discount, penalty)
        self.validation_table = join_episodes(validation, discount, penalty)
        if self.goal_conditioned:
            # Differs from the paper: it drops rewards from the sequence; constant ones say as little, and one layout
            # serves all models.
            for table in (self.train_table, self.validation_table):
                table.values[:, self.layout.reward :] = 0.0
            dimensions = list(environment.goal_dimensions)
            self._goals = {
                part: torch.from_numpy(np.stack([episode.observations[-1, dimensions] for episode in episodes]))
                for part, episodes in (("train", train), ("validation", validation))
            }
        self.discretizer = make_discretizer(self.config.discretizer).fit(self.train_table.values)

    @override
    def make_examples(self, part: str) -> TokenWindows:
        table = self.train_table if part == "train" else self.validation_table
        goals = self._goals.get(part)
        if goals is not None:
            goals = goal_transitions(goals, self.data.environment.goal_dimensions, self.layout, self.discretizer)
        return TokenWindows(table, self.discretizer, self.config.sequence_length, self.device, goals)
