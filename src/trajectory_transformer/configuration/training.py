"""Options of the model, its optimiser, and the length and hardware of training."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from .validation import LARGEST, one_of, require, require_target, validate, validate_value, within

LIGHTNING_OPTIONS: dict[str, Any] = {
    "benchmark": bool | None,
    "detect_anomaly": bool,
    "deterministic": bool | None,  # or "warn"
    "inference_mode": bool,
    "model_registry": str | None,
    "profiler": Any,
    "sync_batchnorm": bool,
}
"""Options of Lightning's Trainer that ``trainer.options`` accepts, with their types: no duplicates of ours, none that
breaks resuming."""

_NOT_LIGHTNINGS = {  # names -> reason for refusing them
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

    :class:`~..model.config.TransformerConfig`, from which the model is built, adds the sizes to these options.

    Raises:
        UserError: a value of the wrong type or out of range, ``n_embd`` that ``n_head`` does not divide, an unknown
            activation, or a ``block`` without a class.
    """

    n_layer: int = within(4, 1, 1000)
    """Transformer blocks."""
    n_head: int = within(4, 1, 65_536)
    """Attention heads per block."""
    n_embd: int = within(128, 1, 65_536)
    """Width of the model, over all heads together."""
    embd_pdrop: float = within(0.1, 0.0, below=1.0)
    """Dropout probability of the embeddings."""
    resid_pdrop: float = within(0.1, 0.0, below=1.0)
    """Dropout probability of the outputs of attention and MLP, before they are added to the residual stream."""
    attn_pdrop: float = within(0.1, 0.0, below=1.0)
    """Dropout probability of the attention weights."""
    hidden_act: Any = one_of("gelu", HIDDEN_ACTIVATIONS)  # noqa: RUF009 - a field, as by dataclasses.field
    """Activation function of the MLPs; in Python also a function of a tensor."""
    layer_norm_eps: float = within(1e-5, high=1.0, above=0.0)
    """Number added to the variance in layer normalisation."""
    initializer_range: float = within(0.02, high=LARGEST, above=0.0)
    """Standard deviation of the initial weights, except those of the output heads."""
    kaiming_initializer_range: float = within(1.0, 1e-6, 1e6)
    """Scale of the Kaiming initialisation of the output heads; 1 is PyTorch's own."""
    action_weight: float = within(5.0, 0.0, LARGEST)
    """Weight of action tokens in the loss; that of observation tokens is 1."""
    reward_weight: float = within(1.0, 0.0, LARGEST)
    """Weight of reward tokens in the loss."""
    value_weight: float = within(1.0, 0.0, LARGEST)
    """Weight of return-to-go tokens in the loss."""
    goal_conditioned: bool = False
    """Begin each window with the last state of its episode, as planner=goal needs."""
    numerical_embedding: int | None = within(None, 1, 65_536)
    """Hidden width of the MLPs that embed a transition's real values in addition to its tokens; null uses none."""
    numerical_dynamics: bool = False
    """Predict the next observation from an MLP of the transition's real values, too, whose outputs are added before the
    final norm. Without a numerical embedding it has no effect."""
    numerical_regression: float = within(0.0, 0.0, LARGEST)
    """Loss weight of a linear regression from the numerical embedding to action, reward and return-to-go, on 1,024
    further transitions per update; 0 for none. Without a numerical embedding it has no effect."""
    numerical_pretraining: float = within(0.0, 0.0, 1e6)
    """Updates by the same regression, on 256 transitions each, before the training: this many for each update of the
    training; 0 for none. Weights of init_from are not trained so."""
    action_improvement: float = within(0.0, 0.0, 1e6)
    """Updates of a network that corrects planned actions towards those that turned out better than expected, before the
    training: this many for each update of the training; 0 for none. With init_from it is fitted anew, too."""
    members: int = within(1, 1, 64)
    """Models in the ensemble, trained together on the same windows. The planner executes the mean of their actions;
    where it does not average (planner.act=best) or has a deadline, one is trained and used."""
    block: Any = None
    """Class of all blocks: the _target_ and options of a block of your own; null is the GPT block of model/gpt.py."""

    prefix: ClassVar[str] = "model."  # of names in messages

    def __post_init__(self) -> None:
        validate(self.prefix, self)
        require(
            self.n_embd % self.n_head == 0,
            f"{self.prefix}n_embd={self.n_embd} must be divisible by {self.prefix}n_head={self.n_head}",
        )
        if self.block is not None:
            require_target(f"{self.prefix}block", self.block, "the class of a block: {_target_: my_package.MyBlock}")

    @property
    def regresses(self) -> bool:
        """True if the numerical embedding is trained by a regression of its own, too."""
        return self.numerical_embedding is not None and self.wants_regression

    @property
    def wants_regression(self) -> bool:
        """True if such a regression is asked for, which has no effect without a numerical embedding."""
        return max(self.numerical_regression, self.numerical_pretraining) > 0.0


