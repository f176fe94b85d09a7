"""The complete state of a training between two steps, which is what a checkpoint holds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import nn

from seven_exp.analysis import Probe
from seven_exp.messages import one_line
from seven_exp.pruning import Pruner
from seven_exp.tasks import Task
from seven_exp.training.averaging import Average
from seven_exp.training.loop import Tally
from seven_exp.training.randomness import generator_states, set_generator_states
from seven_exp.training.rewinding import Snapshot
from seven_exp.training.sharding import gathered, scattered_model, scattered_optimizer
from seven_exp.training.world import World


@dataclass
class Outcome:
    """A run's results so far.

    Attributes:
        metric: The task's headline.
        metrics: Of the test split, at the end.
        validation: Of the validation split, the latest.
        best: Of the validation split, the best ones with final masks, and their step.
        levels: Step, sparsity and metrics of the validation split at the end of each level.
        steps: Number of steps.
        seconds: Duration of training.
        seconds_pruning: Part of it that the pruner took.
    """

    metric: str
    metrics: dict[str, float] = field(default_factory=dict)
    validation: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    levels: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    seconds_pruning: float = 0.0

    def add(self, step: int, metrics: dict[str, float], task: Task, *, settled: bool) -> bool:
        """Add metrics of the validation split; return whether they are the best settled ones."""
        self.validation = metrics
        if not settled:
            return False
        if self.best and not task.better(metrics[self.metric], self.best[self.metric]):
            return False
        self.best = {**metrics, "step": step}
        return True


@dataclass
class State:
    """A model, its optimizer and pruner, and the results so far.

    The order of the data is not stored: epochs are pure functions of the seed and their
    number. The learning rate and the schedule are functions of the step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    pruner: Pruner
    outcome: Outcome
    tally: Tally
    world: World = field(default_factory=World)
    rewound: list[Snapshot] = field(default_factory=list)
    probe: Probe | None = None
    average: Average | None = None
    scaler: torch.amp.GradScaler | None = None

    @property
    def evaluated(self) -> nn.Module:
        """The model whose metrics count: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.model

    def saved(self) -> dict[str, Any]:
        """Containers of tensors, numbers and strings; masks packed to bits. Called on all ranks.

        Only the main rank gets the tensors that the ranks share.
        """
        states = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict(),
            "outcome": vars(self.outcome),
            "tally": vars(self.tally),
            "rewound": [snapshot.states for snapshot in self.rewound],
            "probe": None if self.probe is None else self.probe.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "generators": self.world.gather(generator_states()),
        }
        return cast(dict[str, Any], gathered(states, keep=self.world.main))

    def load(self, saved: Mapping[str, Any]) -> None:
        """Restore what `saved` returned, on as many ranks or on others.

        Of more ranks than before, the new ones keep their random generators.

        Raises:
            ValueError: It belongs to another model or another version.
        """
        rates = [group["lr"] for group in self.optimizer.param_groups]
        try:
            self.model.load_state_dict(scattered_model(saved["model"], self.model))
            self.optimizer.load_state_dict(scattered_optimizer(saved["optimizer"], self.optimizer))
            self.pruner.load_state_dict(saved["pruner"])
            # In place: the record of the run holds it, too.
            vars(self.outcome).update(vars(Outcome(**saved["outcome"])))
            self.tally = Tally(**saved["tally"])
            self.rewound = [
                Snapshot(
                    self.model,
                    self.optimizer,
                    (
                        scattered_model(weights, self.model),
                        scattered_optimizer(moments, self.optimizer),
                    ),
                )
                for weights, moments in saved["rewound"]
            ]
            if self.probe is not None and saved["probe"] is not None:
                self.probe.load_state_dict(saved["probe"])
            if self.average is not None:
                self.average.model.load_state_dict(saved["average"])
            if self.scaler is not None:
                self.scaler.load_state_dict(saved["scaler"])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(one_line(error)) from error
        self.tally.sums = self.tally.sums.to(next(self.model.parameters()).device)
        # The loop multiplies the base rates, which an optimizer in use no longer holds.
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        for states in saved["generators"][self.world.rank : self.world.rank + 1]:
            set_generator_states(states)
