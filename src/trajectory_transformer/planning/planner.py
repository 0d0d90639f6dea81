"""The planner: a search over a model's tokens, with its decoder, discretiser and settings."""

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..building import PACKAGE
from ..configuration import PlannerConfig, require
from ..cuda_graph import cuda_graph
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..model.gpt import TrajectoryTransformer
from . import native
from .beam_search import SearchResult, beam_search, require_finite_scores
from .captured_search import CapturedSearch
from .deadline import Deadline
from .decoder import BeamDecoder
from .likelihood_search import likelihood_search
from .objectives import (
    Likelihood,
    Objective,
    PlanningContext,
    Return,
    WeightedSum,
    make_objective,
    record_of,
    require_same_purpose,
)
from .proof import decoding_error, tolerance_of
from .search import SearchProblem, make_search, require_result
from .transformer_decoder import TransformerDecoder
from .trial import try_objective


class BeamPlanner:
    """Makes plans from tokenised prefixes, with a model, its discretiser and the search's settings.

    The weights are prepared for decoding once, at construction: build a new planner after they change. Threads that
    share a planner wait for each other. Copying or unpickling a planner builds a new one from the same parts.

    Args:
        model: trained; it is put into evaluation mode.
        discretizer: the one the model was trained with.
        settings: with ``discount`` set and ``act`` resolved. Their objective and search may be objects.
        environment: the spaces of the model's data, if known.
        fingerprint: of the model's data, if known.
        objective: the one that the settings describe; None: it is built from them.

    Raises:
        UserError: the discretiser belongs to another model, context or horizon do not fit into the model's input, the
            model was trained for another kind of planning, or the objective is not available; or it is not one of this
            package's, and fails on random candidates.
    """

    def __init__(
        self,
        model: TrajectoryTransformer,
        discretizer: Discretizer,
        settings: PlannerConfig,
        environment: EnvironmentSpec | None = None,
        fingerprint: str | None = None,
        objective: Objective | None = None,
    ) -> None:
        require(settings.discount is not None, "planner.discount must be set")
        for what, fitted, expected in (
            ("dimensions", discretizer.transition_dim, model.config.transition_dim),
            ("bins", discretizer.num_bins, model.config.vocab_size),
        ):
            require(
                fitted == expected,
                f"the discretiser has {fitted} {what}, the model {expected}: use the discretiser of its training",
            )
        require(
            settings.act != "auto", "planner.act=auto can be resolved only from a checkpoint; use another planner.act"
        )
        self.objective = make_objective(settings) if objective is None else objective
        require_same_purpose(self.objective, settings.name, model.config.goal_conditioned)
        settings.require_fits(model.config.sequence_length)
        self._own_search = make_search(settings)
        records = {"objective": record_of(settings.objective_spec), "search": record_of(self._own_search)}
        settings = replace(settings, **records)
        self.model, self.discretizer, self.settings = model.eval(), discretizer, settings
        self._data, self._lock = (environment, fingerprint), threading.Lock()
        self.layout, device = model.layout, model.pos_emb.device
        context = PlanningContext(self.layout, discretizer, settings, device, environment, fingerprint)
        self.objective.prepare(context)
        if not type(self.objective).__module__.startswith(f"{PACKAGE}.") or isinstance(self.objective, WeightedSum):
            try_objective(self.objective, context)
        density = isinstance(self.objective, Likelihood) and self.objective.density
        self._log_widths = discretizer.log_widths().to(device) if density else None
        self._decoder = make_decoder(model, settings)
        self._deadline = None if settings.deadline_ms is None else Deadline(settings.deadline_ms)
        self._native_search = None
        in_c = self._own_search is None and type(self.objective) is Return
        if settings.window == "growing" and self._deadline is None and in_c:
            self._native_search = native.make_search(self._decoder, model, settings, discretizer.centers, self._search)
        captured = is_captured(settings, device.type)
        self._captured = CapturedSearch(cuda_graph) if captured else None

    def __reduce__(self) -> tuple[type["BeamPlanner"], tuple[Any, ...]]:
        return BeamPlanner, (self.model, self.discretizer, self.settings, *self._data, self.objective)

    @torch.inference_mode()
    def plan(
        self,
        prefix: Tensor,
        generators: Sequence[torch.Generator],
        share: float = 1.0,
        executed: Tensor | None = None,
    ) -> SearchResult:
        """Find the best plan of each environment.

        Args:
            prefix: (environment, time) tokens: a goal if the model needs one, at most ``settings.context - 1`` whole
                transitions, then the current observation.
            generators: one CPU generator for each environment, which alone determines that environment's draws.
            share: of ``settings.deadline_ms`` that this search may take.
            executed: (environment, action_dim) float32 actions last executed, for the objective, NaN where none; None:
                none in any environment.

        Raises:
            UserError: no prediction of the model is finite in some environment.
        """
        with self._lock:
            if self._deadline is not None:
                self._deadline.start(share)
            uniforms = torch.stack([torch.rand(self._draws, generator=generator) for generator in generators])
            if executed is None:
                executed = torch.full((len(prefix), self.layout.action_dim), torch.nan)
            inputs = prefix, uniforms.to(prefix.device), executed.to(prefix.device)
            found = self._captured(self._find, *inputs) if self._captured else self._find(*inputs)
        require_finite_scores(found.score)
        return found

    @property
    def _draws(self) -> tuple[int, ...]:
        """Shape of the uniform numbers that determine one environment's search."""
        settings = self.settings
        if self._own_search is not None:
            return tuple(self._own_search.draws(settings, self.layout))
        if self.objective.by_token:
            return (0,)
        return settings.horizon, self.layout.transition_dim, settings.n_expand * settings.beam_width

    def _find(self, prefix: Tensor, uniforms: Tensor, executed: Tensor) -> SearchResult:
        decoder, layout, settings, deadline = self._decoder, self.layout, self.settings, self._deadline
        objective, discretizer = self.objective, self.discretizer
        if self._own_search is not None:
            to_use = discretizer.num_bins, objective, self._estimate, discretizer.decode, executed
            problem = SearchProblem(decoder, prefix, uniforms, settings, layout, *to_use)
            return require_result(self._own_search, self._own_search(problem), problem)
        if objective.by_token:
            return likelihood_search(decoder, prefix, layout, settings, deadline, self._log_widths)
        if self._native_search is not None:
            return self._native_search(prefix, uniforms)
        by_objective = objective, discretizer.decode, executed
        return beam_search(decoder, prefix, layout, settings, self._estimate, uniforms, deadline, *by_objective)

    def _search(self, decoder: BeamDecoder, prefix: Tensor, settings: PlannerConfig, uniforms: Tensor) -> SearchResult:
        """Search in Python by reward plus return-to-go: the reference for the kernel's search."""
        return beam_search(decoder, prefix, self.layout, settings, self._estimate, uniforms)

    @property
    def decoding_seconds(self) -> tuple[float, float]:
        """Seconds spent so far in the model and in sampling; the rest of a plan's time is the search itself.

        For a captured search only the time of capturing is known.
        """
        return self._decoder.seconds

    def _estimate(self, probabilities: Tensor) -> Tensor:
        columns = slice(self.layout.reward, self.layout.value + 1)
        if self.settings.percentile == "mean":
            return self.discretizer.expectation(probabilities, columns)
        return self.discretizer.percentile(probabilities, float(self.settings.percentile), columns)


