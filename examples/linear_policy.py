"""A learner of your own: a policy that is linear in the observation.

``PYTHONPATH=examples python train.py --config-dir examples/configs learner=linear_policy``
"""

from dataclasses import dataclass

from torch import nn

from trajectory_transformer.checkpoint import TrainingRecord
from trajectory_transformer.learners.policy_agent import PolicyAgent
from trajectory_transformer.learners.transition_datamodule import TransitionDataModule
from trajectory_transformer.learners.transition_module import TransitionModule
from trajectory_transformer.training.learner import Learner


@dataclass
class LinearPolicy(Learner):
    kind = "linear_policy"
    bias: bool = True  # an option: learner.bias=false

    def make_datamodule(self, config):
        return TransitionDataModule(config.data, config.seed)

    def make_module(self, config, datamodule, plan):
        record = TrainingRecord.of(self.kind, config, datamodule.data)
        return Regression(self.make_network(record.environment), config.optimizer, plan, record)

    def make_agent(self, checkpoint, device, planner, allow=()):
        network = self.make_network(checkpoint.training.environment)
        network.load_state_dict(checkpoint.weights("network"))
        return PolicyAgent(network, checkpoint.training.environment, device, self.kind)

    def make_network(self, environment):
        return nn.Linear(environment.observation_dim, environment.action_dim, bias=self.bias)


class Regression(TransitionModule):
    logged = ("loss",)

    def losses(self, batch):
        loss = (self.network(batch.observations) - batch.actions).square().mean()
        return loss, {"loss": loss}
