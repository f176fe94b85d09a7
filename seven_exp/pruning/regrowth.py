"""Regrowth: the value a pruned weight returns with, and what the optimizer holds for it by then."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from seven_exp.pruning.layers import Layer
from seven_exp.pruning.masks import Masks


class Regrowth:
    """Whether a pruned weight may return, and with which value. What is common to all kinds.

    Args:
        layers: The pruner's layers.
        masks: Their masks, which the pruner changes.

    Attributes:
        memory: Dense weights kept beside the model, one tensor a layer, from the first step on that
            needs them; None where the kind keeps none.
    """

    def __init__(self, layers: Sequence[Layer], masks: Masks) -> None:
        self._layers, self._masks = layers, masks
        self.memory: list[Tensor] | None = None

    def begin(self, inside: bool) -> None:
        """Begin a training step, inside the pruner's window or not."""

    def forward(self) -> list[Tensor]:
        """The weights that the step's gradients belong to, as the criterion wants them."""
        return self.dense()

    def dense(self) -> list[Tensor]:
        """The weights now, pruned ones with the value that they would return with."""
        return [weight.detach() for weight in self._weights()]

    def revive(
        self,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        values: Mapping[int, Tensor],
    ) -> None:
        """Give the weights of some layers that return their value.

        Args:
            before: The layers' masks so far.
            after: Their new masks.
            values: Layer -> its weights as `dense` gave them, in the order of the masks.
        """

    def settle(self, values: Mapping[int, Tensor] | None = None) -> None:
        """Keep the dense weights: those given, layer by layer, or all as they are now."""

    def reclaim(self) -> None:
        """Take back what the parameters hold of pruned weights, before these are set to zero."""

    def load(self, memory: list[Tensor] | None) -> None:
        """Continue with the memory that another pruner has saved."""
        self.memory = memory

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self._layers]


class StayGone(Regrowth):
    """Pruned weights never return."""


class Moved(Regrowth):
    """Weights return with the value to which the last optimizer step has moved them from zero."""


class FromZero(Regrowth):
    """Weights return from zero, and the optimizer's moments for them are cleared."""

    def __init__(
        self, layers: Sequence[Layer], masks: Masks, optimizer: torch.optim.Optimizer
    ) -> None:
        super().__init__(layers, masks)
        self._optimizer = optimizer

    def revive(
        self,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        values: Mapping[int, Tensor],
    ) -> None:
        """Clear weights and moments."""
        for i, old, new in zip(values, before, after, strict=True):
            weight, places = self._layers[i].weight, new & ~old
            weight.data.masked_fill_(places, 0.0)
            for moment in self._optimizer.state.get(weight, {}).values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.masked_fill_(places, 0.0)


