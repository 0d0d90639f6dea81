"""The roots of the two commands, and what surrounds a run: logging, evaluation, search."""

from dataclasses import dataclass, field
from typing import Any

from .data import DataConfig
from .planner import PlannerConfig
from .tasks import AttentionConfig, PredictConfig
from .training import ModelConfig, OptimizerConfig, TrainerConfig
from .validation import require, require_choice, require_module_names, validate, within

TRANSFORMER = "trajectory_transformer.learners.transformer.TransformerLearner"


@dataclass
class LoggerConfig:
    """Loggers besides ``metrics.csv``, which is always written."""

    name: str = "csv"
    # Of W&B, whose own variables (WANDB_PROJECT, WANDB_NAME, …) count where these are null or empty.
    project: str | None = None  # null: trajectory-transformer
    entity: str | None = None
    run_name: str | None = None  # null: that of the run's folder; within a sweep, what differs is added
    group: str | None = None  # null: the sweep's folder, the experiment's name, or the first data set's id
    job_type: str | None = None  # null: train or evaluate
    tags: list[str] = field(default_factory=list)
    offline: bool | None = None  # null: offline unless a W&B key is configured and its host answers
    log_artifacts: bool = True  # checkpoint and data set reference
    extra: dict[str, Any] = field(default_factory=dict)  # name -> {_target_: a Lightning logger, …}, besides these

    def __post_init__(self) -> None:
        validate("logger.", self)
        require_choice("logger.name", self.name, ("csv", "wandb"))
        for name, spec in self.extra.items():
            require(
                isinstance(spec, dict) and isinstance(spec.get("_target_"), str),
                f"logger.extra.{name} needs a Lightning logger, as in "
                f"logger.extra.{name}._target_=lightning.pytorch.loggers.TensorBoardLogger",
            )


@dataclass
class EnvironmentConfig:
    """Where environments of one's own come from."""

    modules: list[str] = field(default_factory=list)  # of yours, imported as they register environments

    def __post_init__(self) -> None:
        validate("environment.", self)
        require_module_names("environment.modules", self.modules)


@dataclass
class EvaluationConfig:
    """Acting in the real environment, after training and, every so many updates, beside it."""

    episodes: int = within(20, 0)  # 0: train only
    num_envs: int = within(20, 1, 65_536)  # environments planned for at once
    video: int = within(0, 0)  # episodes to record
    # null: the environment's limit, or else as many as the data's longest has
    max_episode_steps: int | None = within(None, 1)
    every: int | None = within(None, 1)  # updates between evaluations while training; null: none
    every_episodes: int = within(10, 1)  # of each of these, always the same ones, and none of those after training
    # whose weights act after training: those of the lowest validation loss, or of the highest return while training
    choose: str = "loss"

    def __post_init__(self) -> None:
        validate("evaluation.", self)
        require_choice("evaluation.choose", self.choose, ("loss", "return"))
        require(
            self.choose == "loss" or self.every is not None,
            "evaluation.choose=return needs evaluation.every=N: without, no return is measured while training",
        )


@dataclass
class ParameterConfig:
    """The values that a search tries for one option: ``choices``, or a range from ``low`` to ``high``."""

    low: Any = None  # with high: whole numbers search whole numbers, others search real numbers
    high: Any = None
    log: bool = False  # spread over orders of magnitude
    choices: list[Any] | None = None

    def __post_init__(self) -> None:
        validate("tune.parameters: ", self)
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
    trials: int = within(20, 1)  # of the whole search, earlier sessions in its folder included

    def __post_init__(self) -> None:
        validate("tune.", self)
        require(len(self.parameters) > 0, "tune.parameters must name at least one option")
        for name in self.parameters:  # also as no search that is gone on with may choose what is imported
            require(not name.endswith("_target_"), f"tune.parameters.{name}: a search varies options, not classes")


@dataclass
class TrainConfig:
    """Root of ``train.py``'s options."""

    learner: dict[str, Any] = field(default_factory=lambda: {"_target_": TRANSFORMER})  # what is trained
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    tune: TuneConfig | None = None  # set by tune=…: search instead of one run
    experiment_name: str | None = None  # set by experiment=…
    seed: int = within(0, 0, 2**32 - 1)
    init_from: str | None = None  # weights to start from: a .ckpt file, or a directory of converted ones
    resume: str | None = None  # directory of a run to go on with
    extend: bool = False  # with resume=RUN trainer.max_steps=N: train a finished run further, with a new schedule
    extended: list[int] = field(default_factory=list)  # updates after which that was done; written, never given

    def __post_init__(self) -> None:
        validate("", self)
        require(
            self.resume is None,
            f"resume={self.resume} has an effect only on the command line, as in python train.py resume=DIR",
        )
        require(not self.extend, "extend=true goes with resume=RUN trainer.max_steps=N, to train that run further")


@dataclass
class EvaluateConfig:
    """Root of ``evaluate.py``'s options."""

    checkpoint: str = ""
    allow: list[str] = field(default_factory=list)  # packages whose classes the checkpoint may name
    task: str = "plan"  # plan: act; attention: see what the model looks at; predict: continue held-out episodes
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    episodes: int = within(20, 1)  # planned; or, with task=predict, held-out episodes to continue, at most
    num_envs: int = within(20, 1, 65_536)
    video: int = within(0, 0)
    max_episode_steps: int | None = within(None, 1)  # as evaluation.max_episode_steps of train.py
    seed: int = within(0, 0, 2**32 - 1)
    accelerator: str = "cpu"
    threads: int | None = within(None, 1, 4096)

    def __post_init__(self) -> None:
        validate("", self)
        require(bool(self.checkpoint), "checkpoint=PATH is needed: the .ckpt file to evaluate")
        require_module_names("allow", self.allow)
        require_choice("task", self.task, ("plan", "attention", "predict"))
        require_choice("accelerator", self.accelerator, ("cpu", "gpu", "mps", "auto"))
