"""Weights that are matrices: what a module multiplies its inputs by, and how they are stored."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class Stack(tuple[int, ...]):
    """The shape (count * outputs, inputs) of ``count`` matrices stacked along the outputs."""

    copies: int

    @classmethod
    def of(cls, count: int, outputs: int, inputs: int) -> "Stack":
        """The shape of ``count`` matrices of (outputs, inputs)."""
        shape = cls((count * outputs, inputs))
        shape.copies = count
        return shape


@dataclass(frozen=True)
class Layer:
    """One prunable weight, stored as its location, so that ``load_state_dict`` can replace it."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def weight(self) -> nn.Parameter:
        """The present parameter.

        Raises:
            RuntimeError: The module has no such parameter any more.
        """
        weight = getattr(self.module, self.attribute)
        if not isinstance(weight, nn.Parameter):
            raise RuntimeError(f"{self.name} is no longer a parameter, so it can't be pruned")
        return weight

    @property
    def stacked(self) -> bool:
        """Whether the weight holds the matrices of several experts: (experts, outputs, inputs)."""
        return _is_stack(self.name, self.module)

    @property
    def shape(self) -> tuple[int, ...]:
        """(outputs, inputs, *kernel); a `Stack` for experts."""
        shape = self.weight.shape
        return Stack.of(*shape) if self.stacked else tuple(shape)

    def matrix(self, tensor: Tensor) -> Tensor:
        """A tensor shaped like the weight, as a view with this layer's `shape`."""
        return tensor.reshape(self.shape)

    def by_output(self, tensor: Tensor) -> Tensor:
        """A tensor shaped like the weight, with one row for each output, also of experts."""
        if not transposed(self):
            return self.matrix(tensor)
        return tensor.mT.flatten(0, 1) if self.stacked else tensor.transpose(0, 1)


def transposed(layer: Layer) -> bool:
    """Whether a weight's rows are its inputs.

    This holds for transposed convolutions, transformers' Conv1D and some experts.
    """
    if layer.stacked:
        return _inputs_first(layer.module)
    return isinstance(layer.module, _TRANSPOSED) or _is_conv1d(layer.module)


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module inside ``torch.compile`` and data-parallel wrappers.

    Raises:
        ValueError: The model is not a module, but for example a state dict.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"the model is a {type(model).__name__}: pass a torch.nn.Module")
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def matrices(model: nn.Module) -> Iterator[Layer]:
    """All weights by which some layer multiplies its inputs, in module order.

    These belong to linear maps, convolutions, attention, recurrent layers and fused experts. A
    weight that several modules share appears once for each of them.
    """
    for path, module in model.named_modules():
        for attribute in _attributes(path, module):
            name = join(path, attribute)
            if isinstance(module._parameters.get(attribute), nn.Parameter):
                yield Layer(name, module, attribute)
            elif isinstance(getattr(module, attribute, None), Tensor):
                warnings.warn(f"{name} is computed from other parameters: left dense", stacklevel=2)


def join(*parts: str) -> str:
    """A dotted name; empty parts are skipped."""
    return ".".join(part for part in parts if part)


def holders_of(model: nn.Module, layers: Sequence[Layer]) -> list[list[Layer]]:
    """For each layer, its weight in every module that holds it: several may share one."""
    held: dict[int, list[Layer]] = {id(layer.weight): [] for layer in layers}
    for path, module in model.named_modules():
        for name, parameter in module._parameters.items():
            if id(parameter) in held:
                held[id(parameter)].append(Layer(join(path, name), module, name))
    return [held[id(layer.weight)] for layer in layers]


def packed(model: nn.Module) -> dict[str, str]:
    """Weights that can't be masked because they are stored as packed or quantised numbers.

    Returns:
        Name -> kind of numbers and of module, such as "uint8 of a Linear4bit".
    """
    found = {}
    for path, module in model.named_modules():
        kind = type(module).__name__
        if _is_quantised(module):
            found[join(path, "weight")] = f"packed numbers of a quantised {kind}"
        buffers = {name: b for name, b in module._buffers.items() if "weight" in name}
        for name, tensor in {**module._parameters, **buffers}.items():
            if tensor is not None and tensor.dim() >= 2 and (numbers := _numbers(tensor)):
                found[join(path, name)] = f"{numbers} of a {kind}"
    return found


def _is_quantised(module: nn.Module) -> bool:
    """Whether a module is one of torch's quantised layers, which have no parameters."""
    kind = type(module)
    holds = any(hasattr(module, name) for name in ("_packed_params", "_all_weight_values"))
    return holds and kind.__module__.startswith("torch.ao.nn.") and "Packed" not in kind.__name__


def _numbers(tensor: Tensor) -> str | None:
    """The kind of packed numbers a tensor holds; None for real numbers and bit masks."""
    if type(tensor.data).__module__.startswith("torchao"):
        return type(tensor.data).__name__
    dtype = tensor.dtype
    if dtype == torch.bool or dtype.is_complex:
        return None
    small = dtype.itemsize < 2
    return None if dtype.is_floating_point and not small else str(dtype).removeprefix("torch.")


def widths(layer: Layer) -> tuple[int, int]:
    """Number of inputs that a weight multiplies, and of outputs that it computes."""
    first, second, *_ = layer.weight.shape[1 if layer.stacked else 0 :]
    second *= getattr(layer.module, "groups", 1)
    return (first, second) if transposed(layer) else (second, first)


def _attributes(path: str, module: nn.Module) -> tuple[str, ...]:
    """The names of a module's own matrices."""
    if isinstance(module, _WEIGHTED) or _is_conv1d(module):
        return ("weight",)
    if isinstance(module, nn.MultiheadAttention):
        return _ATTENTION
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return tuple(name for name in module._parameters if name.startswith("weight_"))
    return tuple(name for name in module._parameters if _is_stack(join(path, name), module))


def _is_stack(name: str, module: nn.Module) -> bool:
    """Whether a parameter holds one matrix for each expert of a layer.

    It does if it has three dimensions and either its name, its module's name or its module's class
    contains "expert" or "moe", or its parent also holds a router.
    """
    *path, attribute = name.split(".")
    weight = module._parameters.get(attribute)
    if weight is None or weight.dim() != 3 or len(weight) < 2 or "bias" in attribute:
        return False
    if isinstance(module, _WEIGHTED):
        return False
    said = (attribute, *path[-1:], type(module).__name__)
    routed = any(child in ("gate", "router") for child, _ in module.named_children())
    return routed or any(word in part.lower() for part in said for word in ("expert", "moe"))


def _is_conv1d(module: nn.Module) -> bool:
    """Whether a module is transformers' Conv1D (GPT-2), a Linear with a transposed weight."""
    return type(module).__name__ == "Conv1D"


def _inputs_first(module: nn.Module) -> bool:
    """Whether a module's experts are stored as (experts, inputs, outputs).

    Modules of transformers say so. Otherwise the widths decide: ``gate_up_proj`` makes twice the
    width that ``down_proj`` reads.
    """
    said = getattr(module, "is_transposed", None)
    if isinstance(said, bool):
        return said
    up, down = module._parameters.get("gate_up_proj"), module._parameters.get("down_proj")
    if up is None or down is None or up.dim() != 3 or down.dim() != 3:
        return False
    return up.shape[1] != 2 * down.shape[2] and up.shape[2] == 2 * down.shape[1]
