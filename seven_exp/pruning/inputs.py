"""Inputs of weights: which module's calls reveal a weight's inputs, and their layout."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from seven_exp.pruning.matrices import Layer, holders_of, transposed, widths

Inputs = Callable[[Sequence[Any], Mapping[str, Any]], list[Tensor]]
"""``inputs(args, kwargs)`` of a module's call: for each group of outputs, a tensor with one row per
use of the weight and one column per input."""

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_PROJECTIONS = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Use:
    """Where a weight is used.

    Attributes:
        module: The module whose calls reveal the weight's inputs.
        inputs: Extracts from such a call what the weight multiplies.
        turned: Whether the weight's first dimension, in an expert, is the input dimension.
        stacked: Whether the weight is a stack of experts, which are its groups.
        others: Where modules that share the weight use it.
    """

    module: nn.Module
    inputs: Inputs
    turned: bool = False
    stacked: bool = False
    others: tuple["Use", ...] = ()

    def matrices(self, tensor: Tensor, groups: int) -> Tensor:
        """A tensor of the weight's shape as (groups, outputs, inputs), one matrix per group."""
        rows = tensor
        if not self.stacked:
            rows = tensor.reshape(groups, len(tensor) // groups, -1)
        return rows.transpose(1, 2) if self.turned else rows

    def weight(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of `matrices`, for a weight of this shape."""
        rows = matrices.transpose(1, 2) if self.turned else matrices
        return rows.reshape(shape)


def uses_of(model: nn.Module, layers: Sequence[Layer]) -> list[Use | None]:
    """Where each layer's weight is used; None if no module's call reveals its inputs.

    Args:
        model: Holds the layers. Attention reads the weight of its output projection without
            calling the projection.
        layers: Some of the model's matrices.
    """
    attentions = [m for m in model.modules() if isinstance(m, nn.MultiheadAttention)]
    owners: dict[nn.Module, nn.MultiheadAttention] = {m.out_proj: m for m in attentions}
    uses = []
    for layer, holders in zip(layers, holders_of(model, layers), strict=True):
        twins = [holder for holder in holders if holder.module is not layer.module]
        others = tuple(use for twin in twins if (use := _use(twin, owners)))
        use = _use(layer, owners)
        uses.append(use and replace(use, others=others))
    return uses


def _use(layer: Layer, owners: Mapping[nn.Module, nn.MultiheadAttention]) -> Use | None:
    module, turned = layer.module, transposed(layer)
    if module in owners:
        return Use(owners[module], partial(_attended, owners[module]))
    if isinstance(module, nn.MultiheadAttention):
        return Use(module, partial(_projected, layer.attribute))
    if layer.stacked:
        return Use(module, partial(_of_experts, layer), turned=turned, stacked=True)
    if isinstance(module, _CONVOLUTIONS):
        return Use(module, partial(_patches_of, module))
    if isinstance(module, _TRANSPOSED):
        return Use(module, partial(_pixels_of, module), turned=True)
    return Use(module, _rows, turned=turned) if reveals_inputs(layer) else None


def reveals_inputs(layer: Layer) -> bool:
    """Whether calls of some module reveal a layer's inputs; recurrent layers do not."""
    attention = isinstance(layer.module, nn.MultiheadAttention)
    return attention or layer.stacked or layer.attribute == "weight"


def _first(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    first = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(first, Tensor)
    return first


def _rows(args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Inputs of a linear map."""
    inputs = _first(args, kwargs)
    return [inputs.reshape(-1, inputs.shape[-1])]


def _projected(attribute: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Inputs of attention's projections; one fused matrix makes queries, keys and values."""
    names = ("query", "key", "value")
    given = dict(zip(names, args, strict=False)) | {k: v for k, v in kwargs.items() if k in names}
    three = [given[name] for name in names]
    if attribute in _PROJECTIONS:
        three = [three[_PROJECTIONS.index(attribute)]]
    elif three[0] is three[1] is three[2]:
        three = three[:1]
    return [inputs.reshape(-1, inputs.shape[-1]) for inputs in three]


def _of_experts(layer: Layer, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Inputs of each expert, in a further run of the module; none if it was not chosen."""
    weight = layer.weight
    products = _Products(weight)
    with _one_by_one(layer.module), products:
        layer.module.forward(*args, **kwargs)
    nothing = weight.new_empty(0, widths(layer)[0])
    return [torch.cat([nothing, *inputs]) for inputs in products.inputs]


class _Products(TorchFunctionMode):
    """Within the context, collects what is multiplied by the matrices of a stack.

    Args:
        weight: (experts, ...), contiguous.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.inputs: list[list[Tensor]] = [[] for _ in weight]
        self._weight = weight

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        multiplies = getattr(func, "__name__", "") in ("linear", "matmul", "__matmul__")
        if multiplies and len(args) > 1 and (expert := self._expert(args[1])) is not None:
            self.inputs[expert].append(args[0].reshape(-1, args[0].shape[-1]))
        return func(*args, **(kwargs or {}))

    def _expert(self, matrix: Tensor) -> int | None:
        """The expert whose matrix this is, known by its place in memory."""
        weight = self._weight
        if matrix.untyped_storage().data_ptr() != weight.untyped_storage().data_ptr():
            return None
        place = int(matrix.storage_offset()) - int(weight.storage_offset())
        expert, rest = divmod(place, int(weight.stride(0)))
        return expert if rest == 0 and 0 <= expert < len(weight) else None


@contextmanager
def _one_by_one(module: nn.Module) -> Iterator[None]:
    """Within the context, transformers' experts compute one after another, not in one kernel."""
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_experts_implementation", None)
    try:
        if chosen is not None:
            config._experts_implementation = "eager"
        yield
    finally:
        if chosen is not None:
            config._experts_implementation = chosen


def _attended(
    attention: nn.MultiheadAttention, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Inputs of the output projection: attention's result with the identity as projection."""
    weight = attention.out_proj.weight
    identity = nn.Linear(len(weight), len(weight), device="meta")
    identity.weight = nn.Parameter(torch.eye(len(weight)).to(weight), requires_grad=False)
    identity.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)
    bare = copy.copy(attention)
    vars(bare).pop("forward", None)  # The walk's, which would run the original.
    bare._modules = {"out_proj": identity}
    bare._forward_pre_hooks, bare._forward_hooks = OrderedDict(), OrderedDict()
    outputs = bare(*args, **{**kwargs, "need_weights": False})[0]
    return [outputs.reshape(-1, outputs.shape[-1])]


def _patches_of(
    convolution: nn.Conv1d | nn.Conv2d | nn.Conv3d, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Tensor]:
    """Inputs of a convolution, which multiplies patches by its flattened weight."""
    images, axes = _first(args, kwargs), len(convolution.kernel_size)
    sides = convolution._reversed_padding_repeated_twice
    mode = convolution.padding_mode
    images = functional.pad(images, sides, mode="constant" if mode == "zeros" else mode)
    patches = images.reshape(-1, *images.shape[-1 - axes :])
    geometry = zip(convolution.kernel_size, convolution.stride, convolution.dilation, strict=True)
    for axis, (size, step, spread) in enumerate(geometry, start=2):
        # The windows along this axis; a dilated kernel skips elements of each window.
        patches = patches.unfold(axis, spread * (size - 1) + 1, step)[..., ::spread]
    # (images, channels, *positions, *kernel) -> (positions, channels, *kernel)
    patches = patches.movedim(1, 1 + axes).flatten(0, axes)
    return [group.flatten(1) for group in patches.chunk(convolution.groups, dim=1)]


def _pixels_of(module: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Inputs of a transposed convolution, which multiplies each pixel's channels by its weight."""
    images, axes = _first(args, kwargs), len(module.kernel_size)
    pixels = images.movedim(-1 - axes, -1).reshape(-1, images.shape[-1 - axes])
    return list(pixels.chunk(module.groups, dim=1))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode within the context, then restore each module's mode.

    Gradients are still tracked.
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.enable_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
