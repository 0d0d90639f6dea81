"""Root options of the two commands, and the options of logging, evaluation and search."""

from dataclasses import dataclass, field
from typing import Any

from .data import DataConfig
from .planner import PlannerConfig
from .tasks import AttentionConfig, PredictConfig
from .training import ModelConfig, OptimizerConfig, TrainerConfig
from .validation import one_of, require, require_module_names, validate, within

TRANSFORMER = "trajectory_transformer.learners.transformer.TransformerLearner"


@dataclass
class LoggerConfig:
    """Loggers besides ``metrics.csv``, which is always written."""

    # If a W&B option is null or empty, its environment variable is used: WANDB_PROJECT, WANDB_NAME, …
    name: str = one_of("csv", ("csv", "wandb"))
    """Logger besides metrics.csv: csv adds none, wandb adds Weights & Biases."""
    project: str | None = None
    """W&B project; null is trajectory-transformer."""
    entity: str | None = None
    """W&B user or team that owns the run; null is the account's default."""
    run_name: str | None = None
    """W&B name of the run, to which a sweep adds the options that differ between its jobs; null is the run folder's
    name."""
    group: str | None = None
    """W&B group of runs to compare; null is the sweep's folder, the experiment's name or the first data set's id."""
    job_type: str | None = None
    """W&B job type; null is train or evaluate."""
    tags: list[str] = field(default_factory=list)
    """W&B tags, besides the experiment's name."""
    offline: bool | None = None
    """Log the W&B run to disk only; null does so unless a W&B key is configured and its host answers."""
    log_artifacts: bool = True
    """Upload the checkpoint and a reference to the data set as W&B artifacts."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further Lightning loggers by name, each a mapping with a _target_ and its options."""

    def __post_init__(self) -> None:
        validate("logger.", self)
        for name, spec in self.extra.items():
            require(
                isinstance(spec, dict) and isinstance(spec.get("_target_"), str),
                f"logger.extra.{name} needs a Lightning logger, as in "
                f"logger.extra.{name}._target_=lightning.pytorch.loggers.TensorBoardLogger",
            )


@dataclass
class EnvironmentConfig:
    """Modules that register the user's own environments."""

    modules: list[str] = field(default_factory=list)
    """Your modules to import, which register environments with Gymnasium."""

    def __post_init__(self) -> None:
        validate("environment.", self)
        require_module_names("environment.modules", self.modules)


@dataclass
class EvaluationConfig:
    """Evaluation in the real environment, after training and, every so many updates, during it."""

    episodes: int = within(20, 0)
    """Episodes to act in after training; 0 only trains."""
    num_envs: int = within(20, 1, 65_536)
    """Environments stepped and planned for at once."""
    video: int = within(0, 0)
    """Episodes to record as videos."""
    max_episode_steps: int | None = within(None, 1)
    """Time limit of an episode in steps; null is the environment's own limit or else the length of the data's longest
    episode."""
    every: int | None = within(None, 1)
    """Updates between evaluations during training; null has none."""
    every_episodes: int = within(10, 1)
    """Episodes per evaluation during training: the same in each, and different from those after training."""
    choose: str = one_of("loss", ("loss", "return"))
    """Weights to act with after training: loss takes those with the lowest validation loss, return those with the
    highest return during training."""

    def __post_init__(self) -> None:
        validate("evaluation.", self)
        require(
            self.choose == "loss" or self.every is not None,
            "evaluation.choose=return needs evaluation.every=N: without it, no return is measured during training",
        )


@dataclass
class ParameterConfig:
    """Values that a search tries for one option: ``choices``, or a range from ``low`` to ``high``."""

    low: Any = None
    """Lower end of a range; if both ends are whole numbers only whole numbers are tried, otherwise real numbers."""
    high: Any = None
    """Upper end of a range."""
    log: bool = False
    """Search the range on a logarithmic scale."""
    choices: list[Any] | None = None
    """Values to choose from, instead of a range."""

    def __post_init__(self) -> None:
        validate("tune.parameters: ", self)
        if self.choices is not None:
            require(
                len(self.choices) > 0 and self.low is None and self.high is None and not self.log,
                "tune.parameters: choices must hold at least one value and excludes low, high and log",
            )
            return
        numbers = [x for x in (self.low, self.high) if isinstance(x, (int, float)) and not isinstance(x, bool)]
        require(len(numbers) == 2, "tune.parameters: each needs choices, or low and high as numbers")
        require(self.low < self.high, f"tune.parameters: low={self.low} must lie below high={self.high}")
        require(not self.log or self.low > 0, f"tune.parameters: log needs low > 0, not {self.low}")


