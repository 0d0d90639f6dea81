"""Receding-horizon control: an agent that plans from observations and takes the first actions of the best plans."""

import contextlib
import copy
import logging
import threading
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import Checkpoint
from ..configuration import PlannerConfig, require, require_choice
from ..data.goals import goal_transitions
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from ..model.action_improvement import ActionImprovement
from .beam_search import SearchResult, actions_to_average, effective_share, return_weights
from .plan import Plan, PlanCounts
from .planner import BeamPlanner
from .trained_transformer import TrainedTransformer, planner_settings

Array = TypeVar("Array", np.ndarray, Tensor)


class Agent:
    """A planning agent for a batch of environments; each has its own past, plan and random numbers.

    Copies and pickles include all of that. Threads that share an agent wait for each other at every call and share the
    environments' pasts: give each thread its own agent, such as a ``copy.deepcopy``.

    Args:
        planner: makes the plans.
        environment: the spaces of observations and actions; its ``observations`` flattens raw observations, and its
            ``action.to_environment`` converts actions to those of the environment.
        improvements: on the CPU; their mean corrects planned actions, ``planner.settings.improvement`` times.
        others: planners of an ensemble's other models, with the same settings. Where actions are averaged without a
            deadline, the action is the mean of all planners' actions; elsewhere the others are not used.

    Raises:
        UserError: the environment's dimensions differ from the model's.
    """

    planned: np.ndarray  # (environment,) bool: the last call of act made a new plan
    counts: PlanCounts  # plans since the last reset, and those that a deadline changed

    def __init__(
        self,
        planner: BeamPlanner,
        environment: EnvironmentSpec,
        improvements: Sequence[ActionImprovement] = (),
        others: Sequence[BeamPlanner] = (),
    ) -> None:
        self._planner, self.environment, self._improvements = planner, environment, tuple(improvements)
        self._others = tuple(others) if planner.settings.uses_members else ()
        self._layout = planner.layout
        self._discretizer = copy.deepcopy(planner.discretizer).cpu()  # for so few values a GPU would be slower
        given = (environment.observation_dim, environment.action_dim)
        expected = (self._layout.observation_dim, self._layout.action_dim)
        require(
            given == expected,
            f"the environment has {given[0]} observation and {given[1]} action dimensions, the model {expected[0]} and "
            f"{expected[1]}",
        )
        self._device = next(planner.model.parameters()).device
        self._goal_dimensions = environment.goal_dimensions if planner.model.config.goal_conditioned else ()
        self._lock = threading.Lock()
        self.reset(1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_lock", "_searches")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock(), _searches={})

    @classmethod
    def from_checkpoint(
        cls, path: str | Path, device: str = "cpu", allow: Sequence[str] = (), **planner_overrides: Any
    ) -> "Agent":
        """The agent of a training run's checkpoint.

        Args:
            path: a ``.ckpt`` file.
            device: the torch device that computes.
            allow: packages besides this one whose classes the file may name, such as those of its objective and blocks.
            planner_overrides: :class:`PlannerConfig` fields that replace the recorded ones. ``objective`` is an
                :class:`~.objectives.Objective`, or a mapping that describes one.

        Raises:
            UserError: the file is not a valid checkpoint, an override is unknown or has no effect, the plan does not
                fit into the model's input, or the objective is not available or must not be imported.
        """
        agent = cls.of(Checkpoint.read(path), device, allow, **planner_overrides)
        agent.settings.require_used(planner_overrides, agent._planner.objective.by_token)
        return agent

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, device: str = "cpu", allow: Sequence[str] = (), **planner_overrides: Any
    ) -> "Agent":
        """The same as :meth:`from_checkpoint`, from a checkpoint already read; options may be without effect."""
        trained = TrainedTransformer.of(checkpoint, device, allow)
        settings, objective = planner_settings(checkpoint, planner_overrides, allow)
        fingerprint = checkpoint.training.dataset.fingerprint
        models = (trained.model, *(trained.others if settings.uses_members else ()))
        about = trained.discretizer, settings, trained.environment, fingerprint, objective
        planner = BeamPlanner(models[0], *about)
        with _without_warnings():  # which would be those of the first
            others = [BeamPlanner(model, *about) for model in models[1:]]
        return cls(planner, trained.environment, trained.improvements, others)

    @property
    def settings(self) -> PlannerConfig:
        """The planner's settings."""
        return self._planner.settings

    @property
    def needs_goal(self) -> bool:
        """True if a goal must be set with :meth:`aim`."""
        return self._planner.objective.needs_goal

    @property
    def imitates(self) -> bool:
        """True if the agent imitates its data."""
        return self._planner.objective.imitates

    def reset(self, num_envs: int, seeds: Sequence[int] | None = None, autoreset: Enum | str | None = None) -> None:
        """Forget everything and begin ``num_envs`` episodes.

        Args:
            num_envs: number of environments, at least 1.
            seeds: one random seed for each environment; None: 0, 1, …
            autoreset: the vector environment's autoreset mode, as Gymnasium names it:
                ``envs.metadata["autoreset_mode"]``, or its value.

                - ``NextStep``, the default of ``gymnasium.make_vec``: the step after an episode's end ignores the
                  action and returns the first observation of a new episode. For that step :meth:`act` makes no plan
                  and returns 0, and :meth:`observe` records nothing.
                - ``SameStep``: the step that ends an episode returns the first observation of the next one.
                - ``Disabled``: the caller resets the environment before the next :meth:`act`.
                - None: unknown. The first transition after an episode's end may not be a real one, so it is not
                  recorded, and its plan is not followed further, unless :meth:`begin_episode` was called.

        Raises:
            UserError: the number of seeds differs from ``num_envs``, or the mode is unknown.
        """
        seeds = range(num_envs) if seeds is None else seeds
        require(len(seeds) == num_envs, f"{len(seeds)} seeds for {num_envs} environments")
        self._autoreset = autoreset.value if isinstance(autoreset, Enum) else autoreset
        if self._autoreset is not None:
            require_choice("autoreset", self._autoreset, ("NextStep", "SameStep", "Disabled"))
        self._ended = np.zeros(num_envs, dtype=bool)  # the next step may only reset the environment
        self._resting = np.zeros(num_envs, dtype=bool)  # the present step may only reset the environment
        past, width, horizon = self.settings.context - 1, self._layout.transition_dim, self.settings.horizon
        self._past = torch.zeros(num_envs, past, width, dtype=torch.int64)
        self._past_length = np.zeros(num_envs, dtype=np.int64)
        # The last action of each episode, also without a past (context=1); NaN before the first.
        self._executed = torch.full((num_envs, self._layout.action_dim), torch.nan)
        self._plan_age = np.zeros(num_envs, dtype=np.int64)
        self._plan_length = np.zeros(num_envs, dtype=np.int64)  # transitions
        self.planned = np.zeros(num_envs, dtype=bool)
        self.counts = PlanCounts()
        self._plan_tokens = torch.zeros(num_envs, horizon, width, dtype=torch.int64)
        self._plan_actions = torch.zeros(num_envs, horizon, self._layout.action_dim)  # real values
        self._plan_returns = torch.full((num_envs, horizon + 2), torch.nan)
        self._searches: dict[int, tuple[SearchResult, int]] = {}  # environment -> its last search, and its row therein
        self._observation_tokens = torch.zeros(num_envs, self._layout.observation_dim, dtype=torch.int64)
        self._active = np.zeros(num_envs, dtype=bool)
        self._goals = torch.zeros(num_envs, width if self._goal_dimensions else 0, dtype=torch.int64)
        self._aimed = np.zeros(num_envs, dtype=bool)
        self._generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]

    def begin_episode(self, env_index: int, seed: int) -> None:
        """Forget the past and plan of one environment, and seed its random numbers."""
        self._past_length[env_index] = self._plan_age[env_index] = 0
        self._executed[env_index] = torch.nan
        self._aimed[env_index] = self._ended[env_index] = False
        self._generators[env_index].manual_seed(int(seed))

    def aim(self, goals: Array) -> None:
        """Set the goal of each environment's plans from now on; required before :meth:`act` if :attr:`needs_goal`.

        Args:
            goals: (environment, goal_dim) real values of ``environment.goal_dimensions``, such as a maze's coordinates.

        Raises:
            UserError: the planner takes no goals, the shape is wrong, or a goal is not finite or lies outside the
                range of the data by more than a twentieth of that range.
        """
        dimensions = list(self._goal_dimensions)
        require(len(dimensions) > 0, f"planner={self.settings.name} takes no goals; train with experiment=goal_…")
        values = torch.as_tensor(goals, dtype=torch.float32).cpu()
        expected = (len(self._generators), len(dimensions))
        require(tuple(values.shape) == expected, f"goals have shape {tuple(values.shape)}, expected {expected}")
        edges = self._discretizer.edges[dimensions]
        low, high = edges[:, 0], edges[:, -1]
        margin = 0.05 * (high - low)
        inside = ((values >= low - margin) & (values <= high + margin)).all(dim=1)  # False for NaN
        for row in (~inside).nonzero().flatten().tolist():
            raise UserError(
                f"the goal {_numbers(values[row])} of environment {row} lies outside the map: the data range from "
                f"{_numbers(low)} to {_numbers(high)}"
            )
        self._goals = goal_transitions(values, dimensions, self._layout, self._discretizer)
        self._aimed[:] = True

    def act(self, observations: Array, active: np.ndarray | None = None) -> Array:
        """The next action of each environment.

        Args:
            observations: (environment, observation_dim) real values; those outside the fitted range are clipped to it.
            active: (environment,) bool; no plans are made for rows that are False. None: all are active.

        Returns:
            (environment, action_dim) float32, as an array or tensor like ``observations``; 0 where not active.

        Raises:
            UserError: the shape is wrong, an active row is not finite, or it has no goal and the planner needs one.
        """
        with self._lock:
            return self._act(observations, active)

    def _act(self, observations: Array, active: np.ndarray | None) -> Array:
        kind = type(observations).__name__
        require(isinstance(observations, (np.ndarray, Tensor)), f"observations are a {kind}, not an array or a tensor")
        values = torch.as_tensor(observations, dtype=torch.float32).cpu()
        expected = (len(self._generators), self._layout.observation_dim)
        remedy = f": call reset(num_envs={len(values)}) first" if values.shape[1:] == expected[1:] else ""
        require(
            tuple(values.shape) == expected,
            f"observations have shape {tuple(values.shape)}, expected {expected}{remedy}",
        )
        given = np.ones(expected[0], dtype=bool) if active is None else np.asarray(active, dtype=bool)
        self._resting = given & self._ended
        self._active = given & ~self._resting if self._autoreset == "NextStep" else given
        bad = self._active & ~torch.isfinite(values).all(dim=1).numpy()
        require(
            not bad.any(), f"the observation of environment {np.flatnonzero(bad).tolist()} has NaN or infinite values"
        )
        aimless = self._active & ~self._aimed & bool(self._goal_dimensions)
        require(not aimless.any(), f"environment {np.flatnonzero(aimless).tolist()} has no goal: call aim before act")
        rows = torch.from_numpy(np.flatnonzero(self._active))
        self._observation_tokens[rows] = self._discretizer.encode(values[rows], self._layout.observation)
        due = self._active & ((self._plan_age % self.settings.plan_freq == 0) | (self._plan_age >= self._plan_length))
        self.planned = due
        for length in np.unique(self._past_length[due]):
            group = due & (self._past_length == length)
            self._replan(np.flatnonzero(group), int(length), share=float(group.sum() / due.sum()))
        actions = torch.zeros(expected[0], self._layout.action_dim)
        actions[rows] = self._plan_actions[rows, torch.from_numpy(self._plan_age)[rows]]
        if isinstance(observations, np.ndarray):
            return actions.numpy()
        return actions.to(observations.device)

    def _replan(self, rows: np.ndarray, past_length: int, share: float) -> None:
        """Make plans for environments with pasts of equal length, in that share of the deadline's time."""
        index = torch.from_numpy(rows)
        past = self._past[index, :past_length].flatten(1)
        prefix = torch.cat([self._goals[index], past, self._observation_tokens[index]], dim=1)
        generators = [self._generators[row] for row in rows]
        request = prefix.to(self._device), generators, share, self._executed[index]
        found, *of_others = (planner.plan(*request) for planner in (self._planner, *self._others))
        length, horizon, tokens = found.tokens.shape[1], self.settings.horizon, found.tokens.cpu()
        self._plan_tokens[index, :length] = tokens
        self._plan_actions[index, :length] = self._improved(*self._actions([found, *of_others]), tokens)
        self._plan_returns[index] = torch.nan
        self._plan_returns[index, :length] = found.rewards.cpu()
        self._plan_returns[index, horizon:] = torch.stack([found.value, found.score], dim=1).cpu()
        self._plan_age[rows], self._plan_length[rows] = 0, length
        self._searches |= {int(row): (found, place) for place, row in enumerate(rows)}
        self.counts = PlanCounts(
            self.counts.plans + len(rows),
            self.counts.shortened + len(rows) * (length < horizon),
            self.counts.narrowed + len(rows) * (found.beam_width < self.settings.beam_width),
            self.counts.late + len(rows) * found.late,
        )

    def _actions(self, searches: Sequence[SearchResult]) -> tuple[Tensor, Tensor]:
        """Actions to take, as real values, chosen as ``settings.act`` says; and the effective share of the candidates.

        An action counts once for each sequence that has it, with that sequence's weight; all searches of an ensemble
        count the same. Indices of a Discrete space are not averaged: that of the largest weight is taken; of equal
        ones, that of the better sequence, of the first search. A search of the user's own chooses an action itself; of
        a Discrete space, that found with the first model is taken.

        The actions are (environment, horizon, action_dim), the shares (environment, horizon), 1 for act=best.
        """
        columns = self._layout.action
        discrete = self.environment.action.leaves[0].kind == "discrete"
        if self.settings.act == "best" or self.settings.search is not None:
            chosen = [
                self._discretizer.decode(found.tokens[:, :, columns].cpu(), columns)
                if found.actions is None
                else found.actions.cpu()
                for found in (searches[:1] if discrete else searches)
            ]
            return torch.stack(chosen).mean(dim=0), torch.ones(chosen[0].shape[:2])
        candidates = [self._candidates(found) for found in searches]
        shares = torch.stack([effective_share(weights) for _, weights in candidates]).mean(dim=0)
        if discrete:
            tokens = torch.cat([tokens for tokens, _ in candidates], dim=1)
            weights = torch.cat([w * (w.shape[1] / w.sum(dim=1, keepdim=True)) for _, w in candidates], dim=1)
            same = (tokens.unsqueeze(1) == tokens.unsqueeze(2)).all(dim=-1)
            times = (same * weights.unsqueeze(2)).sum(dim=1)  # (environment, sequences, horizon)
            places = torch.arange(tokens.shape[1], 0, -1).unsqueeze(1)
            first = ((times == times.amax(dim=1, keepdim=True)) * places).argmax(dim=1)
            first = first[:, None, :, None].expand(-1, -1, -1, tokens.shape[3])
            return self._discretizer.decode(tokens.gather(1, first).squeeze(1), columns), shares
        means = [
            (self._discretizer.decode(tokens, columns) * weights.unsqueeze(3)).sum(dim=1)
            / weights.sum(dim=1).unsqueeze(2)
            for tokens, weights in candidates
        ]
        return torch.stack(means).mean(dim=0), shares  # Differs from the paper, which has a single model.

    def _candidates(self, found: SearchResult) -> tuple[Tensor, Tensor]:
        """Action tokens (environment, sequence, horizon, action_dim) to average, and weights without the last axis."""
        settings = self.settings
        beams = max(1, round(settings.elite_share * found.beam_width)) if settings.act == "elite" else None
        tokens = actions_to_average(found.steps, self._layout.action_dim, beams).cpu()
        if settings.act != "conditioned":
            return tokens, torch.ones(tokens.shape[:3])
        assert settings.discount is not None
        centers = self._discretizer.centers[self._layout.value].to(self._device)
        highest = settings.top_share, settings.elite_share
        return tokens, return_weights(found.steps, centers, settings.discount, *highest).cpu()

    @torch.inference_mode()
    def _improved(self, actions: Tensor, shares: Tensor, tokens: Tensor) -> Tensor:
        """Planned actions (environment, horizon, action_dim) plus their improvement, within the range of the data's.

        It is that in the observations of the best sequences, ``tokens`` (environment, horizon, transition_dim), times
        the effective ``shares`` (environment, horizon): the fewer candidates the weights left, the more they have
        improved on the mean action already.
        """
        layout, decode = self._layout, self._discretizer
        if not self._improvements or not self.settings.improvement:
            return actions
        observations = decode.decode(tokens[:, :, layout.observation], layout.observation)
        edges = decode.edges[layout.action]
        differences = [improvement(observations, actions) for improvement in self._improvements]
        difference = shares.unsqueeze(2) * torch.stack(differences).mean(dim=0)
        return (actions + self.settings.improvement * difference).clamp(edges[:, 0], edges[:, -1])

    def observe(self, actions: Array, rewards: Array, done: Array) -> None:
        """Record the last transition of the active environments.

        Args:
            actions: (environment, action_dim) actions taken.
            rewards: (environment,) rewards received.
            done: (environment,) bool, terminated or truncated: the past of that environment is forgotten.

        Raises:
            UserError: a shape is wrong, or a value of an active environment is not finite.
        """
        with self._lock:
            self._observe(actions, rewards, done)

    def _observe(self, actions: Array, rewards: Array, done: Array) -> None:
        rows = torch.from_numpy(np.flatnonzero(self._active & ~self._resting))
        layout, past = self._layout, self.settings.context - 1
        number = len(self._generators)
        given = [torch.as_tensor(values, dtype=torch.float32).cpu() for values in (actions, rewards, done)]
        shapes = (number, layout.action_dim), (number,), (number,)
        for name, values, expected in zip(("actions", "rewards", "done"), given, shapes, strict=True):
            shape = tuple(values.shape)
            require(shape == expected, f"{name} have shape {shape}, expected {expected}: one row for each environment")
            bad = rows[~values.reshape(number, -1)[rows].isfinite().all(dim=1)]
            require(len(bad) == 0, f"the {name} of environment {bad.tolist()} have NaN or infinite values")
        taken, received = given[0][rows], given[1][rows].unsqueeze(1)
        self._plan_age[self._active] += 1
        self._plan_age[self._resting] = 0
        self._ended &= ~self._resting
        self._executed[rows] = taken
        if past:
            transition = torch.cat(
                [
                    self._observation_tokens[rows],
                    self._discretizer.encode(taken, layout.action),
                    self._discretizer.encode(received, slice(layout.reward, layout.reward + 1)),
                    # A placeholder for the return-to-go, which is unknown; the mask hides it from all later positions.
                    torch.full((len(rows), 1), self._discretizer.num_bins - 1),
                ],
                dim=1,
            )
            full = rows[torch.from_numpy(self._past_length)[rows] == past]
            self._past[full] = self._past[full].roll(-1, dims=1)
            self._past_length[full.numpy()] -= 1
            self._past[rows, torch.from_numpy(self._past_length)[rows]] = transition
            self._past_length[rows.numpy()] += 1
        finished = torch.as_tensor(done).cpu().numpy().astype(bool) & self._active
        self._past_length[finished] = self._plan_age[finished] = 0
        self._executed[torch.from_numpy(finished)] = torch.nan
        self._ended |= finished & (self._autoreset in (None, "NextStep"))

    @property
    def last_plan(self) -> Plan:
        """The most recent plan of each environment."""
        layout, returns = self._layout, self._plan_returns.numpy().copy()
        decoded = self._discretizer.decode(self._plan_tokens, slice(0, layout.transition_dim)).numpy()
        decoded[..., layout.action] = self._plan_actions.numpy()
        decoded[np.arange(self.settings.horizon) >= self._plan_length[:, None]] = np.nan
        return Plan(
            observations=decoded[..., layout.observation],
            actions=decoded[..., layout.action],
            rewards=returns[:, :-2],
            value=returns[:, -2],
            score=returns[:, -1],
        )

    def beams(self, env_index: int, number: int, transitions: int | None = None) -> np.ndarray:
        """Predicted observations of the best sequences in one environment's last search, best first.

        Args:
            env_index: index of the environment.
            number: of sequences, at most.
            transitions: return the sequences that the search kept after this many transitions, at least 1; None: after
                the last.

        Returns:
            (beams, transitions - 1, observation_dim) real values, without the present observation. Empty before the
            first plan, in a copy of an agent before its next plan, for plans by likelihood or of one transition, and
            for a search replayed as a CUDA graph.
        """
        dim = self._layout.observation_dim
        if env_index not in self._searches:
            return np.zeros((0, 0, dim), dtype=np.float32)
        search, row = self._searches[env_index]
        tokens = search.states_ahead(row, number, transitions).cpu()
        return self._discretizer.decode(tokens.view(*tokens.shape[:2], dim), self._layout.observation).numpy()


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress the warnings of this folder's code."""
    folder = logging.getLogger(__name__.rpartition(".")[0])
    level = folder.level
    folder.setLevel(logging.ERROR)
    try:
        yield
    finally:
        folder.setLevel(level)


def _numbers(values: Tensor) -> str:
    return "[" + ", ".join(f"{value:.3g}" for value in values.tolist()) + "]"
