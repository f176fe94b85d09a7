"""Regrowth: the value that a pruned weight returns with, and its optimizer moments."""

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seven_exp.pruning.criteria.score import Tensors
from seven_exp.pruning.layers import Layer
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.shards import held


class Regrowth:
    """Whether a pruned weight may return, and with which value. The base of all kinds.

    Args:
        layers: The pruner's layers.
        masks: Their masks, which the pruner changes.

    Attributes:
        memory: Dense weights stored outside the model, one tensor per layer, from the first step
            that needs them; None if the kind stores none.
    """

    def __init__(self, layers: Sequence[Layer], masks: Masks) -> None:
        self._layers, self._masks = layers, masks
        self.memory: list[Tensor] | None = None

    def begin(self, inside: bool) -> None:
        """Begin a training step, inside the pruner's window or not."""

    def forward(self) -> list[Tensor]:
        """The weights of the forward pass, for which the step's gradients were computed."""
        return self.dense()

    def dense(self) -> list[Tensor]:
        """The present weights, or this rank's rows; pruned ones as they would return."""
        return [held(weight).detach() for weight in self._weights()]

    def revive(self, before: Tensors, after: Tensors, values: Tensors) -> None:
        """Set the values of returning weights.

        Args:
            before: The layers' previous masks.
            after: The layers' new masks.
            values: The weights as `dense` returned them.
        """

    def store(self, values: Tensors | None = None) -> None:
        """Store the dense weights: the given ones, or the present ones."""

    def store_unmasked(self) -> None:
        """Store what the parameters hold at pruned positions, before the pruner sets it to zero."""

    def load(self, memory: list[Tensor] | None) -> None:
        """Continue with the memory of a saved pruner."""
        self.memory = memory

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self._layers]


class StayGone(Regrowth):
    """Pruned weights never return."""


class Moved(Regrowth):
    """Weights return with the value that the last optimizer step gave them, starting from zero."""