def is_captured(settings: PlannerConfig, device: str) -> bool:
    """True if whole searches are captured: not with a deadline, as a graph cannot read the clock, nor one's own."""
    ours = settings.deadline_ms is None and settings.search is None
    return device == "cuda" and settings.decoder == "auto" and ours


def make_decoder(model: TrajectoryTransformer, settings: PlannerConfig) -> BeamDecoder:
    """The decoder that ``settings.decoder`` names, or the fastest one that computes what the model computes.

    Raises:
        UserError: ``settings`` require the native decoder, which is not available, or not in that precision; or the
            model cannot be decoded token by token.
    """
    sliding = settings.window == "sliding"
    window = settings.context if sliding else (model.config.block_size + 1) // model.config.transition_dim
    kind, on_cpu = settings.decoder, model.pos_emb.device.type == "cpu"
    if settings.precision == "bf16":
        model = copy.deepcopy(model).to(torch.bfloat16)
    if kind == "native" or (kind == "auto" and on_cpu and settings.precision == "32"):
        decoder = native.make_decoder(model, window, sliding, settings)
        if decoder is not None:
            return decoder
    compiled = kind == "compiled" or (
        kind == "auto" and not on_cpu and (settings.deadline_ms is not None or settings.search is not None)
    )
    rows = settings.beam_width * settings.n_expand
    decoder = TransformerDecoder(model, window, sliding, rows, compiled)
    error = decoding_error(decoder, model, window, sliding, rows)
    require(
        error <= tolerance_of(model),
        f"the model cannot be used for planning: its predictions token by token differ from those of one forward pass "
        f"(a logit by {error:.2g} of its size, far more than rounding); in model/gpt.py all attention must go through "
        "memory.attend, and positions must come from memory.positions",
    )
    return decoder
