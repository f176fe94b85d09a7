"""The sections of ``conf/``: every key and its range.

A key with a default here has no effect at that value: a run with it is the same as one of before
the key existed, and has the same hash.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, le=1)]
Steps = Annotated[int, Field(ge=0, strict=True)] | Annotated[Fraction, Field(strict=True)]
"""An integer counts steps; a decimal is a fraction of the training."""


def moment(value: int | float, steps: int) -> int:
    """Number of steps that `Steps` stands for in a training of this length."""
    return value if isinstance(value, int) else round(value * steps)


Seed = Annotated[int, Field(ge=0, lt=2**32)]
"""Seeds that every generator accepts."""

RULES = ConfigDict(protected_namespaces=(), allow_inf_nan=False)
"""Settings shared by all pydantic models here."""


class _Section(BaseModel):
    model_config = ConfigDict(**RULES, extra="forbid", frozen=True)


class _Named(_Section):
    """A section that also holds the keyword arguments of the thing that it names."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for the thing of this name."""
        return dict(self.model_extra or {})


class Pretrain(_Section):
    """Dense training before the run."""

    epochs: Annotated[int, Field(ge=0)]
    lr: Annotated[float, Field(gt=0)]
    seed: Seed


class Model(_Named):
    """conf/model."""

    pretrain: Pretrain
    checkpoint: str | None
    freeze: list[str]
    stochastic_depth: Annotated[float, Field(ge=0, lt=1)] | None = None
    biases: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments for the model's factory."""
        own = {"stochastic_depth": self.stochastic_depth, "biases": self.biases or None}
        return super().arguments | {key: value for key, value in own.items() if value is not None}

    @property
    def title(self) -> str:
        """The name in tables: with the architecture, where one name stands for many."""
        arch = self.arguments.get("arch")
        return self.name if arch is None else f"{self.name}/{arch}"


class Dataset(_Named):
    """conf/dataset."""

    validation: Annotated[float, Field(ge=0, lt=1)] | None
    limit: (
        Annotated[int, Field(ge=1, strict=True)] | Annotated[float, Field(gt=0, le=1, strict=True)]
    ) | None = None
    transforms: dict[str, dict[str, Any] | None] | None = None
    metrics: list[str] = []

    @property
    def title(self) -> str:
        """The name in tables: with the set's own name, where one name stands for many."""
        known = self.arguments
        if "repository" not in known:
            return self.name
        place = str(known["repository"] or known["data_dir"]).rstrip("/").rpartition("/")[2]
        return "/".join([self.name, place, *([known["subset"]] if known["subset"] else [])])


class Calibration(_Section):
    """conf/calibration: the sequences that a pruner sees outside training."""

    name: str
    samples: Annotated[int, Field(ge=1)]
    length: Annotated[int, Field(ge=2)]
    batch_size: Annotated[int, Field(ge=1)]
    data_dir: str | None


class Evaluation(_Section):
    """Zero-shot tasks that a language model is evaluated on at the end of its run."""

    tasks: list[str] = []
    include_path: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 1


class Pruner(_Named):
    """conf/pruner."""

    when: Literal["before", "during", "after"] | None
    scope: str | None
    sparsities: dict[str, Annotated[float, Field(ge=0, lt=1)]] | None
    pattern: str
    min_density: Annotated[float, Field(ge=0, lt=1)]
    include: list[str] | None
    exclude: list[str] | None
    exclude_defaults: bool
    misfits: Literal["error", "dense"]
    rounds: Annotated[int, Field(ge=1)] | None
    batches_per_round: Annotated[int, Field(ge=1)] | None
    finetune_steps: Steps
    levels: Annotated[int, Field(ge=1)]
    rewind: Literal["none", "lr", "weights"]


class Schedule(_Section):
    """conf/schedule."""

    name: str
    begin_step: Steps
    end_step: Steps
    interval: Annotated[int, Field(ge=1, strict=True)] | Annotated[Fraction, Field(strict=True)]
    levels: Annotated[int, Field(ge=1)] | None


class Optimizer(_Named):
    """conf/optimizer."""

    lr: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    lr_schedule: str
    warmup_steps: Steps
    lr_options: dict[str, Any] | None = None
    decay_norms_and_biases: bool = False


class Trainer(_Section):
    """conf/trainer."""

    epochs: Annotated[int, Field(ge=1)] | None
    max_steps: Annotated[int, Field(ge=0)] | None
    batch_size: Annotated[int, Field(ge=1)]
    accumulate: Annotated[int, Field(ge=1)]
    distill: Fraction
    distill_hidden: Annotated[float, Field(ge=0)]
    distill_temperature: Annotated[float, Field(gt=0)]
    grad_clip: Annotated[float, Field(gt=0)] | None
    precision: Literal["fp32", "bf16", "fp16"]
    gradient_checkpointing: bool
    compile: bool
    log_interval: Annotated[int, Field(ge=1)]
    eval_interval: Annotated[int, Field(ge=0)] | None
    save_model: bool
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    sam_rho: Annotated[float, Field(gt=0)] | None = None
    sharding: Literal["none", "fsdp"] = "none"


class Analysis(_Section):
    """Measurements of gradients and masks during a run."""

    every: Annotated[int, Field(ge=1, strict=True)] | None
    start_batches: Annotated[int, Field(ge=0)]
    bins: Annotated[int, Field(ge=2, le=512)]


class Tracker(_Section):
    """conf/tracker; if a key is null, W&B's own settings decide."""

    mode: Literal["online", "offline", "disabled"] | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: list[str] | None = None
    notes: str | None = None
    artifacts: Literal["none", "masks", "model"] = "masks"
    view: bool = True
    also: list[str] = []


Contrast = Annotated[str, Field(pattern=r"^[^:]+:.*[^:]$")]


class Compare(_Section):
    """What the comparison of the runs shall test, stated before they start."""

    contrasts: list[Contrast]
    margin: Annotated[float, Field(gt=0)] | None


class Run(_Section):
    """Whether and how a run is executed; these keys do not change its result."""

    skip_finished: bool | None
    force: bool
    wait: Annotated[float, Field(ge=0)]
    checkpoint_interval: Annotated[int, Field(ge=0)] | None
    keep: Annotated[int, Field(ge=1)]


class RunConfig(_Section):
    """One run, as Hydra composed it."""

    sparsity: Annotated[float, Field(ge=0, lt=1)]
    seed: Seed
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")]
    threads: Annotated[int, Field(ge=1)] | None
    output_root: str
    cache_dir: str
    plugins: list[str]
    tuned: str | None
    run: Run
    model: Model
    dataset: Dataset
    calibration: Calibration | None
    evaluation: Evaluation = Evaluation()
    pruner: Pruner
    schedule: Schedule
    optimizer: Optimizer
    trainer: Trainer
    analysis: Analysis
    compare: Compare
    tracker: Tracker
