"""Counts the zeros of a model and compares them with the masks, instead of assuming them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from seven_exp.pruning.layers import Layer, unwrap
from seven_exp.pruning.replicas import Group
from seven_exp.pruning.shards import held, summed


@dataclass(frozen=True)
class LayerCheck:
    """One prunable weight of a model.

    Attributes:
        size: Number of weights.
        masked: Number of weights that the mask prunes.
        zeros: Number of weights that are zero, whatever the mask says.
        broken: Number of pruned weights that are not zero.
    """

    size: int
    masked: int
    zeros: int
    broken: int


@dataclass(frozen=True)
class Check:
    """The zeros of a model.

    Attributes:
        layers: Parameter name -> the counts of that weight.
        parameters: Number of weights in all parameters of the model; shared ones count once.
        zeros: How many of those are zero.
    """

    layers: Mapping[str, LayerCheck]
    parameters: int
    zeros: int

    @property
    def zeros_prunable(self) -> float:
        """Fraction of the prunable weights that is zero."""
        return sum(c.zeros for c in self.layers.values()) / sum(
            c.size for c in self.layers.values()
        )

    @property
    def zeros_total(self) -> float:
        """Fraction of all parameters that is zero."""
        return self.zeros / self.parameters

    @property
    def ok(self) -> bool:
        """Whether every pruned weight is zero."""
        return not any(check.broken for check in self.layers.values())

    def raise_for_mismatch(self) -> None:
        """Raise RuntimeError unless every pruned weight is zero; the message names a layer."""
        broken = {name: check for name, check in self.layers.items() if check.broken}
        if broken:
            name, worst = max(broken.items(), key=lambda item: item[1].broken)
            raise RuntimeError(
                f"the model disagrees with its masks in {len(broken)} of {len(self.layers)} "
                f"weights: {worst.broken} of {worst.masked} pruned weights of {name} are not zero; "
                "call pruner.apply() on the model after the code that changed it"
            )


@torch.no_grad()
def check_zeros(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    shards: Group | None = None,
) -> Check:
    """Count the zeros of a model, and the nonzero weights that the masks prune.

    Args:
        model: All its parameters are counted.
        weights: Parameter name -> the model's prunable weight.
        masks: The same names -> bool tensors of the same shapes, True = kept; or of the rows that
            this rank holds.
        shards: Ranks that hold the other rows.
    """
    counts = []
    for name, weight in weights.items():
        rows = held(weight)
        pruned = ~masks[name].to(rows.device)
        broken = int(torch.count_nonzero((rows != 0) & pruned))
        counts.append([int(pruned.sum()), _zeros(rows), broken])
    parameters = list(model.parameters())
    counts.append([sum(_zeros(held(p)) for p in parameters), 0, 0])
    numbers = torch.tensor(counts, dtype=torch.int64, device="cpu")
    *found, (zeros, *_) = summed(numbers, shards, parameters[0].device).tolist()
    pairs = zip(weights.items(), found, strict=True)
    layers = {name: LayerCheck(weight.numel(), *own) for (name, weight), own in pairs}
    return Check(layers, sum(p.numel() for p in parameters), zeros)


def _zeros(tensor: Tensor) -> int:
    return tensor.numel() - int(torch.count_nonzero(tensor.detach()))


def counterparts(model: nn.Module, layers: Sequence[Layer]) -> dict[str, nn.Parameter]:
    """The weights of a copy of a model that correspond to the layers of the original.

    They are matched by name, after any prefix that wrappers add, such as the ``module.`` of
    ``torch.optim.swa_utils.AveragedModel``.

    Args:
        model: The copy, or a wrapper of it.
        layers: The layers of the original.

    Returns:
        Parameter name in the original -> the copy's parameter.

    Raises:
        ValueError: A weight is missing or has another shape, or the model holds several copies.
    """
    named = {
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in unwrap(model).named_parameters(remove_duplicate=False)
    }
    wanted = [layer.name for layer in layers]
    prefixes = [name.removesuffix(wanted[0]) for name in named if _ends(name, wanted[0])]
    fitting = [prefix for prefix in prefixes if all(prefix + name in named for name in wanted)]
    if "" in fitting:
        fitting = [""]
    if len(fitting) > 1:
        raise ValueError(
            f"the model holds several copies, '{fitting[0].rstrip('.')}' and "
            f"'{fitting[1].rstrip('.')}': give one of them"
        )
    prefix = fitting[0] if fitting else ""
    missing = [name for name in wanted if prefix + name not in named]
    if missing:
        raise ValueError(
            f"the model has no {', '.join(missing[:3])}{' ...' if missing[3:] else ''}: pass a "
            "copy of the model that the pruner was created for"
        )
    found = {name: named[prefix + name] for name in wanted}
    for layer in layers:
        theirs, own = found[layer.name].shape, layer.weight.shape
        if theirs != own:
            raise ValueError(
                f"{layer.name} has shape {tuple(theirs)} in this model and {tuple(own)} in the "
                "pruner's: pass a copy of the model that the pruner was created for"
            )
    return found


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith("." + ending)