class Remembered(Regrowth):
    """Weights return with their own value, which is kept beside the model.

    Methods of this kind train dense weights W in a model that computes with ``W * mask``. Inside
    the window the optimizer therefore finds W in place of ``W * mask`` while it steps, and a
    gradient of zero at pruned places, so that only momentum and weight decay act there. The
    criterion sees the gradients as they were, and W before the optimizer's step.

    Weights that the optimizer does not hold, or all of them without an optimizer, stay masked
    during its step. W is then noted when the gradient arrives and rests while it is pruned; the
    moments at pruned places follow the gradient of the pruned model.

    Args:
        layers: The pruner's layers.
        masks: Their masks, which the pruner changes.
        optimizer: It trains the weights. None outside training.
        watching: Whether the criterion asks for `forward` while the model is trained.
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
        # Layer -> version of the weight, where the memory holds W of the forward pass.
        self._noted: dict[int, int] = {}
        # Layers whose parameters hold W since the optimizer has begun its step.
        self._lent: set[int] = set()
        self._hidden: list[tuple[nn.Parameter, Tensor]] = []
        self._listeners: list[RemovableHandle] = []
        self._attach()

    def begin(self, inside: bool) -> None:
        """Inside the window, note W of weights without an optimizer when their gradient arrives."""
        self._inside = inside
        for listener in self._listeners:
            listener.remove()
        self._listeners = []
        if not (inside and self._watching):
            return
        held = self._held()
        for i, weight in enumerate(self._weights()):
            if i not in held and weight.requires_grad:
                hook = _weakly(self, partial(Remembered._hear, i=i))
                self._listeners.append(
                    weight.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]
                )

    def forward(self) -> list[Tensor]:
        """W of the forward pass; W now, where no backward pass and no optimizer has been seen."""
        if self.memory is None or not self._noted:
            return self.dense()
        if len(self._noted) == len(self._layers):
            return list(self.memory)
        pairs = enumerate(zip(self.memory, self.dense(), strict=True))
        return [noted if i in self._noted else now for i, (noted, now) in pairs]

    def dense(self) -> list[Tensor]:
        """W now: the parameters themselves where they hold it, new tensors elsewhere."""
        weights = super().dense()
        triples = zip(self._masks.unpacked(), weights, self.memory or weights, strict=True)
        return [
            weight if i in self._lent else torch.where(mask, weight, self._at_rest(w, weight))
            for i, (mask, weight, w) in enumerate(triples)
        ]

    def revive(
        self,
        before: Sequence[Tensor],
        after: Sequence[Tensor],
        values: Mapping[int, Tensor],
    ) -> None:
        """Put W in place."""
        for (i, value), old, new in zip(values.items(), before, after, strict=True):
            weight = self._layers[i].weight
            torch.where(new & ~old, value.to(weight.dtype), weight, out=weight.data)

    def settle(self, values: Mapping[int, Tensor] | None = None) -> None:
        """Keep W in memory; what the parameters hold at pruned places is of no more use."""
        values = dict(enumerate(self.dense())) if values is None else values
        memory = self.memory or self.dense()
        self.memory = [
            values[i].clone() if i in self._lent and i in values else values.get(i, own)
            for i, own in enumerate(memory)
        ]
        self._noted, self._lent = {}, set()

    def reclaim(self) -> None:
        """Settle where the optimizer has stepped and the pruner has not."""
        if self._lent:
            self.settle()

    def load(self, memory: list[Tensor] | None) -> None:
        """Continue with a saved memory."""
        super().load(memory)
        self._noted, self._lent, self._hidden = {}, set(), []

    def _at_rest(self, remembered: Tensor, weight: Tensor) -> Tensor:
        """W at pruned places, given what the parameter holds there."""
        return remembered

    def _held(self) -> set[int]:
        """The layers whose weights the optimizer trains."""
        groups = self._optimizer.param_groups if self._optimizer else []
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        return {i for i, weight in enumerate(self._weights()) if id(weight) in trained}

    def _attach(self) -> None:
        """Hook into the optimizer for as long as this object lives."""
        if self._optimizer is not None:
            for register, act in (
                (self._optimizer.register_step_pre_hook, Remembered._lend),
                (self._optimizer.register_step_post_hook, Remembered._unhide),
            ):
                weakref.finalize(self, register(_weakly(self, act)).remove)

    @torch.no_grad()
    def _hear(self, weight: Tensor, *, i: int) -> None:
        """A gradient has arrived: weights are still those of the forward pass."""
        if weight._version != self._noted.get(i):
            self._note(set(range(len(self._layers))) - self._held(), self.dense())

    def _note(self, layers: set[int], dense: Sequence[Tensor]) -> None:
        memory = self.memory or dense
        self.memory = [dense[i] if i in layers else own for i, own in enumerate(memory)]
        self._noted |= {i: self._layers[i].weight._version for i in layers}

    @torch.no_grad()
    def _lend(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Let the optimizer step on W."""
        if not self._inside:
            return
        if self._lent:
            self.settle()
            self._masks.apply(self._weights())
            raise RuntimeError("call the pruner's step() after each optimizer.step()")
        if (args[1] if len(args) > 1 else kwargs.get("closure")) is not None:
            raise RuntimeError(
                "the optimizer's closure would run the model without its masks: call "
                "optimizer.step() without one, or create the pruner without optimizer="
            )
        held = self._held()
        self._note(held, self.dense())
        assert self.memory is not None
        for i, mask in enumerate(self._masks.unpacked()):
            weight = self._layers[i].weight
            if i not in held or self._masks.kept[i] == weight.numel():
                continue
            weight.data.copy_(self.memory[i])
            self._lent.add(i)
            if self.hides_gradients and weight.grad is not None:
                self._hidden.append((weight, weight.grad))
                weight.grad = weight.grad.masked_fill(~mask, 0.0)

    @torch.no_grad()
    def _unhide(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Give the criterion its gradients back."""
        scale = getattr(optimizer, "grad_scale", None)
        for weight, grad in self._hidden:
            # Fused optimizers unscale the gradients that they find.
            weight.grad = grad if scale is None else grad.div_(scale)
        self._hidden = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_listeners": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._attach()
        self.begin(self._inside)


class StraightThrough(Remembered):
    """Weights return with their own value, trained meanwhile by the gradient at the pruned model.

    Without an optimizer, what it adds to the zero at a pruned place is added to W instead, and
    weight decay does not reach W there.
    """

    hides_gradients = False

    def _at_rest(self, remembered: Tensor, weight: Tensor) -> Tensor:
        return remembered + weight


def _weakly(owner: Remembered, act: Callable[..., None]) -> Callable[..., None]:
    """A hook that does nothing once its owner is gone."""
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
    """A kind of regrowth for some weights.

    Args:
        kind: What the method asks for.
        layers: The pruner's layers.
        masks: Their masks.
        optimizer: It trains the weights.
        training: Whether masks change while the model is trained. Outside training nothing moves
            weights, so all that may return keep their value.
        watching: Whether the method looks at weights and gradients of training steps.

    Raises:
        TypeError: Weights are to return from zero during training, and there is no optimizer.
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
