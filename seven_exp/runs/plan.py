"""When things happen in a run, in optimizer steps."""

from dataclasses import dataclass
from typing import Literal

from seven_exp.config import ConfigError, RunConfig, moment
from seven_exp.pruning import Gradual
from seven_exp.runs.reads import Pruning


@dataclass(frozen=True)
class Plan:
    """The steps of a run; a moment m means "after m steps".

    Attributes:
        steps: Total number of optimizer steps.
        when: When the pruner acts.
        begin: Start of the window, "during" only.
        end: End of the window, "during" only.
        interval: Steps between mask updates, "during" only.
        prune_at: Moments of `Pruner.prune`, ascending; none for "during".
        batches_per_round: Number of batches in each of the pruner's rounds.
        settled: First moment with final masks.
        retrain: Steps of training after each pruning, "after" only.
        rewind: What is rewound before each retraining: nothing, the learning rate, or also the
            weights.
        warmup: Steps over which the learning rate rises.
        log_interval: Steps between reports.
        eval_interval: Steps between evaluations.
        analysis_interval: Steps between measurements of gradients and masks; None: none.
        checkpoint_interval: Steps between checkpoints, 0: none; None: one at each evaluation.
    """

    steps: int
    when: Literal["before", "during", "after"]
    begin: int
    end: int
    interval: int
    prune_at: tuple[int, ...]
    batches_per_round: int
    settled: int
    retrain: int
    rewind: Literal["none", "lr", "weights"]
    warmup: int
    log_interval: int
    eval_interval: int
    analysis_interval: int | None
    checkpoint_interval: int | None

    @classmethod
    def of(cls, config: RunConfig, batches_per_epoch: int) -> "Plan":
        """The plan for training data with this many batches.

        Raises:
            ConfigError: The config leaves no steps, or its windows do not fit into them.
        """
        trainer = config.trainer
        if batches_per_epoch < 1:
            raise ConfigError(f"dataset.name is '{config.dataset.name}': it has no training data")
        steps_per_epoch = max(1, batches_per_epoch // trainer.accumulate)
        if trainer.max_steps is not None:
            steps = trainer.max_steps
        elif trainer.epochs is not None:
            steps = steps_of(trainer.epochs, batches_per_epoch, trainer.accumulate)
        else:
            raise ConfigError("trainer.epochs is None: give trainer.epochs or trainer.max_steps")
        pruning = Pruning.of(config)
        when = pruning.when
        begin, end = (
            moment(value, steps) for value in (config.schedule.begin_step, config.schedule.end_step)
        )
        interval = max(1, moment(config.schedule.interval, steps))
        if pruning.in_training and steps == 0:
            raise ConfigError(
                f"trainer.max_steps is 0: {config.pruner.name} prunes during training; the nearest "
                "valid choice is 1"
            )
        if when == "during" and steps:
            _check_window(config, begin, end, interval, steps)
        retrain, levels = 0, config.pruner.levels
        prune_at: tuple[int, ...] = (0,) if when == "before" else ()
        if when == "after":
            retrain = moment(config.pruner.finetune_steps, steps) // levels
            first = steps - levels * retrain
            prune_at = tuple(first + level * retrain for level in range(levels))
            _check_retraining(config, steps, first, retrain)
        elif levels > 1 or config.pruner.rewind != "none":
            key, value = ("levels", levels) if levels > 1 else ("rewind", config.pruner.rewind)
            raise ConfigError(
                f"pruner.{key} is {value}: only pruning after training is repeated or rewound, "
                f"and {config.pruner.name} prunes {when} it"
            )
        if when == "during" and config.pruner.rounds is not None:
            raise ConfigError(
                f"pruner.rounds is {config.pruner.rounds}: {config.pruner.name} prunes during "
                "training, where schedule.interval counts; choose null"
            )
        if when == "after" and not pruning.after_training:
            prune_at = ()
        settled = prune_at[-1] if prune_at else end
        return cls(
            steps=steps,
            when=when,
            begin=begin,
            end=end,
            interval=interval,
            prune_at=prune_at,
            batches_per_round=config.pruner.batches_per_round or 1,
            settled=settled if pruning.prunes else 0,
            retrain=retrain,
            rewind=config.pruner.rewind,
            warmup=moment(config.optimizer.warmup_steps, steps),
            log_interval=trainer.log_interval,
            eval_interval=trainer.eval_interval or steps_per_epoch,
            analysis_interval=config.analysis.every,
            checkpoint_interval=config.run.checkpoint_interval,
        )

    @property
    def rewind_to(self) -> int | None:
        """Moment whose weights, or learning rate, are restored at each pruning."""
        return None if self.rewind == "none" else self.prune_at[0] - self.retrain

    def lr_place(self, step: int) -> tuple[int, int]:
        """Position of step ``step`` in the learning rate's schedule, and the schedule's length.

        With rewinding, the rate has decayed fully when pruning starts, and repeats its last
        ``retrain`` steps after each pruning (Renda et al., arXiv 2003.02389).
        """
        if self.rewind_to is None:
            return step, self.steps
        end = self.prune_at[0]
        if step < end:
            return step, end
        return self.rewind_to + (step - end) % self.retrain, end

    def evaluates(self, done: int) -> bool:
        """Whether the model is evaluated after this many steps."""
        return done % self.eval_interval == 0 or done == self.steps

    def measures(self, done: int) -> bool:
        """Whether gradients and masks are measured after this many steps."""
        if self.analysis_interval is None:
            return False
        return done % self.analysis_interval == 0 or done == self.steps

    def reports(self, done: int) -> bool:
        """Whether metrics are reported after this many steps."""
        return done % self.log_interval == 0 or self.evaluates(done) or self.measures(done)

    def saves(self, done: int) -> bool:
        """Whether a checkpoint is written after this many steps; one follows pruning at step 0."""
        if self.checkpoint_interval is None:
            return done == 0 or self.evaluates(done)
        return self.checkpoint_interval > 0 and done % self.checkpoint_interval == 0


def steps_of(epochs: int, batches_per_epoch: int, accumulate: int) -> int:
    """Steps of ``accumulate`` batches in this many epochs; remaining batches are dropped."""
    return max(1, epochs * batches_per_epoch // accumulate)


def _check_retraining(config: RunConfig, steps: int, first: int, retrain: int) -> None:
    asked, levels = config.pruner.finetune_steps, config.pruner.levels
    if first < 0:
        raise ConfigError(f"pruner.finetune_steps is {asked}: the training has {steps} steps")
    if levels > 1 and retrain == 0:
        raise ConfigError(
            f"pruner.levels is {levels}: finetune_steps {asked} of {steps} leave no step for each"
        )
    if config.pruner.rewind != "none" and retrain > first:
        raise ConfigError(
            f"pruner.finetune_steps is {asked}: each of {levels} levels would rewind {retrain} "
            f"steps, but only {first} lie before the first"
        )


def _check_window(config: RunConfig, begin: int, end: int, interval: int, steps: int) -> None:
    late = [key for key, at in (("begin_step", begin), ("end_step", end)) if at > steps]
    if late:
        raise ConfigError(
            *(
                f"schedule.{key} is {getattr(config.schedule, key)}: the training has {steps} "
                f"steps; the nearest valid choice is {steps}"
                for key in late
            )
        )
    try:
        Gradual(config.schedule.name, begin, end, interval, config.schedule.levels)
    except ValueError as error:
        raise ConfigError(f"schedule.{error}") from None
