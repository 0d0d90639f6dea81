"""Typed record of a checkpoint: a trained network with the data, options and spaces needed to use it.

Reading a checkpoint imports and builds nothing that the file names.
"""

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .building import ClassError
from .checkpoint_file import FORMAT, SECTION, read_checkpoint
from .configuration import DataConfig, DiscretizerConfig, PlannerConfig, TrainConfig, current_record, require, validate
from .data.discretizer import Discretizer
from .data.episodes import OfflineData
from .environments.spec import EnvironmentSpec
from .errors import UserError

Network = TypeVar("Network", bound=nn.Module)
Options = TypeVar("Options", DataConfig, DiscretizerConfig, PlannerConfig)

# Checkpoints written before learners had options record only the kind.
_LEARNERS_BY_KIND = {
    "transformer": "trajectory_transformer.learners.transformer.TransformerLearner",
    "iql": "trajectory_transformer.learners.iql.ImplicitQLearning",
    "ensemble": "trajectory_transformer.learners.ensemble.EnsembleLearner",
}


@dataclass(frozen=True)
class DatasetRecord:
    """The facts about a data set that a checkpoint records."""

    ids: tuple[str, ...]  # ids of the sets that were joined
    fingerprint: str  # SHA-256 of all arrays, in hexadecimal
    returns: Tensor  # (episodes,) float64 undiscounted returns of the behaviour
    reference_scores: tuple[float, float] | None  # (minimum, maximum) return for normalised scores
    reference_source: str  # "dataset", "d4rl" or "none"
    longest_episode: int | None = None  # steps; None in older checkpoints, which do not record it

    @classmethod
    def of(cls, data: OfflineData) -> "DatasetRecord":
        facts = (data.fingerprint, torch.from_numpy(data.returns), data.reference_scores, data.reference_source)
        return cls(tuple(data.dataset_ids), *facts, data.longest_episode)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "DatasetRecord":
        scores, longest = values.get("reference_scores"), values.get("longest_episode")
        record = cls(
            tuple(values["ids"]),
            str(values["fingerprint"]),
            torch.as_tensor(values.get("returns", ())),
            None if scores is None else (float(scores[0]), float(scores[1])),
            str(values.get("reference_source", "none")),
            None if longest is None else int(longest),
        )
        validate("dataset.", record)
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and a tensor, from which :meth:`from_dict` restores the record."""
        scores = self.reference_scores
        return {**vars(self), "ids": list(self.ids), "reference_scores": None if scores is None else list(scores)}


@dataclass(frozen=True)
class TrainingRecord:
    """The data, options and purpose of a trained network."""

    kind: str  # short name of the learner, such as "transformer"
    learner: Mapping[str, Any]  # its _target_ and options, as building.build takes them
    environment: EnvironmentSpec  # the data's spaces, and the environment to act in
    dataset: DatasetRecord
    data: DataConfig  # options by which the data were cut into windows
    seed: int
    planner: PlannerConfig | None = None  # of a learner that plans
    discretizer: Discretizer | None = None  # of a learner that models tokens
    value_r2: float | None = None  # explained share of the variance of the data's returns-to-go, when last validated
    sample_logits: Tensor | None = None  # what the transformer computed for fixed tokens when it was saved

    @classmethod
    def of(
        cls, kind: str, config: TrainConfig, data: OfflineData, discretizer: Discretizer | None = None
    ) -> "TrainingRecord":
        """Return the record of a run; a discretiser marks a run whose agent plans."""
        planner = None if discretizer is None else config.planner
        about = (DatasetRecord.of(data), config.data.resolve_penalty(data.ends_have_rewards), config.seed)
        return cls(kind, config.learner, data.environment, *about, planner, discretizer)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values and tensors: the checkpoint's section of this project, without the network's sizes."""
        parts = {"format": FORMAT, **vars(self), "learner": dict(self.learner), "data": asdict(self.data)}
        parts |= {name: parts[name].to_dict() for name in ("environment", "dataset")}
        parts["planner"] = None if self.planner is None else asdict(self.planner)
        parts["discretizer"] = None if self.discretizer is None else self.discretizer.to_dict()
        return {name: part for name, part in parts.items() if part is not None}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "TrainingRecord":
        """Restore a record of this or an earlier version; raises KeyError, TypeError or ValueError for other values."""
        kind = str(values.get("kind", "transformer"))
        named = {"_target_": _LEARNERS_BY_KIND[kind]} if kind in _LEARNERS_BY_KIND else None
        learner = named if values.get("learner") is None else values["learner"]
        if not isinstance(learner, Mapping):
            raise ValueError(f"it holds '{kind}', which this version does not know")
        data, planner, discretizer = dict(values["data"]), values.get("planner"), values.get("discretizer")
        data["discretizer"] = _options(DiscretizerConfig, data.get("discretizer", {}), "data.discretizer")
        value_r2 = values.get("value_r2")
        record = cls(
            kind,
            learner,
            _environment(values["environment"]),
            DatasetRecord.from_dict(values["dataset"]),
            _options(DataConfig, data, "data"),
            int(values.get("seed", 0)),
            None if planner is None else _options(PlannerConfig, current_record(planner), "planner"),
            None if discretizer is None else Discretizer.from_dict(discretizer),
            None if isinstance(value_r2, float) and not math.isfinite(value_r2) else value_r2,
            values.get("sample_logits"),
        )
        validate("", record)
        return record


