"""Which keys of a config a run reads: keys that it never reads do not distinguish runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from seven_exp.config import RunConfig


@dataclass(frozen=True)
class Pruning:
    """The pruning that a config asks for, as far as it decides which keys are read.

    Attributes:
        config: A checked config.
        prunes: Whether anything is pruned.
        when: When the pruner acts.
        scope: Name of the allocation.
        rounds: Mask updates of a "before" or "after" pruner, at each of its levels.
    """

    config: RunConfig
    prunes: bool
    when: Literal["before", "during", "after"]
    scope: str
    rounds: int

    @classmethod
    def of(cls, config: RunConfig) -> "Pruning":
        """The pruning of a checked config."""
        from seven_exp.pruning import PRUNERS

        pruner, spec = config.pruner, PRUNERS[config.pruner.name]
        return cls(
            config=config,
            prunes=spec.prunes and (config.sparsity > 0 or bool(pruner.sparsities)),
            when=pruner.when or spec.when,
            scope=pruner.scope or spec.scope,
            rounds=pruner.rounds or (1 if pruner.levels > 1 else spec.rounds),
        )

    @property
    def needs_batches(self) -> bool:
        """Whether it needs batches outside training."""
        from seven_exp.pruning import build_method, needs_batches

        return needs_batches(build_method(self.config.pruner.name, self.config.pruner.arguments))

    @property
    def calibrated(self) -> bool:
        """Whether a calibration set replaces the training batches outside training."""
        given = self.config.calibration is not None
        return given and self.outside_training and self.needs_batches

    @property
    def reads_training(self) -> bool:
        """Whether anything is trained, or takes gradients or inputs, on the training data."""
        config = self.config
        trains = config.trainer.max_steps != 0 or config.model.pretrain.epochs > 0
        return trains or (self.outside_training and self.needs_batches and not self.calibrated)

    @property
    def chosen(self) -> dict[str, Any]:
        """Keys of ``pruner`` that may be null, and the values that null stands for."""
        batches = self.config.pruner.batches_per_round or 1
        return {
            "when": self.when,
            "scope": self.scope,
            "rounds": self.rounds,
            "batches_per_round": batches,
        }

    @property
    def updates(self) -> int:
        """Total number of mask updates outside training."""
        return self.rounds * (self.config.pruner.levels if self.when == "after" else 1)

    @property
    def in_training(self) -> bool:
        """Whether masks are chosen step by step, in a window."""
        return self.prunes and self.when == "during"

    @property
    def outside_training(self) -> bool:
        """Whether masks are chosen in rounds, before or after training."""
        return self.prunes and self.when != "during"

    @property
    def after_training(self) -> bool:
        """Whether the last part of the training differs, as in rewound training."""
        return self.when == "after" and (self.prunes or self.config.pruner.rewind != "none")


READ_BY: Mapping[str, Callable[[Pruning], bool]] = {
    "schedule.name": lambda m: m.in_training or (m.outside_training and m.updates > 1),
    "schedule.begin_step": lambda m: m.in_training,
    "schedule.end_step": lambda m: m.in_training,
    "schedule.interval": lambda m: m.in_training,
    "schedule.levels": lambda m: m.in_training,
    "pruner.name": lambda m: True,
    "pruner.rounds": lambda m: m.outside_training,
    "pruner.batches_per_round": lambda m: (
        m.outside_training and m.needs_batches and not (m.calibrated and m.rounds == 1)
    ),
    "pruner.finetune_steps": lambda m: m.after_training,
    "pruner.levels": lambda m: m.after_training,
    "pruner.rewind": lambda m: m.when == "after",
    "trainer.epochs": lambda m: m.config.trainer.max_steps is None,
    "trainer.distill_temperature": lambda m: m.config.trainer.distill > 0,
    "model.pretrain.lr": lambda m: m.config.model.pretrain.epochs > 0,
    "model.pretrain.seed": lambda m: m.config.model.pretrain.epochs > 0,
}
"""Key -> whether a run reads it. A run that prunes reads all keys that are not listed; the dense
reference reads those except ``pruner`` and ``schedule``."""


def unread(pruning: Pruning) -> list[str]:
    """Dotted keys of the config that the run never reads, sorted."""
    config = pruning.config
    keys = {key for key, reads in READ_BY.items() if not reads(pruning)}
    if not pruning.prunes:
        own = {f"pruner.{key}" for key in config.pruner.model_dump()}
        keys |= own - READ_BY.keys()
    if config.calibration is not None and not pruning.calibrated:
        keys.add("calibration")
    return sorted(keys)
