"""The model, its optimiser, how long and on what hardware."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .validation import LARGEST, require, require_choice, require_target, validate, within

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

    n_layer: int = within(4, 1, 1000)
    n_head: int = within(4, 1, 65_536)
    n_embd: int = within(128, 1, 65_536)
    embd_pdrop: float = within(0.1, 0.0, below=1.0)
    resid_pdrop: float = within(0.1, 0.0, below=1.0)
    attn_pdrop: float = within(0.1, 0.0, below=1.0)
    hidden_act: Any = "gelu"  # one of HIDDEN_ACTIVATIONS; from Python also a function of a tensor
    layer_norm_eps: float = within(1e-5, high=1.0, above=0.0)
    initializer_range: float = within(0.02, high=LARGEST, above=0.0)
    kaiming_initializer_range: float = within(1.0, 1e-6, 1e6)
    action_weight: float = within(5.0, 0.0, LARGEST)
    reward_weight: float = within(1.0, 0.0, LARGEST)
    value_weight: float = within(1.0, 0.0, LARGEST)
    goal_conditioned: bool = False  # windows begin with the state that their episode ends in; for planner=goal
    # hidden width of the MLPs that embed a transition's real values; null: none
    numerical_embedding: int | None = within(None, 1, 65_536)
    block: Any = None  # the class of all blocks, {_target_: …, options of its own}; null: model.gpt.Block

    prefix: ClassVar[str] = "model."  # of names in messages

    def __post_init__(self) -> None:
        validate(self.prefix, self)
        require(
            self.n_embd % self.n_head == 0,
            f"{self.prefix}n_embd={self.n_embd} must be divisible by {self.prefix}n_head={self.n_head}",
        )
        if not callable(self.hidden_act):
            require_choice(f"{self.prefix}hidden_act", str(self.hidden_act), HIDDEN_ACTIVATIONS)
        if self.block is not None:
            require_target(f"{self.prefix}block", self.block, "the class of a block: {_target_: my_package.MyBlock}")


@dataclass
class OptimizerConfig:
    """AdamW with the GPT schedule, counted in tokens."""

    learning_rate: float = within(6e-4, high=LARGEST, above=0.0)
    beta1: float = within(0.9, 0.0, below=1.0)
    beta2: float = within(0.95, 0.0, below=1.0)
    weight_decay: float = within(0.1, 0.0, LARGEST)  # on matrix-product weights only
    warmup_tokens: int | None = within(None, 0)  # null: one epoch, at most a tenth of the run
    final_learning_rate_fraction: float = within(0.1, 0.0, 1.0)  # where the cosine ends, at the last step
    gradient_clip_norm: float | None = within(1.0, high=LARGEST, above=0.0)  # null: gradients are not clipped

    def __post_init__(self) -> None:
        validate("optimizer.", self)


@dataclass
class TrainerConfig:
    """Options of training: its length and its hardware."""

    max_steps: int = within(20_000, 1)  # optimiser updates
    validate_every: int = within(1_000, 1)  # updates between validations, each of which may renew best.ckpt
    checkpoint_every: int = within(500, 1)  # updates between saves of last.ckpt
    log_every: int = within(50, 1)  # updates between rows of training metrics
    validation_batches: int = within(20, 0)  # batches of one validation; 0: all
    accelerator: str = "cpu"
    devices: int = within(1, 1, 4096)  # processes on one node
    num_nodes: int = within(1, 1, 65_536)
    strategy: str = "auto"  # auto; ddp: each process has the whole model; fsdp: they divide it among them
    precision: str = "32-true"
    # parts that an update's batch is computed in, one after the other: less memory, same result
    accumulate: int = within(1, 1)
    compile: bool = False  # torch.compile the model
    threads: int | None = within(None, 1, 4096)  # intra-operation threads; null: torch's choice
    progress_bar: bool = True
    requeue: bool = False  # under SLURM: resubmit on SIGUSR1 and go on from there
    callbacks: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: …}, from allowed packages
    metrics: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: …} of a torchmetrics.Metric
    options: dict[str, Any] = field(default_factory=dict)  # others of Lightning's Trainer, of LIGHTNING_OPTIONS

    def __post_init__(self) -> None:
        validate("trainer.", self)
        require_choice("trainer.accelerator", self.accelerator, ("cpu", "gpu", "mps", "auto"))
        require_choice("trainer.strategy", self.strategy, ("auto", "ddp", "fsdp"))
        require_choice("trainer.precision", self.precision, ("32-true", "bf16-mixed", "bf16-true", "16-mixed"))
        if self.strategy == "fsdp":
            require(
                self.precision in ("32-true", "bf16-mixed") and not self.compile,
                f"trainer.strategy=fsdp goes with trainer.precision=32-true or bf16-mixed and trainer.compile=false, "
                f"not with {self.precision} and {str(self.compile).lower()}",
            )
        for name, callback in self.callbacks.items():
            require_target(f"trainer.callbacks.{name}", callback, "a Lightning callback: {_target_: my_package.Mine}")
        for name in self.options:
            reason = next((why for names, why in _NOT_LIGHTNINGS.items() if name in names), "Lightning has none")
            require(
                name in LIGHTNING_OPTIONS,
                f"trainer.options.{name}: {reason}; there are {', '.join(LIGHTNING_OPTIONS)}",
            )
        for name, metric in self.metrics.items():
            require_target(f"trainer.metrics.{name}", metric, "a torchmetrics class: {_target_: my_package.MyMetric}")
