"""The model, its optimiser, how long and on what hardware."""

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from .validation import require, require_choice, require_finite, require_probability, require_target

LIGHTNING_OPTIONS = (
    "benchmark", "detect_anomaly", "deterministic", "inference_mode", "model_registry", "profiler", "sync_batchnorm",
)  # fmt: skip
"""What ``trainer.options`` takes: options of Lightning's Trainer neither ours by another name nor against resuming."""

_NOT_LIGHTNINGS = {  # names -> why not
    ("accelerator", "strategy", "devices", "num_nodes", "precision", "callbacks", "max_steps"): "it is trainer's own",
    ("logger",): "loggers have options of their own, logger=…",
    ("val_check_interval",): "it is trainer.validate_every",
    ("limit_val_batches",): "it is trainer.validation_batches",
    ("log_every_n_steps",): "it is trainer.log_every",
    ("enable_progress_bar",): "it is trainer.progress_bar",
    ("accumulate_grad_batches",): "it is trainer.accumulate",
    ("gradient_clip_val", "gradient_clip_algorithm"): "it is optimizer.gradient_clip_norm",
    ("enable_checkpointing", "default_root_dir", "plugins"): "checkpoints are the run's last.ckpt and best.ckpt",
    (
        "max_epochs", "min_epochs", "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run",
        "reload_dataloaders_every_n_epochs", "check_val_every_n_epoch", "num_sanity_val_steps", "barebones",
        "use_distributed_sampler", "limit_test_batches", "limit_predict_batches", "enable_model_summary",
        "enable_autolog_hparams",
    ): "a run that resumes exactly is counted in updates, trainer.max_steps, over one endless epoch",
}  # fmt: skip

HIDDEN_ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")


@dataclass(kw_only=True)
class ModelConfig:
    """Architecture and loss weights, under the reference API's names; dimensions and vocabulary come from the data.

    The one list of a model's options: what the model itself is made from,
    :class:`~..model.config.TransformerConfig`, adds the sizes.

    Raises:
        UserError: a value of the wrong type or out of range, ``n_embd`` that ``n_head`` does not divide, an unknown
            activation, or a ``block`` that names no class.
    """

    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    hidden_act: Any = "gelu"  # one of HIDDEN_ACTIVATIONS; from Python also a function of a tensor
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    kaiming_initializer_range: float = 1.0
    action_weight: float = 5.0
    reward_weight: float = 1.0
    value_weight: float = 1.0
    goal_conditioned: bool = False  # windows begin with the state that their episode ends in; for planner=goal
    numerical_embedding: int | None = None  # hidden width of the MLPs that embed a transition's real values; null: none
    block: Any = None  # the class of all blocks, {_target_: …, options of its own}; null: model.gpt.Block

    prefix: ClassVar[str] = "model."  # of names in messages

    def __post_init__(self) -> None:
        for option in fields(self):
            self._require_number(f"{self.prefix}{option.name}", getattr(self, option.name), option.type)
        require(
            self.n_embd % self.n_head == 0,
            f"{self.prefix}n_embd={self.n_embd} must be divisible by {self.prefix}n_head={self.n_head}",
        )
        for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
            require_probability(f"{self.prefix}{name}", getattr(self, name))
        for name in ("layer_norm_eps", "initializer_range", "kaiming_initializer_range"):
            require(getattr(self, name) > 0, f"{self.prefix}{name}={getattr(self, name)} must be positive")
        for name in ("action_weight", "reward_weight", "value_weight"):
            require(getattr(self, name) >= 0, f"{self.prefix}{name}={getattr(self, name)} must not be negative")
        if not callable(self.hidden_act):
            require_choice(f"{self.prefix}hidden_act", str(self.hidden_act), HIDDEN_ACTIVATIONS)
        if self.numerical_embedding is not None:
            self._require_number(f"{self.prefix}numerical_embedding", self.numerical_embedding, int)
        if self.block is not None:
            require_target(f"{self.prefix}block", self.block, "the class of a block: {_target_: my_package.MyBlock}")

    @staticmethod
    def _require_number(name: str, value: Any, kind: object) -> None:
        """Refuse what is no number where ``kind`` is int or float: Hydra does, files and Python code do not."""
        is_bool = isinstance(value, bool)
        if kind is int:
            require(isinstance(value, int) and not is_bool, f"{name} must be a whole number, got {value!r}")
            require(value >= 1, f"{name} must be at least 1, got {value}")
        if kind is float:
            require(isinstance(value, (int, float)) and not is_bool, f"{name} must be a number, got {value!r}")
            require(math.isfinite(value), f"{name}={value} must be finite")


@dataclass
class OptimizerConfig:
    """AdamW with the GPT schedule, counted in tokens."""

    learning_rate: float = 6e-4
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1  # on matrix-product weights only
    warmup_tokens: int | None = None  # null: one epoch, at most a tenth of the run
    final_learning_rate_fraction: float = 0.1  # where the cosine ends, at the last step
    gradient_clip_norm: float | None = 1.0  # null: gradients are not clipped

    def __post_init__(self) -> None:
        require_finite("optimizer", self)
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
        require(
            self.gradient_clip_norm is None or self.gradient_clip_norm > 0,
            f"optimizer.gradient_clip_norm={self.gradient_clip_norm} must be positive, or null for no clipping",
        )


@dataclass
class TrainerConfig:
    """Options of training: its length and its hardware."""

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
    accumulate: int = 1  # parts that an update's batch is computed in, one after the other: less memory, same result
    compile: bool = False  # torch.compile the model
    threads: int | None = None  # intra-operation threads; null: torch's choice
    progress_bar: bool = True
    requeue: bool = False  # under SLURM: resubmit on SIGUSR1 and go on from there
    callbacks: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: …}, from allowed packages
    metrics: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: …} of a torchmetrics.Metric
    options: dict[str, Any] = field(default_factory=dict)  # others of Lightning's Trainer, of LIGHTNING_OPTIONS

    def __post_init__(self) -> None:
        for name in (
            "max_steps", "validate_every", "checkpoint_every", "log_every", "accumulate", "devices", "num_nodes",
        ):  # fmt: skip
            require(getattr(self, name) >= 1, f"trainer.{name}={getattr(self, name)} must be at least 1")
        require(self.validation_batches >= 0, f"trainer.validation_batches={self.validation_batches} must be ≥ 0")
        require_choice("trainer.accelerator", self.accelerator, ("cpu", "gpu", "mps", "auto"))
        require_choice("trainer.strategy", self.strategy, ("auto", "ddp"))
        require_choice("trainer.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true", "16-mixed"))
        require(self.threads is None or self.threads >= 1, f"trainer.threads={self.threads} must be at least 1")
        for name in self.options:
            reason = next((why for names, why in _NOT_LIGHTNINGS.items() if name in names), "Lightning has none")
            require(
                name in LIGHTNING_OPTIONS,
                f"trainer.options.{name}: {reason}; there are {', '.join(LIGHTNING_OPTIONS)}",
            )
        for name, metric in self.metrics.items():
            require_target(f"trainer.metrics.{name}", metric, "a torchmetrics class: {_target_: my_package.MyMetric}")
