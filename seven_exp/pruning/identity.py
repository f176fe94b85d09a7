"""Checks that the weights that a pruner prunes still belong to its model."""

from collections.abc import Iterator, Sequence

from torch import nn

from seven_exp.pruning.layers import Layer, unwrap

Link = tuple[dict[str, nn.Module | None], str, nn.Module]
"""A parent's modules, a name in it, and the module that must be registered under that name."""


class Anchors:
    """The paths from a model to its layers, by name, as they were at creation.

    A module that stays registered is followed: ``.to()``, ``.half()`` and
    ``load_state_dict(assign=True)`` replace its parameters, and these are looked up again.
    """

    def __init__(self, model: nn.Module, layers: Sequence[Layer]) -> None:
        self._model, self._layers = model, list(layers)
        self._kinds = [(layer.weight.shape, type(layer.weight)) for layer in layers]
        self._links = self._walk()

    def check(self) -> None:
        """Raise RuntimeError if a weight no longer belongs to the model; the message names it.

        It compares only objects and shapes, which takes about a microsecond per layer.
        """
        if any(modules.get(name) is not child for modules, name, child in self._links):
            self._links = self._walk()
        for layer, (shape, kind) in zip(self._layers, self._kinds, strict=True):
            weight = layer.module._parameters.get(layer.attribute)
            if weight is None or weight.shape != shape or type(weight) is not kind:
                raise RuntimeError(_fault(layer, shape, kind))
        if len({id(layer.weight) for layer in self._layers}) < len(self._layers):
            raise RuntimeError(_tied(self._layers))

    def _walk(self) -> list[Link]:
        """Each link once, even if it leads to many layers."""
        links = {}
        for layer in self._layers:
            for link in self._way(layer):
                links[id(link[0]), link[1]] = link
        return list(links.values())

    def _way(self, layer: Layer) -> Iterator[Link]:
        """The links from the model to a layer's module; compiled parts count as what they wrap."""
        module, path = self._model, layer.name.removesuffix(layer.attribute).rstrip(".")
        for name in path.split(".") if path else ():
            child = module._modules.get(name)
            if child is None:
                break
            yield module._modules, name, child
            module = unwrap(child)
        if module is not layer.module:
            raise RuntimeError(
                f"{layer.name} does not belong to the model any more: '{path}' was replaced or "
                "removed; create the pruner after the last change of the model's modules"
            )


class Pulse:
    """Whether some weights are being trained, judged by gradients and PyTorch's version counters.

    The pruner can't detect that a copy is trained instead, but it can detect an idle model.
    """

    def __init__(self) -> None:
        self._changes: list[int] | None = None

    def missing(self, weights: Sequence[nn.Parameter]) -> bool:
        """Whether no weight has changed since `note` and none has a gradient."""
        return (
            self._changes == [weight._version for weight in weights]
            and any(weight.requires_grad for weight in weights)
            and all(weight.grad is None for weight in weights)
        )

    def note(self, weights: Sequence[nn.Parameter]) -> None:
        """Record the present versions; later changes count."""
        self._changes = [weight._version for weight in weights]


def _fault(layer: Layer, shape: Sequence[int], kind: type) -> str:
    weight = layer.module._parameters.get(layer.attribute)
    if weight is None:
        return (
            f"{layer.name} is no longer a parameter of its module, so it can't be pruned: remove "
            "the parametrization, or create the pruner after the change"
        )
    if weight.shape != shape:
        return (
            f"{layer.name} now has shape {tuple(weight.shape)} instead of {tuple(shape)}: "
            "create the pruner after the change"
        )
    return (
        f"{layer.name} is now a {type(weight).__name__} instead of a {kind.__name__}: "
        "create the pruner after the change"
    )


def _tied(layers: Sequence[Layer]) -> str:
    first: dict[int, str] = {}
    for layer in layers:
        other = first.setdefault(id(layer.weight), layer.name)
        if other != layer.name:
            break
    return (
        f"{other} and {layer.name} are now one parameter, but were two: create the pruner after "
        "tying the weights"
    )