def _options(cls: type[Options], values: Mapping[str, Any], place: str) -> Options:
    """Return recorded options, or raise ValueError for one that this version does not have."""
    unknown = sorted(values.keys() - {option.name for option in fields(cls)})
    if unknown:
        raise ValueError(f"this version has no option {place}.{unknown[0]}; the file is probably of a newer one")
    return cls(**values)


def _environment(values: Mapping[str, Any]) -> EnvironmentSpec:
    """Return the environment of a record, with the types of its fields and the number of its bounds checked."""
    spec = EnvironmentSpec.from_dict(values)
    validate("environment.", spec)
    for space in (spec.observation, spec.action):
        for leaf in space.leaves:
            validate("environment.space.", leaf)
            sizes = {math.prod(leaf.shape), len(leaf.low), len(leaf.high)}
            ascending = all(low <= high for low, high in zip(leaf.low, leaf.high, strict=False))
            if leaf.kind not in ("box", "discrete") or len(sizes) != 1 or not ascending:
                raise ValueError(f"the space {'.'.join(leaf.path) or leaf.kind} has bounds that its shape does not fit")
    chosen = spec.observation_indices
    if chosen is not None and not all(0 <= index < spec.observation.size for index in chosen):
        raise ValueError(f"observation_indices {chosen} are not among {spec.observation.size} dimensions")
    return spec


@contextlib.contextmanager
def fitting_parts(name: str) -> Iterator[None]:
    """Convert errors raised while a checkpoint's contents are assembled into a UserError that names its file."""
    try:
        yield
    except ClassError as error:  # nothing is wrong with the file
        raise UserError(f"checkpoint '{name}': {error}") from None
    except (LookupError, TypeError, RuntimeError, ValueError, AttributeError, OverflowError, UserError) as error:
        raise UserError(f"the contents of checkpoint '{name}' do not fit together: {error}") from error