class FromZero(Regrowth):
    """Weights return from zero, and the optimizer's moments for them are cleared."""

    def __init__(
        self, layers: Sequence[Layer], masks: Masks, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(layers, masks)
        self._optimizer = optimizer

    def revive(self, before: Tensors, after: Tensors, values: Tensors) -> None:
        """Clear weights and moments."""
        for weight, old, new in zip(self._weights(), before, after, strict=True):
            places = new & ~old
            weight.data.masked_fill_(places, 0.0)
            for moment in self._optimizer.state.get(weight, {}).values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.masked_fill_(places, 0.0)


class Remembered(Regrowth):
    """Weights return with their own value, which is stored outside the model.

    Methods of this kind train dense weights W in a model that computes with ``W * mask``. Inside
    the window the optimizer therefore steps on W instead of ``W * mask``, with zero gradients at
    pruned positions, so that only momentum and weight decay act there. The criterion reads the
    original gradients, and W before the optimizer's step.

    Weights that the optimizer does not hold, or all weights without an optimizer, stay masked
    during its step. Their W is recorded when the gradient arrives and does not change while it is
    pruned; the moments at pruned positions follow the gradient of the pruned model.

    Args:
        layers: The pruner's layers.
        masks: Their masks, which the pruner changes.
        optimizer: Trains the weights. None outside training.
        watching: Whether the criterion calls `forward` during training.
    """

    hides_gradients = True

    def __init__(
        self,
        layers: Sequence[Layer],
        masks: Masks,
        optimizer: torch.optim.Optimizer | None = None,
        *,
        watching: bool = False,
    ) -> None:
        super().__init__(layers, masks)
        self._optimizer, self._watching = optimizer, watching
        self._inside = False
        # Index of a layer -> version of its weight, if the memory holds W of the forward pass.
        self._recorded: dict[int, int] = {}
        # Layers whose parameters hold W since the start of the optimizer's step.
        self._unmasked: set[int] = set()
        self._originals: list[tuple[nn.Parameter, Tensor]] = []
        self._gradient_hooks: list[RemovableHandle] = []
        self._attach()

    def begin(self, inside: bool) -> None:
        """Inside the window, record W of weights without an optimizer when the gradient arrives."""
        self._inside = inside
        for handle in self._gradient_hooks:
            handle.remove()
        self._gradient_hooks = []
        if not (inside and self._watching):
            return
        held = self._held()
        for i, weight in enumerate(self._weights()):
            if i not in held and weight.requires_grad:
                hook = _weakly(self, partial(Remembered._on_gradient, i=i))
                self._gradient_hooks.append(
                    weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                )

    def forward(self) -> list[Tensor]:
        """W of the forward pass; the present W if there was no backward pass or optimizer step."""
        if self.memory is None or not self._recorded:
            return self.dense()
        if len(self._recorded) == len(self._layers):
            return list(self.memory)
        pairs = enumerate(zip(self.memory, self.dense(), strict=True))
        return [old if i in self._recorded else now for i, (old, now) in pairs]

    def dense(self) -> list[Tensor]:
        """The present W: the parameters themselves if they hold it, else new tensors."""
        weights = super().dense()
        triples = zip(self._masks.unpacked(), weights, self.memory or weights, strict=True)
        return [
            weight if i in self._unmasked else torch.where(mask, weight, self._pruned(w, weight))
            for i, (mask, weight, w) in enumerate(triples)
        ]

    def revive(self, before: Tensors, after: Tensors, values: Tensors) -> None:
        """Write W to the parameters of returning weights."""
        for weight, value, old, new in zip(self._weights(), values, before, after, strict=True):
            torch.where(new & ~old, value.to(weight.dtype), weight, out=weight.data)

    def store(self, values: Tensors | None = None) -> None:
        """Store W in memory; the parameters' values at pruned positions are then not needed."""
        values = self.dense() if values is None else values
        self.memory = [w.clone() if i in self._unmasked else w for i, w in enumerate(values)]
        self._recorded, self._unmasked = {}, set()

    def store_unmasked(self) -> None:
        """Store W if the optimizer has stepped and the pruner has not."""
        if self._unmasked:
            self.store()

    def load(self, memory: list[Tensor] | None) -> None:
        """Continue with a saved memory."""
        super().load(memory)
        self._recorded, self._unmasked, self._originals = {}, set(), []

    def _pruned(self, remembered: Tensor, weight: Tensor) -> Tensor:
        """W at pruned positions, given the parameter's value there."""
        return remembered

    def _held(self) -> set[int]:
        """The layers whose weights the optimizer trains."""
        groups = self._optimizer.param_groups if self._optimizer else []
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        return {i for i, weight in enumerate(self._weights()) if id(weight) in trained}

    def _attach(self) -> None:
        """Register hooks on the optimizer for the lifetime of this object."""
        if self._optimizer is not None:
            for register, act in (
                (self._optimizer.register_step_pre_hook, Remembered._unmask),
                (self._optimizer.register_step_post_hook, Remembered._restore_gradients),
            ):
                weakref.finalize(self, register(_weakly(self, act)).remove)

    @torch.no_grad()
    def _on_gradient(self, weight: Tensor, *, i: int) -> None:
        """A gradient has arrived: the weights are still those of the forward pass."""
        if weight._version != self._recorded.get(i):
            self._record(set(range(len(self._layers))) - self._held(), self.dense())

    def _record(self, layers: set[int], dense: Tensors) -> None:
        memory = self.memory or dense
        self.memory = [dense[i] if i in layers else own for i, own in enumerate(memory)]
        self._recorded |= {i: self._layers[i].weight._version for i in layers}

    @torch.no_grad()
    def _unmask(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Before the optimizer's step: put W in the parameters."""
        if not self._inside:
            return
        if self._unmasked:
            self.store()
            self._masks.apply(self._weights())
            raise RuntimeError("call the pruner's step() after each optimizer.step()")
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise RuntimeError(
                "the optimizer's closure would run the model without its masks: call "
                "optimizer.step() without a closure, or create the pruner without optimizer="
            )
        held = self._held()
        self._record(held, self.dense())
        assert self.memory is not None
        for i, mask in enumerate(self._masks.unpacked()):
            weight = self._layers[i].weight
            if i not in held or self._masks.kept[i] == weight.numel():
                continue
            weight.data.copy_(self.memory[i])
            self._unmasked.add(i)
            if self.hides_gradients and weight.grad is not None:
                self._originals.append((weight, weight.grad))
                weight.grad = weight.grad.masked_fill(~mask, 0.0)

    @torch.no_grad()
    def _restore_gradients(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """After the optimizer's step: restore the criterion's gradients."""
        scale = getattr(optimizer, "grad_scale", None)
        for weight, grad in self._originals:
            # Fused optimizers unscale the gradients that they receive.
            weight.grad = grad if scale is None else grad.div_(scale)
        self._originals = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_gradient_hooks": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()
        self.begin(self._inside)


class StraightThrough(Remembered):
    """Weights return with their own value; meanwhile the gradient at the pruned model trains it.

    Without an optimizer, the change that the training step makes to a pruned position, which starts
    at zero, is added to W instead; weight decay does not reach W there.
    """

    hides_gradients = False

    def _pruned(self, remembered: Tensor, weight: Tensor) -> Tensor:
        return remembered + weight


def _weakly(owner: Remembered, act: Callable[..., None]) -> Callable[..., None]:
    """A hook that does nothing once its owner is garbage-collected."""
    reference = weakref.ref(owner)

    def hook(*args: Any) -> None:
        alive = reference()
        if alive is not None:
            act(alive, *args)

    return hook


def regrowth_of(
    kind: type[Regrowth],
    layers: Sequence[Layer],
    masks: Masks,
    optimizer: torch.optim.Optimizer | None,
    *,
    training: bool,
    watching: bool,
) -> Regrowth:
    """Make a kind of regrowth for some weights.

    Args:
        kind: The kind that the method declares.
        layers: The pruner's layers.
        masks: Their masks.
        optimizer: Trains the weights.
        training: Whether masks change during training. Outside training no optimizer changes the
            weights, so those that return keep their value.
        watching: Whether the method reads weights and gradients of training steps.

    Raises:
        TypeError: Weights return from zero during training, but there is no optimizer.
    """
    if not training and kind is not StayGone:
        kind = StraightThrough if kind is StraightThrough else Remembered
        return kind(layers, masks)
    if issubclass(kind, FromZero):
        if optimizer is None:
            raise TypeError("FromZero needs the optimizer, whose moments it clears")
        return kind(layers, masks, optimizer)
    if issubclass(kind, Remembered):
        return kind(layers, masks, optimizer, watching=watching)
    return kind(layers, masks)
