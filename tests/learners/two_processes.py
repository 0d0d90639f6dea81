"""A script that trains a learner for six updates, by two processes or by one: ``FOLDER NAME PROCESSES``."""

import sys
from pathlib import Path

import torch

from trajectory_transformer.configuration import OptimizerConfig
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.training import datamodule as datamodule_file
from trajectory_transformer.training.fit import fit

from ..specs import spec_of
from ..training.small_run import Record, small_config, small_data

LEARNERS = {
    "awr": BehaviorCloning(hidden_layers=1, hidden_width=8, inverse_temperature=3.0),
    "dt": ReturnConditioned(context=3, n_layer=1, n_embd=8, dropout=0.0),
    "rebrac": RegularizedActorCritic(hidden_layers=1, hidden_width=8),
}


def main(directory: Path, name: str, processes: int) -> None:
    torch.set_num_threads(1)
    datamodule_file.load_offline_data = lambda _: small_data()
    hardware = {"devices": 2, "strategy": "ddp"} if processes == 2 else {}
    config = small_config(max_steps=6, **hardware)
    config.data.batch_size, config.optimizer = 8, OptimizerConfig(learning_rate=1e-2)
    config.learner, learner = spec_of(LEARNERS[name]), LEARNERS[name]
    fit(learner, config, directory, learner.make_datamodule(config), [], [Record(directory)], False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
