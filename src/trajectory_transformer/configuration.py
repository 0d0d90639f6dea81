"""Typed options of the two commands. Each class validates itself; nothing here imports torch, Hydra or Lightning.

The classes are the schemas behind the YAML groups in ``configs/``; the YAML files hold the choices, these hold names,
types, ranges and defaults. They are not frozen because OmegaConf makes a frozen dataclass read-only even for overrides;
nothing mutates them after composition.
"""

import difflib
from dataclasses import dataclass, field
from typing import Any

from .errors import UserError


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a ``value`` that is none of ``choices``, offering the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{name}='{value}' is not one of {', '.join(choices)}{hint}")


def require_probability(name: str, value: float) -> None:
    require(0.0 <= value < 1.0, f"{name}={value} must lie in [0, 1)")


@dataclass
class DiscretizerConfig:
    """How real values become tokens."""

    strategy: str = "quantile"  # quantile: bins of equal mass; uniform: bins of equal width
    num_bins: int = 100  # tokens per dimension, the paper's V

    def __post_init__(self) -> None:
        require_choice("data.discretizer.strategy", self.strategy, ("quantile", "uniform"))
        require(2 <= self.num_bins <= 32766, f"data.discretizer.num_bins={self.num_bins} must lie in [2, 32766]")


@dataclass
class DataConfig:
    """Which data, and how it becomes windows of tokens."""

    dataset_id: Any = "embedded/hopper/mixed-v0"  # a Minari id, or a list of ids to be joined
    download: bool = True  # fetch a set that is neither on disk nor embedded
    observation_indices: list[int] | None = None  # keep these dimensions of the flattened observation; null: all
    discretizer: DiscretizerConfig = field(default_factory=DiscretizerConfig)
    sequence_length: int = 10  # transitions in a training window
    discount: float = 0.99  # of the return-to-go
    termination_penalty: float | None = -100.0  # replaces the reward of a terminating step; null: keep the reward
    validation_fraction: float = 0.1  # of the episodes
    batch_size: int = 256  # windows in an update, over all devices together

    def __post_init__(self) -> None:
        ids = self.dataset_id if isinstance(self.dataset_id, (list, tuple)) else [self.dataset_id]
        require(
            len(ids) > 0 and all(isinstance(i, str) and i for i in ids),
            f"data.dataset_id={self.dataset_id!r} must be a Minari id or a list of ids",
        )
        require(self.sequence_length >= 1, f"data.sequence_length={self.sequence_length} must be at least 1")
        require(0.0 < self.discount <= 1.0, f"data.discount={self.discount} must lie in (0, 1]")
        require(
            0.0 < self.validation_fraction < 1.0,
            f"data.validation_fraction={self.validation_fraction} must lie in (0, 1)",
        )
        require(self.batch_size >= 1, f"data.batch_size={self.batch_size} must be at least 1")
        chosen = self.observation_indices
        require(
            chosen is None or (len(chosen) > 0 and min(chosen) >= 0 and len(set(chosen)) == len(chosen)),
            f"data.observation_indices={chosen} must be distinct indices from 0",
        )

    @property
    def dataset_ids(self) -> list[str]:
        """``dataset_id`` as a list."""
        return list(self.dataset_id) if isinstance(self.dataset_id, (list, tuple)) else [self.dataset_id]


@dataclass
class ModelConfig:
    """Architecture and loss weights, under the reference API's names. Dimensions and vocabulary come from the data."""

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    kaiming_initializer_range: float = 1.0
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "n_embd"):
            require(getattr(self, name) >= 1, f"model.{name}={getattr(self, name)} must be at least 1")
        require(
            self.n_embd % self.n_head == 0,
            f"model.n_embd={self.n_embd} must be divisible by model.n_head={self.n_head}",
        )
        for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
            require_probability(f"model.{name}", getattr(self, name))
        require_choice("model.hidden_act", self.hidden_act, ("gelu", "relu", "selu", "gelu_new"))
        for name in ("layer_norm_eps", "initializer_range", "kaiming_initializer_range"):
            require(getattr(self, name) > 0, f"model.{name}={getattr(self, name)} must be positive")
        for name in ("action_weight", "reward_weight", "value_weight"):
            require(getattr(self, name) >= 0, f"model.{name}={getattr(self, name)} must not be negative")


