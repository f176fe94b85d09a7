"""Which weights of a model are prunable, and which stay dense and why."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from seven_exp.pruning.matrices import Layer, matrices, packed, transposed, unwrap
from seven_exp.pruning.name_patterns import check_patterns, matches
from seven_exp.pruning.structure import embeds, structure_of

__all__ = ["Coverage", "Layer", "matches", "prunable_layers", "survey", "transposed", "unwrap"]

_ENOUGH = 0.8
"""A pruner warns if less than this fraction of the matrices' weights is prunable."""

_CHOSEN = ("excluded", "not included", "misfits")


@dataclass(frozen=True)
class Coverage:
    """Which parts of a model can be pruned.

    Attributes:
        layers: The prunable weights, in module order.
        dense: Name of each other matrix (a parameter that varies along two or more dimensions) ->
            the reason why it stays dense.
        sizes: Name of each matrix -> its number of weights.
        total: Total number of parameters.
        last: Name of the last weight if no output layer was recognised.
    """

    layers: list[Layer]
    dense: Mapping[str, str]
    sizes: Mapping[str, int]
    total: int
    last: str | None = None

    @property
    def prunable(self) -> int:
        """Number of prunable weights."""
        return sum(layer.weight.numel() for layer in self.layers)

    def without(self, reasons: Mapping[str, str]) -> "Coverage":
        """The same coverage without some layers, each with the reason why it stays dense."""
        left = [layer for layer in self.layers if layer.name not in reasons]
        return replace(self, layers=left, dense={**self.dense, **reasons})

    def parts(self) -> str:
        """What stays dense, largest first, as percentages of the matrices' weights."""
        sizes: Counter[str] = Counter()
        for name, why in self.dense.items():
            sizes[why] += self.sizes[name]
        every = sum(self.sizes.values())
        return ", ".join(f"{why} {size / every:.1%}" for why, size in sizes.most_common(4))

    def __str__(self) -> str:
        """One line to print at the start of a run."""
        names = [layer.name for layer in self.layers]
        shown = names if len(names) <= 6 else [*names[:3], "...", *names[-2:]]
        dense = f"; dense: {self.parts()}" if self.dense else ""
        hint = (
            f"; no output layer is recognised: exclude '{self.last}' if it is one"
            if self.last in names
            else ""
        )
        return (
            f"prunable: {self.prunable:,} of {self.total:,} parameters "
            f"({self.prunable / self.total:.1%}) in {len(names)} layers: {', '.join(shown)}"
            f"{dense}{hint}"
        )

    def shortfall(self) -> str | None:
        """One line if a large fraction of the matrices stays dense without the user's request."""
        chosen = sum(self.sizes[name] for name, why in self.dense.items() if why in _CHOSEN)
        every = sum(self.sizes.values()) - chosen
        if self.prunable >= _ENOUGH * every:
            return None
        return (
            f"{self.prunable / every:.1%} of the weights in matrices are prunable, and the "
            f"sparsity counts these alone; dense: {self.parts()}"
        )


def prunable_layers(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    exclude_defaults: bool = True,
) -> list[Layer]:
    """Prunable weights in module order: the layers of `survey`, which takes the same arguments.

    Raises:
        ValueError: As `survey`.
    """
    return survey(model, include, exclude, exclude_defaults=exclude_defaults).layers


