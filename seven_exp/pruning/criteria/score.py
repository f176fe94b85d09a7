"""Scores: one number per weight, computed from evidence about the weights.

The kinds differ in what they read: `Score` reads weights, `GradientScore` also the gradients of
steps or batches, `ModelScore` runs the model itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.masks import Masks
from seven_exp.pruning.patterns import Pattern
from seven_exp.pruning.replicas import Group

Tensors = Sequence[Tensor]
"""One tensor per layer."""

LossFunction = Callable[[nn.Module, Any], Tensor]
"""``loss_fn(model, batch)``: a scalar to be minimised."""

Mean = Callable[[list[Tensor]], list[Tensor]]
"""Replaces tensors by their mean over all ranks, in place."""


@dataclass
class State:
    """The running statistics of a score; all of them are saved and restored.

    Attributes:
        tensors: Name -> one tensor per layer.
        numbers: Name -> number. The pruner sets "updates", the number of mask updates so far, and
            "progress", the completed fraction of its window at the latest update.
        shards: Ranks that each hold some rows of every tensor; None: this process holds all. The
            pruner sets it.
    """

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    shards: Group | None = None

    def __getitem__(self, name: str) -> list[Tensor]:
        return self.tensors[name]

    @classmethod
    def zeros(cls, weights: Tensors, *names: str) -> "State":
        """Zeros with the weights' shapes under each name, in the scores' precision."""
        return cls({n: [torch.zeros_like(w, dtype=precision(w)) for w in weights] for n in names})


class Score(ABC):
    """Scores weights by their values alone; weights with higher scores are kept longer."""

    def init(self, weights: Tensors) -> State:
        """The state before any evidence.

        Args:
            weights: One tensor per layer, any shape.
        """
        return State()

    @abstractmethod
    def score(self, state: State, weights: Tensors) -> list[Tensor]:
        """One tensor of finite scores per layer, with its weight's shape, float32 or wider.

        Before there is any evidence, all scores are equal.

        Args:
            state: Must not be changed.
            weights: The present weights.
        """


class Elementwise(Score):
    """Marks a score that a rank can compute from its own rows of the weights.

    The score of a weight depends on that weight, its gradients, and sums over ``state.shards``.
    """


class GradientScore(Score):
    """Scores weights by the gradients of steps or batches as well."""

    @abstractmethod
    def update(self, state: State, weights: Tensors, grads: Tensors) -> None:
        """Update the state with the gradients of one step.

        Args:
            state: Changed in place.
            weights: One tensor per layer, any shape.
            grads: The loss's gradients, same shapes, float32 or wider, finite. The score may
                overwrite them.
        """

    def observe(self, state: State, weights: Tensors, grads: Sequence[Tensor | None]) -> None:
        """Call `update` with a cleaned copy of autograd's gradients.

        Args:
            state: Changed in place.
            weights: One tensor per layer, any shape.
            grads: Same shapes, any floating dtype; missing or broken values count as 0. They are
                not changed.
        """
        self.update(state, weights, cleaned(grads, weights))

    def begin_round(self, state: State, weights: Tensors) -> State:
        """The state at the start of a round of batches outside training; default: unchanged."""
        return state


class OnePassScore(GradientScore):
    """A gradient score that can choose masks in the same pass over memory as its update."""

    @abstractmethod
    def observe_and_choose(
        self, state: State, weights: Tensors, grads: Sequence[Tensor | None], masks: Masks, k: int
    ) -> bool:
        """`observe`, and choose the ``k`` best of the kept weights if the same pass can do it.

        Args:
            state: As for `observe`.
            weights: As for `observe`.
            grads: As for `observe`.
            masks: The present masks.
            k: Total number of weights to keep.

        Returns:
            Whether the masks are chosen and pruned weights set to zero; if not, the caller does
            both.
        """


class CompensatingScore(GradientScore):
    """A gradient score that moves the kept weights to minimise the loss after pruning."""

    @abstractmethod
    def compensate(
        self, state: State, weights: Tensors, before: Tensors, after: Tensors
    ) -> list[Tensor]:
        """Values of the kept weights that compensate for the pruned ones.

        Args:
            state: Must not be changed.
            weights: The present weights, including those about to be pruned.
            before: The previous masks.
            after: The new masks; the weights that they prune are set to zero afterwards.
        """


class ModelScore(ABC):
    """Scores weights by running the whole model on batches, outside training."""

    def check(self, pattern: Pattern) -> None:  # noqa: B027  most scores fit all patterns
        """Raise ValueError, with the reason, if the score does not fit the pattern."""

    def init(self, weights: Tensors) -> State:
        """The state before the first scores, of the same dtypes."""
        return State.zeros(weights, "score")

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        weights: Tensors,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        mean: Mean,
    ) -> list[Tensor]:
        """One tensor of scores per layer, with its weight's shape.

        Args:
            model: The model with its present masks applied.
            weights: Its prunable weights, zero where pruned.
            batches: The round's batches.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            mean: Averages tensors over the ranks, each of which has its own batches.

        Raises:
            FloatingPointError: The loss of a batch is not finite.
            ValueError: The loss is not a scalar tensor, or has no gradient.
        """


def finite(loss: Any) -> Tensor:
    """Check a loss and return it.

    Args:
        loss: The return value of ``loss_fn``.

    Raises:
        FloatingPointError: It is not finite, so its gradients carry no information.
        ValueError: It is not a scalar tensor, or has no gradient.
    """
    if not isinstance(loss, Tensor):
        raise ValueError(f"loss_fn returned a {type(loss).__name__}: return a scalar tensor")
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn returned a tensor of shape {tuple(loss.shape)}: return a scalar, such as its "
            "mean"
        )
    if not loss.requires_grad:
        raise ValueError(
            "the loss that loss_fn returned has no gradient: do not detach it, and call prune() "
            "outside torch.no_grad() and torch.inference_mode()"
        )
    if not loss.isfinite():
        raise FloatingPointError(f"the loss of a calibration batch is {loss.item()}")
    return loss


def check_scores(name: str, scores: Any, weights: Tensors) -> None:
    """Raise ValueError unless there is one floating tensor a layer, shaped like its weight.

    Args:
        name: Of the pruner.
        scores: Returned by its score.
        weights: One tensor a layer.
    """
    given = scores if isinstance(scores, list | tuple) else []
    shapes = [tuple(s.shape) for s in given if isinstance(s, Tensor) and s.is_floating_point()]
    if shapes != [tuple(weight.shape) for weight in weights]:
        raise ValueError(
            f"score() of {name} must return a list of one floating tensor a layer, shaped like "
            f"its weight: {len(weights)} layers, the first of shape {tuple(weights[0].shape)}"
        )


def precision(weight: Tensor) -> torch.dtype:
    """The dtype of scores: float32, or float64 for float64 weights."""
    return torch.promote_types(weight.dtype, torch.float32)


def cleaned(grads: Sequence[Tensor | None], weights: Tensors) -> list[Tensor]:
    """Copies in the scores' precision, with 0 for missing or broken gradients."""
    return [
        torch.zeros_like(weight, dtype=precision(weight))
        if grad is None
        else torch.nan_to_num(grad.detach().to(precision(weight)), nan=0.0, posinf=0.0, neginf=0.0)
        for grad, weight in zip(grads, weights, strict=True)
    ]


def magnitudes(weights: Tensors) -> list[Tensor]:
    """|w| of each layer, in the scores' precision."""
    return [weight.detach().abs().to(precision(weight)) for weight in weights]
