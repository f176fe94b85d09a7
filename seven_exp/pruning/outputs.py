"""Finds the logits in a model's outputs."""

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.inputs import evaluating


def logits_of(outputs: Any) -> Tensor:
    """The logits of a forward pass, as one tensor.

    Args:
        outputs: A tensor, which is returned unchanged, or an output of transformers. The start and
            end logits of a span model are stacked to shape (batch, length, 2).
    """
    if isinstance(outputs, Tensor):
        return outputs
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    logits = outputs["logits"]
    assert isinstance(logits, Tensor)
    return logits


def logits_in(outputs: Any) -> dict[Any, Tensor]:
    """All logits of a forward pass, by their key in its outputs.

    Args:
        outputs: A tensor; or a mapping, tuple, list or object of tensors. Tensors with "logits" in
            their name are logits; if no name says so, all tensors except single numbers.
    """
    tensors = {
        place: value
        for place, value in _parts(outputs).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0
    }
    named = {p: v for p, v in tensors.items() if isinstance(p, str) and "logits" in p}
    return named or tensors


def divided(outputs: Any, divisor: float) -> Any:
    """The same outputs with divided logits."""
    logits = {place: value / divisor for place, value in logits_in(outputs).items()}
    if isinstance(outputs, Tensor):
        return logits.get(None, outputs)
    if hasattr(outputs, "_replace"):
        return outputs._replace(**logits)
    if isinstance(outputs, tuple | list):
        return type(outputs)(logits.get(i, value) for i, value in enumerate(outputs))
    outputs = copy.copy(outputs)
    for place, value in logits.items():
        if isinstance(outputs, Mapping):
            outputs[place] = value  # type: ignore[index]  # a read-only one raises
        else:
            object.__setattr__(outputs, place, value)  # also if it is frozen
    return outputs


@contextmanager
def tempered(model: nn.Module, temperature: float, run: Callable[[], object]) -> Iterator[None]:
    """Divide the model's logits by a temperature within the context.

    The logits are divided in what the model returns. If the model computes its loss itself, they
    are divided where its output layers return them.

    Args:
        model: Its mode and the random number generators' states do not change.
        temperature: The divisor; 1 changes nothing.
        run: Calls the model as the caller will; runs up to two times.

    Raises:
        ValueError: The logits can't be found.
    """
    if temperature == 1:
        yield
        return
    with evaluating(model), torch.random.fork_rng(devices=[]):
        calls = _calls(model, run)
        returned = [outputs for module, outputs in calls if module is model]
        if not returned:
            raise ValueError(
                f"the loss never calls the model, so its logits can't be divided by {temperature:g}"
                ": call it, or choose temperature=1"
            )
    places = [model]
    if any(_is_loss(part) for outputs in returned for part in _parts(outputs).values()):
        places = _output_layers(model, calls, run)
        if not places:
            raise ValueError(
                f"the model computes its own loss; its logits can't be divided by {temperature:g}: "
                "compute the loss outside the model, from its logits, or choose temperature=1"
            )
    with _dividing(places, temperature):
        yield


def _parts(outputs: Any) -> dict[Any, Any]:
    """The parts of an output, by name or number; the key of a plain tensor is None."""
    if isinstance(outputs, Tensor):
        return {None: outputs}
    if isinstance(outputs, Mapping):
        return dict(outputs)
    if isinstance(outputs, tuple | list):
        return dict(zip(getattr(outputs, "_fields", range(len(outputs))), outputs, strict=True))
    if dataclasses.is_dataclass(outputs):
        return {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    return dict(getattr(outputs, "__dict__", {}))


def _is_loss(part: Any) -> bool:
    return isinstance(part, Tensor) and part.ndim == 0 and part.is_floating_point()


def _calls(model: nn.Module, run: Callable[[], object]) -> list[tuple[nn.Module, Any]]:
    """The modules that a run calls, in the order in which they return, and their outputs."""
    calls: list[tuple[nn.Module, Any]] = []
    with ExitStack() as hooks:
        for module in model.modules():
            hook = module.register_forward_hook(lambda m, _, outputs: calls.append((m, outputs)))
            hooks.enter_context(hook)
        run()
    return calls


@contextmanager
def _dividing(modules: list[nn.Module], divisor: float) -> Iterator[None]:
    with ExitStack() as hooks:
        for module in modules:
            hook = module.register_forward_hook(lambda _m, _i, outputs: divided(outputs, divisor))
            hooks.enter_context(hook)
        yield


def _output_layers(
    model: nn.Module, calls: list[tuple[nn.Module, Any]], run: Callable[[], object]
) -> list[nn.Module]:
    """The modules that return the logits; or the last one with weights before the logits."""
    logits = _returned_logits(model, calls)
    returning = [[m for m, out in calls if out is one and m is not model] for one in logits]
    if all(returning):
        return list(dict.fromkeys(modules[0] for modules in returning))
    weighted = [
        m for m, _ in calls if m is not model and next(m.parameters(False), None) is not None
    ]
    if not weighted:
        return []
    # Halving is exact, so outputs that follow linearly match exactly.
    with _dividing(weighted[-1:], 2), evaluating(model), torch.random.fork_rng(devices=[]):
        halves = _returned_logits(model, _calls(model, run))
    follow = [
        torch.allclose(2 * half, one, rtol=1e-3) for half, one in zip(halves, logits, strict=True)
    ]
    return weighted[-1:] if logits and all(follow) else []


def _returned_logits(model: nn.Module, calls: list[tuple[nn.Module, Any]]) -> list[Tensor]:
    return [t for m, outputs in calls if m is model for t in logits_in(outputs).values()]
