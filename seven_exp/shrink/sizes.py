"""Resizes layers: keeps some of their outputs and inputs."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

from seven_exp.shrink.attention import SlimAttention

if TYPE_CHECKING:
    from transformers.pytorch_utils import Conv1D


def is_conv1d(module: nn.Module) -> TypeGuard["Conv1D"]:
    """Whether this is transformers' Conv1D (GPT-2): a Linear with its weight transposed."""
    return type(module).__name__ == "Conv1D"


def is_depthwise(module: nn.Module) -> bool:
    """Whether this is a convolution of each channel by itself."""
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    return module.groups == module.in_channels == module.out_channels > 1


def rows_of(module: nn.Module) -> int:
    """Number of outputs, or of the channels that a layer treats one by one."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.num_features
    return len(module.weight if isinstance(module, nn.PReLU) else by_output(module))


def parameter(module: nn.Module, name: str) -> Tensor:
    """A tensor of a module by its attribute, detached."""
    tensor = getattr(module, name)
    assert isinstance(tensor, Tensor)
    return tensor.detach()


def by_output(module: nn.Module) -> Tensor:
    """The weight as a matrix (outputs, everything else)."""
    weight = parameter(module, "weight")
    return (weight.T if is_conv1d(module) else weight).flatten(1)


def by_input(module: nn.Module) -> Tensor:
    """The weight as (inputs, outputs, positions of the kernel)."""
    weight = parameter(module, "weight")
    matrix = weight if is_conv1d(module) else weight.transpose(0, 1)
    return matrix.flatten(2) if matrix.dim() > 2 else matrix[..., None]


def keep_outputs(module: nn.Module, kept: Tensor) -> None:
    """Drop all other outputs of a Linear or Conv, or channels of a layer that keeps them apart.

    Args:
        module: Changed in place.
        kept: int64, indices in ascending order.
    """
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(getattr(module, name, None), Tensor):
            dim = -1 if is_conv1d(module) else 0
            put(module, name, parameter(module, name).index_select(dim, kept))
    set_sizes(module)


def keep_inputs(module: nn.Module, kept: Tensor) -> None:
    """Drop all other inputs of a Linear or Conv; see `keep_outputs`."""
    dim = 0 if is_conv1d(module) else 1
    put(module, "weight", parameter(module, "weight").index_select(dim, kept))
    set_sizes(module)


def add_bias(module: nn.Module, shift: Tensor) -> None:
    """Add ``shift`` to the bias of a Linear or Conv, rounded once; create the bias if needed."""
    old = getattr(module, "bias", None)
    total = shift if old is None else old.detach().double() + shift
    put(module, "bias", total.to(parameter(module, "weight").dtype))


def put(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace a parameter or a buffer, or create a bias; the old tensor keeps its values."""
    old = getattr(module, name)
    if old is None:
        old = module.get_parameter("weight")
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor.contiguous(), requires_grad=old.requires_grad)
    setattr(module, name, tensor)


def set_sizes(module: nn.Module) -> None:
    """Set a layer's attributes to its tensors' shapes."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif is_depthwise(module):
        assert isinstance(module, nn.modules.conv._ConvNd)
        module.groups = module.in_channels = module.out_channels = len(module.weight)
    elif isinstance(module, nn.modules.conv._ConvNd):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        level = module.running_mean if module.running_mean is not None else module.weight
        module.num_features = len(level)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
    elif is_conv1d(module):
        module.nx, module.nf = module.weight.shape


def fit(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Resize a model to a shrunk model's state dict, and load it.

    Args:
        model: Of the same architecture, full size; changed in place.
        state: The state dict of a model after `shrink`.

    Raises:
        ValueError: The tensors do not belong to such a model.
    """
    for name, module in list(model.named_modules()):
        heads = state.get(f"{name}.heads")
        if isinstance(module, nn.MultiheadAttention) and heads is not None:
            slim = SlimAttention(
                int(heads),
                state[f"{name}.in_proj.weight"],
                state.get(f"{name}.in_proj.bias"),
                state[f"{name}.out_proj.weight"],
                state[f"{name}.out_proj.bias"],
                scale=module.head_dim**-0.5,
            )
            model.set_submodule(name, slim)
    own = model.state_dict()
    for name, tensor in state.items():
        place, _, attribute = name.rpartition(".")
        if name in own and own[name].shape != tensor.shape:
            module = model.get_submodule(place)
            put(module, attribute, torch.empty_like(tensor))
            set_sizes(module)
        elif attribute == "bias" and name not in own and f"{place}.weight" in own:
            put(model.get_submodule(place), attribute, torch.empty_like(tensor))
    # Files keep no versions of modules, which torchvision's MNASNet asks for.
    versioned = OrderedDict(state)
    versioned._metadata = own._metadata  # type: ignore[attr-defined]
    try:
        missing, unknown = model.load_state_dict(versioned, strict=False)
    except RuntimeError as error:
        raise ValueError(str(error).splitlines()[-1].strip()) from error
    places = model.state_dict(keep_vars=True)
    given = {id(places[name]) for name in state if name in places}
    lacking = [name for name in missing if id(places[name]) not in given]
    if lacking or unknown:
        raise ValueError(f"{[*lacking, *unknown][0]} does not fit the model")
