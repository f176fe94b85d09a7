"""When things happen in a run, in optimizer steps."""

from dataclasses import dataclass
from typing import Literal

from seven_exp.config import ConfigError, RunConfig
from seven_exp.pruning import PRUNERS, Schedule


@dataclass(frozen=True)
class Plan:
    """Steps of a run; a moment m is "after m steps are done".

    Attributes:
        steps: Optimizer steps in all.
        when: When the pruner acts.
        begin: Start of the window, "during" only.
        end: End of the window, "during" only.
        interval: Steps between choices of masks, "during" only.
        prune_at: Moment of `Pruner.prune`; None for "during".
        warmup: Steps over which the learning rate rises.
        log_interval: Steps between reports.
        eval_interval: Steps between evaluations.
    """

    steps: int
    when: Literal["before", "during", "after"]
    begin: int
    end: int
    interval: int
    prune_at: int | None
    warmup: int
    log_interval: int
    eval_interval: int

    @classmethod
    def of(cls, config: RunConfig, batches_per_epoch: int) -> "Plan":
        """The plan for training data of so many batches.

        Raises:
            ConfigError: The config leaves no steps, or its windows do not fit into them.
        """
        trainer = config.trainer
        if batches_per_epoch < 1:
            raise ConfigError(f"dataset.name is '{config.dataset.name}': it has no training data")
        if trainer.max_steps is not None:
            steps = trainer.max_steps
        elif trainer.epochs is not None:
            steps = trainer.epochs * batches_per_epoch
        else:
            raise ConfigError("trainer.epochs is None: give trainer.epochs or trainer.max_steps")
        when = config.pruner.when or PRUNERS[config.pruner.name].when
        begin, end = (
            _moment(value, steps)
            for value in (config.schedule.begin_step, config.schedule.end_step)
        )
        interval = max(1, _moment(config.schedule.interval, steps))
        if when == "during":
            _check_window(config, begin, end, interval, steps)
        finetune = _moment(config.pruner.finetune_steps, steps)
        if when == "after" and finetune > steps:
            raise ConfigError(
                f"pruner.finetune_steps is {finetune}: the training has {steps} steps in all"
            )
        if when == "during" and config.pruner.rounds is not None:
            raise ConfigError(
                f"pruner.rounds is {config.pruner.rounds}: {config.pruner.name} prunes during "
                "training, where schedule.interval counts; choose null"
            )
        return cls(
            steps=steps,
            when=when,
            begin=begin,
            end=end,
            interval=interval,
            prune_at={"before": 0, "during": None, "after": steps - finetune}[when],
            warmup=cls.warmup_steps(config, steps),
            log_interval=trainer.log_interval,
            eval_interval=trainer.eval_interval or batches_per_epoch,
        )

    @property
    def settled(self) -> int:
        """First moment at which the masks are final."""
        return self.end if self.prune_at is None else self.prune_at

    @staticmethod
    def warmup_steps(config: RunConfig, steps: int) -> int:
        """Steps of a training of ``steps`` over which the learning rate rises."""
        return _moment(config.optimizer.warmup_steps, steps)

    def evaluates(self, done: int) -> bool:
        """Whether the model is evaluated after so many steps."""
        return done % self.eval_interval == 0 or done == self.steps

    def reports(self, done: int) -> bool:
        """Whether figures are wanted after so many steps."""
        return done % self.log_interval == 0 or self.evaluates(done)


def _moment(value: int | float, steps: int) -> int:
    """Integers are steps already; decimals are fractions of the training."""
    return value if isinstance(value, int) else round(value * steps)


def _check_window(config: RunConfig, begin: int, end: int, interval: int, steps: int) -> None:
    for key, moment in (("begin_step", begin), ("end_step", end)):
        if moment > steps:
            raise ConfigError(
                f"schedule.{key} is {getattr(config.schedule, key)}: the training has {steps} "
                f"steps; the nearest valid choice is {steps}"
            )
    try:
        Schedule(config.schedule.name, begin, end, interval, config.schedule.levels)
    except ValueError as error:
        raise ConfigError(f"schedule.{error}") from None