@dataclass
class OptimizerConfig:
    """AdamW with the GPT schedule, counted in tokens."""

    learning_rate: float = 6e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrix-product weights only
    warmup_tokens: int | None = None  # null: one epoch, at most a tenth of the run
    final_learning_rate_fraction: float = 0.1  # where the cosine ends, at the last step
    gradient_clip_norm: float = 1.0

    def __post_init__(self) -> None:
        require(self.learning_rate > 0, f"optimizer.learning_rate={self.learning_rate} must be positive")
        require_probability("optimizer.beta1", self.beta1)
        require_probability("optimizer.beta2", self.beta2)
        require(self.weight_decay >= 0, f"optimizer.weight_decay={self.weight_decay} must not be negative")
        require(
            self.warmup_tokens is None or self.warmup_tokens >= 0,
            f"optimizer.warmup_tokens={self.warmup_tokens} must not be negative",
        )
        require(
            0.0 <= self.final_learning_rate_fraction <= 1.0,
            f"optimizer.final_learning_rate_fraction={self.final_learning_rate_fraction} must lie in [0, 1]",
        )
        require(self.gradient_clip_norm > 0, f"optimizer.gradient_clip_norm={self.gradient_clip_norm} must be positive")


@dataclass
class TrainerConfig:
    """How long, and on what hardware."""

    max_steps: int = 20_000  # optimiser updates
    validate_every: int = 1_000  # updates between validations, each of which may renew best.ckpt
    checkpoint_every: int = 500  # updates between saves of last.ckpt
    log_every: int = 50  # updates between rows of training metrics
    validation_batches: int = 20  # batches of one validation; 0: all
    accelerator: str = "cpu"
    devices: int = 1  # processes on one node
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    compile: bool = False  # torch.compile the model
    threads: int | None = None  # intra-operation threads; null: torch's choice
    progress_bar: bool = True
    requeue: bool = False  # under SLURM: resubmit on SIGUSR1 and go on from there
    callbacks: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: …}, from allowed packages

    def __post_init__(self) -> None:
        for name in ("max_steps", "validate_every", "checkpoint_every", "log_every", "devices", "num_nodes"):
            require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)} must be at least 1")
        require(self.validation_batches >= 0, f"trainer.validation_batches={self.validation_batches} must be ≥ 0")
        require_choice("trainer.accelerator", self.accelerator, ("cpu", "gpu", "mps", "auto"))
        require_choice("trainer.strategy", self.strategy, ("auto", "ddp"))
        require_choice("trainer.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true", "16-mixed"))
        require(self.threads is None or self.threads >= 1, f"trainer.threads={self.threads} must be at least 1")


@dataclass
class PlannerConfig:
    """Beam search, under the original's option names (its ``config/offline.py``)."""

    name: str = "return"
    horizon: int = 5  # transitions planned ahead
    beam_width: int = 32  # sequences kept after each transition
    n_expand: int = 2  # continuations tried for each kept sequence
    context: int = 5  # transitions, the current one included, that the model sees at most before the plan begins
    window: str = "growing"  # growing: the plan is appended to the context; sliding: the original's cropping
    discount: float | None = None  # null: the data's
    k_obs: int | None = 1  # most likely tokens kept for observations; 1: greedy
    k_act: int | None = None
    cdf_act: float | None = 0.6  # drops the least likely action tokens of total mass below this; not nucleus sampling
    temperature: float = 1.0
    percentile: Any = "mean"  # of the predicted reward and value: "mean", or a fraction in (0, 1)
    plan_freq: int = 1  # environment steps between plans

    def __post_init__(self) -> None:
        require_choice("planner.name", self.name, ("return", "imitation", "goal", "critic"))
        for name in ("horizon", "beam_width", "n_expand", "context", "plan_freq"):
            require(getattr(self, name) >= 1, f"planner.{name}={getattr(self, name)} must be at least 1")
        require_choice("planner.window", self.window, ("growing", "sliding"))
        require(
            self.discount is None or 0.0 < self.discount <= 1.0, f"planner.discount={self.discount} must lie in (0, 1]"
        )
        for name in ("k_obs", "k_act"):
            k = getattr(self, name)
            require(k is None or k >= 1, f"planner.{name}={k} must be at least 1, or null for no limit")
        if self.cdf_act is not None:
            require_probability("planner.cdf_act", self.cdf_act)
        require(self.temperature > 0, f"planner.temperature={self.temperature} must be positive")
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        require(
            self.percentile == "mean" or (number and 0.0 < self.percentile < 1.0),
            f"planner.percentile={self.percentile!r} must be 'mean' or a fraction in (0, 1)",
        )
        require(
            self.plan_freq <= self.horizon,
            f"planner.plan_freq={self.plan_freq} must not exceed planner.horizon={self.horizon}",
        )

    def require_fits(self, sequence_length: int) -> None:
        """Refuse a plan that the model cannot see.

        Args:
            sequence_length: transitions of the window that the model was trained on.

        Raises:
            UserError: the context, or in the growing window the context and the plan, exceed that window.
        """
        require(
            self.context <= sequence_length,
            f"planner.context={self.context} exceeds the {sequence_length} transitions that the model can see "
            "(data.sequence_length)",
        )
        require(
            self.window == "growing" or self.context >= 2,
            f"planner.window=sliding needs planner.context of at least 2, got {self.context}: it crops whole transitions",
        )
        longest = self.context - 1 + self.horizon
        require(
            self.window == "sliding" or longest <= sequence_length,
            f"planner.context={self.context} and planner.horizon={self.horizon} need {longest} transitions, but the "
            f"model can see {sequence_length} (data.sequence_length); shorten them or use planner.window=sliding",
        )


