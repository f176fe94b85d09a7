"""What a criterion is: evidence gathered from weights and gradients, and scores made of it."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from seven_exp.pruning.evidence import NoEvidenceError, informative
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.patterns import Pattern
from seven_exp.pruning.replicas import Group, average

Revival = Literal["never", "moved", "zero", "remembered", "trained"]
"""A pruned weight stays gone; or may return with the value to which the last optimizer step has
moved it from zero; from zero, with cleared moments; with its own value, which has had no gradient
while it was pruned; or with its own value, trained meanwhile by the gradient at the pruned model.
Outside training nothing moves weights, and all that may return keep their value."""

LossFunction = Callable[[nn.Module, Any], Tensor]
"""``loss_fn(model, batch)``: a scalar to be minimised."""


class Criterion:
    """Ranks weights: the higher a score, the longer its weight is kept.

    Subclasses implement `scores` and, if they gather evidence step by step, `update`. Tensors that
    must survive a restart go into ``self.state``, as one list a name with one tensor a layer;
    numbers go into ``self.numbers``.
    """

    uses_gradients: ClassVar[bool] = False
    """Whether `update` needs gradients, and pruning outside training therefore needs batches."""

    revival: ClassVar[Revival] = "never"
    """Whether a pruned weight may come back, and with which value."""

    only_before: ClassVar[bool] = False
    """Whether `measure` needs the model itself, so that `Pruner.step` can't do its work."""

    starts_sparse: ClassVar[bool] = False
    """Whether the first masks are chosen by `scores`, as soon as pruning starts."""

    at_once: ClassVar[bool] = False
    """Whether `observe_and_choose` may choose, so that it is worth asking."""

    def __init__(self) -> None:
        self.state: dict[str, list[Tensor]] = {}
        self.numbers: dict[str, float] = {}
        self.group: Group | None = None
        """Ranks with replicas of the model, each of which sees other batches."""
        self.pattern = Pattern()
        """Which sets of weights may go together."""

    def update(self, weights: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Take in the evidence of one step.

        Args:
            weights: One tensor a layer, any shape.
            grads: The loss's gradients, same shapes, float32 or wider, finite. They belong to the
                criterion, which may overwrite them.
        """

    def observe(self, weights: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
        """`update` with gradients as autograd left them, which are copied and cleaned first.

        Args:
            weights: One tensor a layer, any shape.
            grads: Same shapes, any floating dtype; missing or broken ones count as 0. They belong
                to the optimizer and are only read.
        """
        self.update(weights, cleaned(grads, weights))

    def observe_and_choose(
        self,
        weights: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        masks: Masks,
        k: int,
    ) -> bool:
        """`observe`, and the choice of the ``k`` best of the kept weights if that costs no more.

        Args:
            weights: One tensor a layer.
            grads: As for `observe`.
            masks: So far.
            k: How many weights to keep in all.

        Returns:
            Whether the masks are those chosen, and pruned weights zero; if not, they remain to be.
        """
        self.observe(weights, grads)
        return False

    def scores(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """One tensor of finite scores a layer, shaped like its weight, float32 or wider.

        Before there is any evidence they are all equal.

        Args:
            weights: The weights as they are now.
        """
        raise NotImplementedError

    def rank(
        self, weights: Sequence[Tensor], masks: Sequence[Tensor], progress: float, density: float
    ) -> list[Tensor]:
        """What the next masks are chosen by: `scores`, unless more matters.

        Args:
            weights: The weights as they are now.
            masks: Bool, which of them are alive.
            progress: How far through its window the pruner is, in (0, 1].
            density: Fraction of these weights that will be kept.
        """
        return self.scores(weights)

    def ceiling(self, progress: float) -> float:
        """Sparsity beyond which the criterion prunes nothing, whatever the schedule asks for."""
        return 1.0

    def compensate(
        self, weights: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> list[Tensor] | None:
        """Values that make the survivors stand in for the pruned; None leaves them as they are.

        Args:
            weights: The weights as they are now, those about to be pruned included.
            before: Masks so far.
            after: The new masks; what they prune is set to zero afterwards.
        """
        return None

    def measure(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        values: Sequence[Tensor],
        batches: Sequence[Any],
        loss_fn: LossFunction,
    ) -> None:
        """Take in the evidence of one round outside training: by default, `update` on each batch.

        Args:
            model: Masked as it is so far.
            weights: Its prunable weights, zero where pruned.
            values: The same, pruned ones as they would come back.
            batches: The round's batches.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.

        Raises:
            FloatingPointError: The loss of a batch is not finite.
            NoEvidenceError: The loss depends on no prunable weight.
            ValueError: The loss is no scalar tensor, or has no gradient.
        """
        for batch in batches:
            loss = finite(loss_fn(model, batch))
            grads = torch.autograd.grad(loss, list(weights), allow_unused=True)
            if all(grad is None for grad in grads):
                raise NoEvidenceError(
                    "the loss depends on none of the weights to prune: loss_fn(model, batch) must "
                    "call the model that it is given"
                )
            with torch.no_grad():
                seen = grads if self.group is None else self.averaged(cleaned(grads, weights))
                if informative(seen):
                    self.observe(values, seen)

    def averaged(self, evidence: list[Tensor]) -> list[Tensor]:
        """What every rank has seen of its own batches, as their mean on all of them."""
        average(evidence, self.group)
        return evidence

    def zeros(self, name: str, weights: Sequence[Tensor]) -> list[Tensor]:
        """The state tensors called ``name``, zero at first use, in the scores' precision."""
        if name not in self.state:
            self.state[name] = [torch.zeros_like(w, dtype=precision(w)) for w in weights]
        return self.state[name]


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
