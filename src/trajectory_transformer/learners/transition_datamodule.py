"""Lightning data module of single transitions, with the same split as the transformer's."""

from collections.abc import Sequence

import torch
from typing_extensions import override

from ..configuration import DataConfig
from ..data.episodes import Episode
from ..data.transition_set import TransitionBatch, TransitionSet, return_range
from ..training.batches import BOOTSTRAP, Examples, random_stream
from ..training.datamodule import OfflineDataModule


class TransitionDataModule(OfflineDataModule[TransitionBatch]):
    """Transitions of both parts, as recorded, with ``data.termination_penalty``.

    With ``num_members``, batches have a leading axis of ensemble members: each member has its own bootstrap sample of
    the training transitions, and all have the same validation transitions.
    """

    train_set: TransitionSet  # on the CPU
    validation_set: TransitionSet
    train_returns: tuple[float, float]  # worst and best of the training episodes, undiscounted

    def __init__(self, config: DataConfig, seed: int, num_members: int | None = None) -> None:
        super().__init__(config, seed)
        self.num_members = num_members

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        # Differs from the original IQL, which trains on all episodes: here, as for every learner, on the training part.
        penalty = self.config.termination_penalty
        self.train_set, self.validation_set = (TransitionSet(part, penalty) for part in (train, validation))
        self.train_returns = return_range(train, penalty)

    @override
    def make_examples(self, part: str) -> Examples[TransitionBatch]:
        transitions = self.train_set if part == "train" else self.validation_set
        if self.num_members is None:
            return transitions.to(self.device)
        count = len(transitions)
        if part == "validation":
            return transitions.to(self.device, torch.arange(count).expand(self.num_members, count))
        streams = [random_stream(self.seed, BOOTSTRAP, member) for member in range(self.num_members)]
        samples = [torch.randint(count, (count,), generator=stream) for stream in streams]
        return transitions.to(self.device, torch.stack(samples))