@dataclass
class OptimizerConfig:
    """AdamW, and Muon where asked for, with the GPT schedule, counted in tokens."""

    learning_rate: float = within(6e-4, high=LARGEST, above=0.0)
    """Peak learning rate, reached after the warm-up."""
    beta1: float = within(0.9, 0.0, below=1.0)
    """Decay rate of AdamW's average of the gradient."""
    beta2: float = within(0.95, 0.0, below=1.0)
    """Decay rate of AdamW's average of the squared gradient."""
    weight_decay: float = within(0.1, 0.0, LARGEST)
    """Weight decay, applied to the weights of matrix products only."""
    warmup_tokens: int | None = within(None, 0)
    """Tokens (or transitions) over which the learning rate rises from 0; null is one epoch, or a tenth of the run if
    that is less."""
    final_learning_rate_fraction: float = within(0.1, 0.0, 1.0)
    """Fraction of the peak learning rate at which the cosine schedule ends, in the last update."""
    muon: float = within(0.0, 0.0, LARGEST)
    """Train the weight matrices of the transformer's blocks with Muon, at this multiple of the learning rate; 0 trains
    them with AdamW, as all other weights."""
    gradient_clip_norm: float | None = within(1.0, high=LARGEST, above=0.0)
    """Norm to which gradients are clipped; null does not clip them."""

    def __post_init__(self) -> None:
        validate("optimizer.", self)


@dataclass
class TrainerConfig:
    """Options of training: its length and its hardware."""

    max_steps: int = within(20_000, 1)
    """Length of the run in updates of the optimiser."""
    validate_every: int = within(1_000, 1)
    """Updates between validations; one with a lower loss replaces best.ckpt."""
    checkpoint_every: int = within(500, 1)
    """Updates between saves of last.ckpt."""
    log_every: int = within(50, 1)
    """Updates between rows of training metrics."""
    validation_batches: int = within(20, 0)
    """Batches per validation; 0 uses all."""
    accelerator: str = one_of("cpu", ("cpu", "gpu", "mps", "auto"))
    """Hardware to train on; auto takes a GPU if there is one."""
    devices: int = within(1, 1, 4096)
    """Processes per node, one for each device."""
    num_nodes: int = within(1, 1, 65_536)
    """Nodes."""
    strategy: str = one_of("auto", ("auto", "ddp", "fsdp"))
    """Distribution over devices: ddp gives each process the whole model, fsdp shards it among them, auto lets Lightning
    choose."""
    precision: str = one_of("32-true", ("32-true", "bf16-mixed", "bf16-true", "16-mixed"))
    """Precision of training, by Lightning's names."""
    accumulate: int = within(1, 1)
    """Micro-batches into which the batch of an update is divided to save memory; the result is the same."""
    compile: bool = False
    """Compile the model with torch.compile."""
    threads: int | None = within(None, 1, 4096)
    """Threads within an operation of PyTorch; null leaves the number to PyTorch."""
    progress_bar: bool = True
    """Show a progress bar or, without a terminal, a line every 30 seconds."""
    requeue: bool = False
    """Under SLURM, save the state and resubmit the job on SIGUSR1; the new job continues the run."""
    callbacks: dict[str, Any] = field(default_factory=dict)
    """Lightning callbacks by name, each a mapping with a _target_ and its options."""
    loss: Any = None
    """Loss of the transformer's training: the _target_ and options of a loss of your own; null is the cross-entropy of
    the next token, weighted by model.action_weight and its like."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics from torchmetrics by name, each a mapping with a _target_ and its options."""
    options: dict[str, Any] = field(default_factory=dict)
    """Further options of Lightning's Trainer: benchmark, detect_anomaly, deterministic, inference_mode, model_registry,
    profiler, sync_batchnorm."""

    def __post_init__(self) -> None:
        validate("trainer.", self)
        if self.strategy == "fsdp":
            require(
                self.precision in ("32-true", "bf16-mixed") and not self.compile,
                f"trainer.strategy=fsdp goes with trainer.precision=32-true or bf16-mixed and trainer.compile=false, "
                f"not with {self.precision} and {str(self.compile).lower()}",
            )
        for name, callback in self.callbacks.items():
            require_target(f"trainer.callbacks.{name}", callback, "a Lightning callback: {_target_: my_package.Mine}")
        for name, value in self.options.items():
            reason = next(
                (why for names, why in _NOT_LIGHTNINGS.items() if name in names), "Lightning has no such option"
            )
            require(
                name in LIGHTNING_OPTIONS,
                f"trainer.options.{name} cannot be set: {reason}; valid here: {', '.join(LIGHTNING_OPTIONS)}",
            )
            if (name, value) != ("deterministic", "warn"):
                validate_value(f"trainer.options.{name}", value, LIGHTNING_OPTIONS[name])
        if self.loss is not None:
            require_target("trainer.loss", self.loss, "the class of a loss: {_target_: my_package.MyLoss}")
        for name, metric in self.metrics.items():
            require_target(f"trainer.metrics.{name}", metric, "a torchmetrics class: {_target_: my_package.MyMetric}")