def require_shapes(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Raise ValueError for the first tensor of ``expected`` that ``weights`` lack or hold in another shape."""
    for name, tensor in expected.items():
        if name not in weights:
            raise ValueError(f"the tensor '{name}' is missing")
        if weights[name].shape != tensor.shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise ValueError(f"the tensor '{name}' has shape {found}, expected {wanted}")


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a ``.ckpt`` file."""

    name: str  # path of the file, for messages
    training: TrainingRecord
    model: Mapping[str, Any]  # plain values from which, with the spaces, the network is rebuilt
    state_dict: Mapping[str, Tensor]  # of the training module, on the CPU

    @classmethod
    def read(cls, path: str | Path) -> "Checkpoint":
        """Read and verify a checkpoint file.

        Raises:
            UserError: it is missing, damaged, not a checkpoint of this project, or its parts do not fit together.
        """
        return cls.from_contents(read_checkpoint(path), str(path))

    @classmethod
    def from_contents(cls, contents: Mapping[str, Any], name: str = "the checkpoint") -> "Checkpoint":
        """Return the record of what :func:`~.checkpoint_file.read_checkpoint` returned; raises as :meth:`read`."""
        section = contents[SECTION]
        with fitting_parts(name):
            record, model = TrainingRecord.from_dict(section), section["model"]
            if record.kind == "transformer":
                model = {"members": 1, **model}  # older files do not record it
            checkpoint = cls(name, record, model, contents["state_dict"])
            validate("", checkpoint)
        return checkpoint

    def weights(self, part: str) -> dict[str, Tensor]:
        """Return the ``state_dict`` of one attribute of the training module, such as "model"."""
        prefix = f"{part}."
        return {k.removeprefix(prefix): value for k, value in self.state_dict.items() if k.startswith(prefix)}

    def fingerprint(self) -> str:
        """Return the SHA-256 of all weights and their names, in hexadecimal: equal for copies of a trained network."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.state_dict.items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)};".encode())
            digest.update(weight.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def build(
        self, part: str, make: Callable[[], Network], outline: Callable[[], Mapping[str, Tensor]] | None = None
    ) -> Network:
        """Build a network by ``make`` and load the weights of an attribute of the training module into it.

        The network is built only after the weights are found to have the sizes that the file states, so a file with
        wrong sizes cannot make it allocate memory.

        Args:
            part: name of the attribute, such as "model".
            make: builds the network.
            outline: returns tensors of the expected shapes, on the meta device; None takes those of ``make``.

        Raises:
            UserError: the weights do not fit.
        """
        weights = self.weights(part)
        with fitting_parts(self.name):
            with torch.device("meta"):
                expected = make().state_dict() if outline is None else outline()
            try:
                require_shapes(expected, weights)
            except ValueError as error:
                raise ValueError(f"{error}; if the code was changed since it was saved, restore that code") from None
            network = make()
            network.load_state_dict(weights)
        return network

    def require_kind(self, kind: str) -> None:
        """Raise UserError for a checkpoint of another learner."""
        require(
            self.training.kind == kind,
            f"checkpoint '{self.name}' was trained with learner={self.training.kind}, and one of learner={kind} is "
            "needed here",
        )

    def require_same_data(self, option: str, environment: EnvironmentSpec, fingerprint: str) -> None:
        """Raise UserError, naming ``option``, if the network's dimensions or data differ from the model's."""
        ours = self.training.environment
        for kind in ("observation", "action"):
            other, own = getattr(ours, f"{kind}_dim"), getattr(environment, f"{kind}_dim")
            require(
                other == own,
                f"{option} has {other} {kind} dimensions, the checkpoint's model {own}; train both on one data set",
            )
        require(
            self.training.dataset.fingerprint == fingerprint,
            f"{option} was trained on other data ({', '.join(self.training.dataset.ids)}) than the checkpoint's "
            "model; train both on one data set",
        )
        require(
            ours.observation_indices == environment.observation_indices,
            f"{option} sees the observation's dimensions {ours.observation_indices}, the checkpoint's model "
            f"{environment.observation_indices}; train both with the same data.observation_indices",
        )

    def require_same_split(self, option: str, data: DataConfig, seed: int) -> None:
        """Raise UserError, naming ``option``, if the network was trained with another set of held-out episodes."""
        ours = self.training
        for name, other, own in (
            ("seed", ours.seed, seed),
            ("data.validation_fraction", ours.data.validation_fraction, data.validation_fraction),
        ):
            require(
                other == own,
                f"{option} was trained with {name}={other}, the checkpoint's model with {own}: it may have seen "
                "episodes that were held out from the model; train both alike",
            )