@dataclass
class TuneConfig:
    """A hyper-parameter search over options of ``train.py`` for the highest mean return."""

    parameters: dict[str, ParameterConfig] = field(default_factory=dict)
    """Options to search over by their dotted names, each with low and high (and log), or choices."""
    trials: int = within(20, 1)
    """Total number of trials of the search, including those of earlier sessions in its folder."""

    def __post_init__(self) -> None:
        validate("tune.", self)
        require(len(self.parameters) > 0, "tune.parameters must name at least one option")
        for name in self.parameters:  # a resumed search must not choose what is imported, either
            require(not name.endswith("_target_"), f"tune.parameters.{name}: a search varies options, not classes")


@dataclass
class TrainConfig:
    """Options of ``train.py``."""

    learner: dict[str, Any] = field(default_factory=lambda: {"_target_": TRANSFORMER})
    """Kind of network to train: the _target_ and options of a Learner."""
    data: DataConfig = field(default_factory=DataConfig)
    """Data set, and the training windows made of it."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Architecture and loss weights of the transformer."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """AdamW and its learning-rate schedule."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    """Length of training and hardware."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Beam search for actions with the trained model."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Acting in the real environment after training."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """Environments of your own."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Loggers besides metrics.csv."""
    tune: TuneConfig | None = None
    """Hyper-parameter search instead of a single run, set by tune=NAME; null trains once."""
    experiment_name: str | None = None
    """Name set by experiment=NAME, used as W&B tag and group; null sets none."""
    seed: int = within(0, 0, 2**32 - 1)
    """Seed of the weights, the data split, the order of windows and the evaluation episodes."""
    init_from: str | None = None
    """Weights to start from: a .ckpt file or a directory of converted ones; null starts from random weights."""
    resume: str | None = None
    """Directory of a run to resume, as in python train.py resume=DIR; null starts a new run."""
    extend: bool = False
    """With resume=RUN trainer.max_steps=N: train a finished run further, on a new learning-rate schedule."""
    extended: list[int] = field(default_factory=list)
    """Updates after which extend=true was used; recorded by the program, do not set it."""

    def __post_init__(self) -> None:
        validate("", self)
        require(
            self.resume is None,
            f"resume={self.resume} has an effect only on the command line, as in python train.py resume=DIR",
        )
        require(not self.extend, "extend=true goes with resume=RUN trainer.max_steps=N, to train that run further")


@dataclass
class EvaluateConfig:
    """Options of ``evaluate.py``."""

    checkpoint: str = ""
    """Path of the .ckpt file to evaluate."""
    allow: list[str] = field(default_factory=list)
    """Packages, besides this one, whose classes the checkpoint may name."""
    task: str = one_of("plan", ("plan", "attention", "predict"))
    """Task: plan acts in the environment, attention measures what the model attends to, predict continues held-out
    episodes."""
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    """Beam search for actions: planner=NAME sets all its options; without it, those that are not given keep the
    checkpoint's values."""
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    """Options of task=attention."""
    predict: PredictConfig = field(default_factory=PredictConfig)
    """Options of task=predict."""
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    """Environments of your own."""
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    """Loggers of the results."""
    episodes: int = within(20, 1)
    """Episodes to act in or, with task=predict, the maximum number of held-out episodes to continue."""
    num_envs: int = within(20, 1, 65_536)
    """Environments stepped and planned for at once."""
    video: int = within(0, 0)
    """Episodes to record as videos."""
    max_episode_steps: int | None = within(None, 1)
    """Time limit of an episode in steps; null is the environment's own limit or else the length of the data's longest
    episode."""
    seed: int = within(0, 0, 2**32 - 1)
    """Seed of the planner and of the first episode."""
    accelerator: str = one_of("cpu", ("cpu", "gpu", "mps", "auto"))
    """Hardware to compute on; auto takes a GPU if there is one."""
    threads: int | None = within(None, 1, 4096)
    """Threads within an operation of PyTorch; null leaves the number to PyTorch."""

    def __post_init__(self) -> None:
        validate("", self)
        require(bool(self.checkpoint), "checkpoint=PATH is needed: the .ckpt file to evaluate")
        require_module_names("allow", self.allow)
