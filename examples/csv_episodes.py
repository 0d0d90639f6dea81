"""A source of episodes of your own: CSV files.

``PYTHONPATH=examples python train.py --config-dir examples/configs data=csv_episodes data.source.path=DIR``
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajectory_transformer.data.episode_source import EpisodeSource, StoredEpisode, StoredSet
from trajectory_transformer.environments.make import environment_spec
from trajectory_transformer.errors import UserError


@dataclass
class CsvEpisodes(EpisodeSource):
    """Reads one CSV file per episode, with observation, action and reward in each row.

    Of the last row only the observation is used.
    """

    path: str
    env_id: str

    @property
    def name(self):
        return Path(self.path).name

    def require_available(self):
        if not any(Path(self.path).glob("*.csv")):
            raise UserError(f"data.source.path='{self.path}' has no .csv file; write one for each episode")

    def read(self, progress):
        environment = environment_spec(self.env_id)
        files = sorted(Path(self.path).glob("*.csv"))
        return StoredSet([self._episode(file, environment) for file in files], len(files), environment)

    def _episode(self, file, environment):
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
        size = environment.observation_dim
        observations, actions, rewards = rows[:, :size], rows[:-1, size:-1], rows[:-1, -1]
        return StoredEpisode(str(file), observations, actions, rewards, terminations=False)