@dataclass
class LoggerConfig:
    """Where metrics go besides ``metrics.csv``, which is always written."""

    name: str = "csv"
    project: str = "trajectory-transformer"
    entity: str | None = None
    group: str | None = None  # null: the sweep's folder, or the experiment's name
    job_type: str | None = None  # null: train or evaluate
    tags: list[str] = field(default_factory=list)
    offline: bool | None = None  # null: offline unless a W&B key is configured
    log_artifacts: bool = True  # checkpoint and data set reference

    def __post_init__(self) -> None:
        require_choice("logger.name", self.name, ("csv", "wandb"))


@dataclass
class EvaluationConfig:
    """Planning in the real environment, after training."""

    episodes: int = 20  # 0: train only
    num_envs: int = 20  # environments planned for at once
    video: int = 0  # episodes to record

    def __post_init__(self) -> None:
        require(self.episodes >= 0, f"evaluation.episodes={self.episodes} must not be negative")
        require(self.num_envs >= 1, f"evaluation.num_envs={self.num_envs} must be at least 1")
        require(self.video >= 0, f"evaluation.video={self.video} must not be negative")


@dataclass
class ParameterConfig:
    """The values that a search tries for one option: ``choices``, or a range from ``low`` to ``high``."""

    low: Any = None  # with high: whole numbers search whole numbers, others search real numbers
    high: Any = None
    log: bool = False  # spread over orders of magnitude
    choices: list[Any] | None = None

    def __post_init__(self) -> None:
        if self.choices is not None:
            require(
                len(self.choices) > 0 and self.low is None and self.high is None and not self.log,
                "tune.parameters: choices must hold a value, and go without low, high and log",
            )
            return
        numbers = [x for x in (self.low, self.high) if isinstance(x, (int, float)) and not isinstance(x, bool)]
        require(len(numbers) == 2, "tune.parameters: each needs choices, or low and high as numbers")
        require(self.low < self.high, f"tune.parameters: low={self.low} must lie below high={self.high}")
        require(not self.log or self.low > 0, f"tune.parameters: log needs low > 0, not {self.low}")


@dataclass
class TuneConfig:
    """A hyper-parameter search over options of ``train.py`` for the highest mean return."""

    parameters: dict[str, ParameterConfig] = field(default_factory=dict)  # dotted option name -> values
    trials: int = 20  # of the whole search, earlier sessions in its folder included

    def __post_init__(self) -> None:
        require(self.trials >= 1, f"tune.trials={self.trials} must be at least 1")
        require(len(self.parameters) > 0, "tune.parameters must name at least one option")


@dataclass
class TrainConfig:
    """Root of ``train.py``'s options."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    tune: TuneConfig | None = None  # set by tune=…: search instead of one run
    experiment_name: str | None = None  # set by experiment=…
    seed: int = 0
    resume: str | None = None  # directory of a run to go on with

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**32, f"seed={self.seed} must lie in [0, 2**32)")
        self.planner.require_fits(self.data.sequence_length)


@dataclass
class EvaluateConfig:
    """Root of ``evaluate.py``'s options."""

    checkpoint: str = ""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    episodes: int = 20
    num_envs: int = 20
    video: int = 0
    seed: int = 0
    accelerator: str = "cpu"
    threads: int | None = None

    def __post_init__(self) -> None:
        require(bool(self.checkpoint), "checkpoint=PATH is needed: the .ckpt file to plan with")
        EvaluationConfig(self.episodes, self.num_envs, self.video)
        require(self.episodes >= 1, f"episodes={self.episodes} must be at least 1")
        require(0 <= self.seed < 2**32, f"seed={self.seed} must lie in [0, 2**32)")
        require_choice("accelerator", self.accelerator, ("cpu", "gpu", "mps", "auto"))
