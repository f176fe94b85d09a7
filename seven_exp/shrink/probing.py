"""Probing: runs a model whose layers return given outputs, and captures the inputs that they read.

A layer that mixes its inputs, such as a convolution, returns given outputs instead of its own. The
rest of the model runs as usual, so a layer reads a function of what the other layers return.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from seven_exp.shrink.sizes import is_conv1d, is_depthwise
from seven_exp.shrink.verify import Inputs, called, tensors_in

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OPAQUE = (
    *(nn.MultiheadAttention, nn.RNNBase, nn.Bilinear, nn.Embedding, nn.EmbeddingBag),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
_CHANNELWISE = (nn.modules.batchnorm._BatchNorm, nn.PReLU)

Read = Callable[[str, Tensor], None]
"""``read(name, inputs)``: a layer of this name reads these inputs, channels last; as one column, if
its parameters can't be resized."""

Replace = Callable[[str, Tensor], Tensor]
"""``replace(name, outputs)``: what a layer returns instead of its outputs, channels last."""


def resizable(module: nn.Module) -> bool:
    """Whether a layer mixes its inputs, and its rows and columns can be removed one by one."""
    if isinstance(module, _CONVOLUTIONS):
        return module.groups == 1
    return isinstance(module, nn.Linear) or is_conv1d(module)


def channelwise(module: nn.Module) -> bool:
    """Whether a layer has parameters for each channel and does not mix channels."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters > 1
    return isinstance(module, _CHANNELWISE) or is_depthwise(module)


def _mixes(module: nn.Module) -> bool:
    grouped = isinstance(module, _CONVOLUTIONS) and not is_depthwise(module)
    return resizable(module) or grouped or isinstance(module, _OPAQUE)


def _holds_parameters(module: nn.Module) -> bool:
    own = [p for p in module._parameters.values() if p is not None and p.numel() > 1]
    return bool(own) and not _mixes(module)


@dataclass(frozen=True)
class Probe:
    """A model and what its layers return for given inputs.

    Attributes:
        model: In evaluation mode.
        inputs: A tensor, a tuple of arguments or a mapping of keyword arguments.
        outputs: Name of each layer that mixes its inputs -> the outputs of its calls.
        modules: Name -> module, for all modules.
    """

    model: nn.Module
    inputs: Inputs
    outputs: Mapping[str, list[Any]]
    modules: Mapping[str, nn.Module]

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> "Probe":
        """Run the model once and record its layers' outputs."""
        modules = dict(model.named_modules())
        outputs: dict[str, list[Any]] = {}

        def recording(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                made = forward(*args, **kwargs)
                outputs.setdefault(name, []).append(mapped(made, torch.nan_to_num))
                return made

            return run

        with _replaced({n: m for n, m in modules.items() if _mixes(m)}, recording):
            _call(model, inputs)
        return cls(model, inputs, outputs, modules)

    def run(self, read: Read, replace: Replace, inputs: Inputs | None = None) -> list[Tensor]:
        """Run the model with other outputs of its layers; return the tensors that it returns."""
        calls = dict.fromkeys(self.outputs, 0)

        def reading(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            module = self.modules[name]

            def run(*args: Any, **kwargs: Any) -> Any:
                for tensor in tensors_in([args, kwargs]):
                    if tensor.is_floating_point():
                        read(name, _by_channel(module, tensor))
                if name not in calls:
                    return forward(*args, **kwargs)
                # A copy, because the model may add to it in place, as Falcon does.
                made = mapped(self.outputs[name][calls[name]], torch.clone)
                calls[name] += 1
                return mapped(made, lambda t: _back(module, replace(name, _last(module, t))))

            return run

        readers = {
            name: module
            for name, module in self.modules.items()
            if name in calls or channelwise(module) or (name and _holds_parameters(module))
        }
        with _replaced(readers, reading):
            made = _call(self.model, self.inputs if inputs is None else inputs)
        return list(tensors_in(made))


def mapped(made: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A nested structure with its floating-point tensors changed."""
    if isinstance(made, Tensor):
        return change(made) if made.is_floating_point() else made
    if isinstance(made, Mapping):
        return {key: mapped(value, change) for key, value in made.items()}
    if isinstance(made, list | tuple):
        return type(made)(mapped(part, change) for part in made)
    return made


def _by_channel(module: nn.Module, tensor: Tensor) -> Tensor:
    """Inputs of a layer with channels last; as one column if its parameters can't be resized."""
    if resizable(module):
        return _last(module, tensor)
    return tensor.movedim(1, -1) if channelwise(module) else tensor.reshape(-1, 1)


def _last(module: nn.Module, tensor: Tensor) -> Tensor:
    """Channels last."""
    if isinstance(module, nn.modules.conv._ConvNd):
        return tensor.movedim(-1 - len(module.kernel_size), -1)
    return tensor


def _back(module: nn.Module, tensor: Tensor) -> Tensor:
    if isinstance(module, nn.modules.conv._ConvNd):
        return tensor.movedim(-1, -1 - len(module.kernel_size)).contiguous()
    return tensor


def _call(model: nn.Module, inputs: Inputs) -> Any:
    # The fused kernels of attention drop NaN, and read weights without calling their layers.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            return called(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _replaced(
    modules: Mapping[str, nn.Module],
    make: Callable[[str, Callable[..., Any]], Callable[..., Any]],
) -> Iterator[None]:
    """Replace the modules' forward methods within the context."""
    before = {name: vars(module).get("forward") for name, module in modules.items()}
    for name, module in modules.items():
        vars(module)["forward"] = make(name, module.forward)
    try:
        yield
    finally:
        for name, module in modules.items():
            vars(module).pop("forward")
            if before[name] is not None:
                vars(module)["forward"] = before[name]
