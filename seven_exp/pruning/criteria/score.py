"""What a score is: evidence of weights and gradients in, one number for each weight out.

The kinds differ in what they look at: `Score` at the weights alone, `GradientScore` at the
gradients of steps or batches too, `ModelScore` at the model itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.masks import Masks

LossFunction = Callable[[nn.Module, Any], Tensor]
"""``loss_fn(model, batch)``: a scalar to be minimised."""

Mean = Callable[[list[Tensor]], list[Tensor]]
"""Replaces what one rank has computed by the mean over all ranks, in place."""


@dataclass
class State:
    """What a score has gathered; all of it survives a restart.

    Attributes:
        tensors: Name -> one tensor a layer.
        numbers: Name -> number. The pruner keeps "updates", the choices of masks so far, and
            "progress", how far through its window it was at the last of them.
    """

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, name: str) -> list[Tensor]:
        return self.tensors[name]

    @classmethod
    def zeros(cls, weights: Sequence[Tensor], *names: str) -> "State":
        """Zeros like the weights under each name, in the scores' precision."""
        return cls({n: [torch.zeros_like(w, dtype=precision(w)) for w in weights] for n in names})


class Score(ABC):
    """Ranks weights by the weights alone: the higher a score, the longer its weight is kept."""

    def init(self, weights: Sequence[Tensor]) -> State:
        """The state before any evidence.

        Args:
            weights: One tensor a layer, any shape.
        """
        return State()

    @abstractmethod
    def score(self, state: State, weights: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of finite scores a layer, shaped like its weight, float32 or wider.

        Before there is any evidence they are all equal.

        Args:
            state: Only read.
            weights: As they are now.
        """


class GradientScore(Score):
    """Ranks weights by the gradients of steps or batches, too."""

    @abstractmethod
    def update(self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Take in the evidence of one step.

        Args:
            state: Changed in place.
            weights: One tensor a layer, any shape.
            grads: The loss's gradients, same shapes, float32 or wider, finite. They belong to the
                score, which may overwrite them.
        """

    def observe(
        self, state: State, weights: Sequence[Tensor], grads: Sequence[Tensor | None]
    ) -> None:
        """`update` with gradients as autograd left them, which are copied and cleaned first.

        Args:
            state: Changed in place.
            weights: One tensor a layer, any shape.
            grads: Same shapes, any floating dtype; missing or broken ones count as 0. They belong
                to the optimizer and are only read.
        """
        self.update(state, weights, cleaned(grads, weights))

    def begin_round(self, state: State, weights: Sequence[Tensor]) -> State:
        """The state to begin a round of batches outside training with: by default, the same."""
        return state


class OnePassScore(GradientScore):
    """A gradient score that can choose masks in the pass over memory that updates it."""

    @abstractmethod
    def observe_and_choose(
        self,
        state: State,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        masks: Masks,
        k: int,
    ) -> bool:
        """`observe`, and the choice of the ``k`` best of the kept weights if that costs no more.

        Args:
            state: As for `observe`, as are weights and gradients.
            weights: One tensor a layer.
            grads: Same shapes.
            masks: So far.
            k: How many weights to keep in all.

        Returns:
            Whether the masks are chosen, and pruned weights zero; if not, both remain to be done.
        """


class CompensatingScore(GradientScore):
    """A gradient score that moves the survivors to where the loss is least."""

    @abstractmethod
    def compensate(
        self,
        state: State,
        weights: Sequence[Tensor],
        before: Sequence[Tensor],
        after: Sequence[Tensor],
    ) -> list[Tensor]:
        """Values that make the survivors stand in for the pruned.

        Args:
            state: Only read.
            weights: The weights as they are now, those about to be pruned included.
            before: Masks so far.
            after: The new masks; what they prune is set to zero afterwards.
        """


class ModelScore(ABC):
    """Ranks weights by the whole model on batches, outside training."""

    @abstractmethod
    def score(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
        mean: Mean,
    ) -> list[Tensor]:
        """One tensor of scores a layer, shaped like its weight.

        Args:
            model: Masked as it is so far.
            weights: Its prunable weights, zero where pruned.
            batches: The round's batches.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            mean: Gives the ranks, each of which has its own batches, the same tensors.

        Raises:
            FloatingPointError: The loss of a batch is not finite.
            ValueError: The loss is no scalar tensor, or has no gradient.
        """


def finite(loss: Any) -> Tensor:
    """The loss itself.

    Args:
        loss: What ``loss_fn`` has returned.

    Raises:
        FloatingPointError: It is not finite, and its gradients would tell nothing.
        ValueError: It is no scalar tensor, or has no gradient.
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
        raise FloatingPointError(f"the loss of a batch to prune by is {loss.item()}")
    return loss


def precision(weight: Tensor) -> torch.dtype:
    """The dtype scores are kept in: float32, or float64 for float64 weights."""
    return torch.promote_types(weight.dtype, torch.float32)


def cleaned(grads: Sequence[Tensor | None], weights: Sequence[Tensor]) -> list[Tensor]:
    """Copies in the scores' precision; a missing or broken gradient says nothing, so it is 0."""
    return [
        torch.zeros_like(weight, dtype=precision(weight))
        if grad is None
        else torch.nan_to_num(grad.detach().to(precision(weight)), nan=0.0, posinf=0.0, neginf=0.0)
        for grad, weight in zip(grads, weights, strict=True)
    ]


def magnitudes(weights: Sequence[Tensor]) -> list[Tensor]:
    """|w| of each layer, in the scores' precision."""
    return [weight.detach().abs().to(precision(weight)) for weight in weights]
