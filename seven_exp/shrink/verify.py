"""Verifies that a change keeps a model's outputs, and otherwise restores the model."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.inputs import evaluating

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor is the model's one argument; a tuple holds several, a mapping keyword arguments."""

_ROUNDINGS = 1000
"""Sums in another order differ by some roundings of the largest output, more in deeper models: by
about 1e-6 in float32. Removing a needed unit changes the outputs far more than a thousand of them.
"""

_COARSEST = 1e-3
"""Outputs of coarser dtypes are too imprecise for the comparison."""

_REGISTERED = ("_parameters", "_buffers", "_modules")


@contextmanager
def outputs_kept(model: nn.Module, example_inputs: Inputs) -> Iterator[None]:
    """Compare the outputs in evaluation mode before and after the body changes the model.

    The body replaces modules, tensors and attributes; it does not write into tensors.

    Args:
        model: Every module's mode is restored afterwards.
        example_inputs: Inputs of one forward pass.

    Raises:
        ValueError: The outputs would change, can't be computed any more, or can't be compared.
            The model is restored, with the same parameter objects.
    """
    name = type(model).__name__
    with evaluating(model), torch.no_grad():
        before = _outputs(model, example_inputs)
        for output in before:
            if _ROUNDINGS * _precision(output) > _COARSEST:
                raise ValueError(
                    f"{output.dtype} is too coarse to compare outputs: shrink {name} in float32"
                )
        way_back = _Structure(model)
        try:
            yield
            fault = _difference(before, _outputs(model, example_inputs))
        except Exception as error:
            way_back.restore()
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            raise ValueError(
                f"{name} does not run without the units that have no effect ({reason}): the model "
                "is unchanged"
            ) from error
        except BaseException:
            way_back.restore()
            raise
        if fault:
            way_back.restore()
            raise ValueError(
                f"{name} gives other outputs without the units that have no effect ({fault}): the "
                "model is unchanged"
            )


class _Structure:
    """The modules of a model with their attributes, to restore them."""

    def __init__(self, model: nn.Module) -> None:
        self._saved = [
            (module, dict(vars(module)), {key: dict(vars(module)[key]) for key in _REGISTERED})
            for module in model.modules()
        ]

    def restore(self) -> None:
        for module, attributes, registered in self._saved:
            vars(module).clear()
            vars(module).update(attributes)
            for key, entries in registered.items():
                vars(module)[key].clear()
                vars(module)[key].update(entries)


def _outputs(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """Copies of all tensors that a forward pass returns.

    Raises:
        ValueError: It returns none.
    """
    found = [tensor.clone() for tensor in tensors_in(called(model, inputs))]
    if not found:
        raise ValueError(f"{type(model).__name__} returns no tensors that can be compared")
    return found


def called(model: nn.Module, inputs: Inputs) -> Any:
    """What a model returns for its inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def tensors_in(made: Any) -> Iterator[Tensor]:
    """All tensors of a nested structure."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, Mapping):
        yield from tensors_in(list(made.values()))
    elif isinstance(made, list | tuple):
        for part in made:
            yield from tensors_in(part)


def _precision(output: Tensor) -> float:
    floating = output.is_floating_point() or output.is_complex()
    return torch.finfo(output.dtype).eps if floating else 0.0


def _difference(before: list[Tensor], after: list[Tensor]) -> str | None:
    """How outputs differ by more than rounding; None if they don't."""
    shapes = [[tuple(output.shape) for output in outputs] for outputs in (before, after)]
    if shapes[0] != shapes[1]:
        return f"shapes {shapes[1]} instead of {shapes[0]}"
    for old, new in zip(before, after, strict=True):
        if not old.numel():
            continue
        difference = (new.double() - old.double()).abs().max().item()
        largest = old.double().abs().max().item()
        # NaN also counts as a difference.
        if not difference <= _ROUNDINGS * _precision(old) * largest:
            return f"differing by {difference:.3g}, the largest being {largest:.3g}"
    return None