def survey(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    *,
    exclude_defaults: bool = True,
) -> Coverage:
    """Find the prunable weights: linear maps, convolutions, attention, recurrence and experts.

    Output layers, embeddings, routers of experts and adapters stay dense by default. A weight
    shared by several modules counts once; one shared with an embedding counts as an embedding. A
    name in ``include`` or ``exclude`` means that parameter or module. A name with ``*``, ``?`` or
    ``[`` is a pattern for the full names of both (see `matches`).

    Args:
        model: Any module, including compiled and data-parallel ones.
        include: Keep only the weights that match one of these. None: all.
        exclude: Leave out the weights that match one of these.
        exclude_defaults: False: output layers, embedding projections, routers and adapters are
            prunable like all other layers.

    Raises:
        ValueError: No weight is left to prune, a given name or pattern matches no parameter, or a
            weight is packed or quantised.
    """
    model = unwrap(model)
    include, exclude = _listed("include", include), _listed("exclude", exclude) or []
    compressed = packed(model)
    names = [*(name for name, _ in model.named_parameters(remove_duplicate=False)), *compressed]
    check_patterns("include", include or (), names, "parameter of the model")
    check_patterns("exclude", exclude, names, "parameter of the model")
    candidates = list(matrices(model))
    structure = structure_of(model, candidates)

    def why_dense(names: Sequence[str]) -> str | None:
        """The reason why the weight with these names stays dense, if it does."""
        if any(matches(name, p) for name in names for p in exclude):
            return "excluded"
        if include is not None and not any(matches(n, p) for n in names for p in include):
            return "not included"
        roles = map(structure.role, names) if exclude_defaults else iter(())
        return next((role for role in roles if role), None)

    _refuse_packed({name: kind for name, kind in compressed.items() if not why_dense([name])})
    tied = {id(m.weight) for m in model.modules() if embeds(m)}
    places: dict[int, list[Layer]] = {}
    for layer in candidates:
        if id(layer.weight) not in tied:
            places.setdefault(id(layer.weight), []).append(layer)
    dense = {key: why_dense([layer.name for layer in shared]) for key, shared in places.items()}
    layers = [shared[0] for key, shared in places.items() if dense[key] is None]
    if not layers:
        reasons = {why for why in dense.values() if why is not None}
        raise ValueError(f"no prunable weight: {_nothing(reasons)}")
    own = {name: p for name, p in model.named_parameters() if _is_matrix(name, p)}
    own |= {layer.name: layer.weight for layer in layers}
    pruned = {layer.name for layer in layers}
    return Coverage(
        layers=layers,
        dense={
            name: dense.get(id(p)) or why_dense([name]) or _kind(model, name)
            for name, p in own.items()
            if name not in pruned
        },
        sizes={name: p.numel() for name, p in own.items()},
        total=sum(p.numel() for p in model.parameters()),
        last=structure.last,
    )


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether it varies along two dimensions; the biases of experts are one vector each."""
    return sum(n > 1 for n in parameter.shape) > 1 and "bias" not in name.rpartition(".")[2]


def _kind(model: nn.Module, name: str) -> str:
    """The kind of a matrix that no known layer multiplies its inputs by."""
    path, _, own = name.rpartition(".")
    owner = model.get_submodule(path)
    if embeds(owner) or any(word in own for word in ("embed", "pos", "token")):
        return "embedding"
    return f"other weights of {type(owner).__name__}"


def _refuse_packed(found: Mapping[str, str]) -> None:
    if found:
        name, kind = next(iter(found.items()))
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(
            f"{name}{others} can't be masked ({kind}): load the model without quantisation, or "
            f"exclude {list(found) if len(found) < 6 else 'them'}"
        )


def _listed(key: str, patterns: Sequence[str] | None) -> Sequence[str] | None:
    if patterns is None:
        return None
    listed = [patterns] if isinstance(patterns, str) else patterns
    if not isinstance(listed, Iterable) or not all(isinstance(name, str) for name in listed):
        raise ValueError(f"{key} is {patterns!r:.60}: give a list of names")
    return list(listed)


def _nothing(reasons: set[str]) -> str:
    """Why no weight is prunable, given why each matrix stays dense."""
    if not reasons:
        return "the model has no linear, convolutional, attention or recurrent layer"
    if reasons & set(_CHOSEN):
        return "include and exclude leave nothing to prune"
    kinds = ", ".join(sorted(reasons))
    return f"all stay dense by default ({kinds}); exclude_defaults=False prunes them"
