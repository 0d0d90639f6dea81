"""Plans from tokens: a model, its discretiser and the search's settings."""

import copy
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..configuration import PlannerConfig, require
from ..data.discretizer import Discretizer
from ..environments.spec import EnvironmentSpec
from ..model.gpt import TrajectoryTransformer
from . import native
from .beam_search import SearchResult, beam_search, require_finite_scores
from .captured_search import CapturedSearch, cuda_graph
from .deadline import Deadline
from .decoder import BeamDecoder
from .likelihood_search import likelihood_search
from .objectives import Likelihood, Objective, PlanningContext, Return, make_objective, record_of, require_same_purpose
from .proof import require_same_logits
from .transformer_decoder import TransformerDecoder


class BeamPlanner:
    """Plans from tokenised prefixes: a model, its discretiser and the search's settings.

    The weights are laid out for decoding here, once: build a new planner after they change. Threads that share a
    planner wait for each other. A copy, and what is unpickled, in another process or not, is built anew from its parts.

    Args:
        model: trained; put into evaluation mode.
        discretizer: the one the model was trained with.
        settings: with ``discount`` set and ``act`` decided. Their objective may be an object.
        environment: the spaces of the model's data, where they are known.
        fingerprint: of the model's data, where it is known.
        objective: which the settings describe; None: it is built from them.

    Raises:
        UserError: the discretiser is another model's, context or horizon exceed what the model can see, the model was
            trained for another kind of planning, or the objective is not available.
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
            require(fitted == expected, f"the discretiser has {fitted} {what}, the model {expected}: not its own")
        require(settings.act != "auto", "planner.act=auto needs a checkpoint's record; give best, elite or mean")
        self.objective = make_objective(settings) if objective is None else objective
        require_same_purpose(self.objective, settings.name, model.config.goal_conditioned)
        settings.require_fits(model.config.sequence_length)
        settings = replace(settings, objective=record_of(settings.objective_spec))
        self.model, self.discretizer, self.settings = model.eval(), discretizer, settings
        self._data, self._lock = (environment, fingerprint), threading.Lock()
        self.layout, device = model.layout, model.pos_emb.device
        self.objective.prepare(PlanningContext(self.layout, discretizer, settings, device, environment, fingerprint))
        density = isinstance(self.objective, Likelihood) and self.objective.density
        self._log_widths = discretizer.log_widths().to(device) if density else None
        self._decoder = make_decoder(model, settings)
        self._deadline = None if settings.deadline_ms is None else Deadline(settings.deadline_ms)
        self._native_search = None
        if settings.window == "growing" and self._deadline is None and type(self.objective) is Return:
            self._native_search = native.make_search(self._decoder, model, settings, discretizer.centers, self._search)
        captured = is_captured(settings, device.type)
        self._captured = CapturedSearch(cuda_graph) if captured else None

    def __reduce__(self) -> tuple[type["BeamPlanner"], tuple[Any, ...]]:
        return BeamPlanner, (self.model, self.discretizer, self.settings, *self._data, self.objective)

    @torch.inference_mode()
    def plan(self, prefix: Tensor, generators: Sequence[torch.Generator], share: float = 1.0) -> SearchResult:
        """Search from each environment's past.

        Args:
            prefix: (environment, time) tokens: a goal where the model needs one, at most ``settings.context - 1`` whole
                transitions, then the current observation.
            generators: one CPU generator for each environment; it alone decides that environment's draws.
            share: of ``settings.deadline_ms`` that this search may take.

        Raises:
            UserError: all that the model predicts in some environment is not finite.
        """
        with self._lock:
            if self._deadline is not None:
                self._deadline.start(share)
            uniforms = torch.stack([torch.rand(self._draws, generator=generator) for generator in generators])
            uniforms, captured = uniforms.to(prefix.device), self._captured
            found = captured(self._find, prefix, uniforms) if captured else self._find(prefix, uniforms)
        require_finite_scores(found.score)
        return found

    @property
    def _draws(self) -> tuple[int, ...]:
        """Shape of the uniform numbers that decide one environment's search."""
        settings = self.settings
        if self.objective.by_token:
            return (0,)
        return settings.horizon, self.layout.transition_dim, settings.n_expand * settings.beam_width

    def _find(self, prefix: Tensor, uniforms: Tensor) -> SearchResult:
        decoder, layout, settings, deadline = self._decoder, self.layout, self.settings, self._deadline
        objective, discretizer = self.objective, self.discretizer
        if objective.by_token:
            return likelihood_search(decoder, prefix, layout, settings, deadline, self._log_widths)
        if self._native_search is not None:
            return self._native_search(prefix, uniforms)
        return beam_search(
            decoder, prefix, layout, settings, self._estimate, uniforms, deadline, objective, discretizer.decode
        )

    def _search(self, decoder: BeamDecoder, prefix: Tensor, settings: PlannerConfig, uniforms: Tensor) -> SearchResult:
        """In Python, for reward plus return-to-go: what the kernel's search is held to."""
        return beam_search(decoder, prefix, self.layout, settings, self._estimate, uniforms)

    @property
    def decoding_seconds(self) -> tuple[float, float]:
        """Spent so far in the model and in sampling; the rest of a plan's time is the search's own.

        Of a search that is captured only what capturing took is known.
        """
        return self._decoder.seconds

    def _estimate(self, probabilities: Tensor) -> Tensor:
        columns = slice(self.layout.reward, self.layout.value + 1)
        if self.settings.percentile == "mean":
            return self.discretizer.expectation(probabilities, columns)
        return self.discretizer.percentile(probabilities, float(self.settings.percentile), columns)


def is_captured(settings: PlannerConfig, device: str) -> bool:
    """True if whole searches are captured. One with a deadline looks at the clock, which a graph cannot."""
    return device == "cuda" and settings.decoder == "auto" and settings.deadline_ms is None


def make_decoder(model: TrajectoryTransformer, settings: PlannerConfig) -> BeamDecoder:
    """The decoder that ``settings.decoder`` names, or the fastest that follows the model.

    Raises:
        UserError: the native decoder was asked for and is not available, or not in that precision; or the model
            cannot be decoded token by token.
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
    compiled = kind == "compiled" or (kind == "auto" and not on_cpu and settings.deadline_ms is not None)
    rows = settings.beam_width * settings.n_expand
    decoder = TransformerDecoder(model, window, sliding, rows, compiled)
    require_same_logits(decoder, model, window, sliding, rows)
    return decoder
