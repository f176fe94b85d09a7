"""The probe: measures gradients and masks during a run, without changing anything."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.analysis.collapse import collapsed, empty_columns, empty_rows
from seven_exp.analysis.distributions import (
    Distribution,
    distribution,
    separation,
    separation_in_layers,
)
from seven_exp.analysis.signal_to_noise import MEASURES, Moments
from seven_exp.analysis.survival import births, survival, survivors
from seven_exp.pruning import pack_bits, unpack_bits
from seven_exp.pruning.criteria.score import LossFunction, cleaned
from seven_exp.pruning.layers import Layer, unwrap
from seven_exp.pruning.replicas import Group, average
from seven_exp.tracking import Histogram

SCHEMA = 1
"""Version of the schema of analysis.json."""

LIMITS = {"snr": 1.2, "direction": 1.0}
"""Upper ends of the histograms; both ratios stay below them for the paper's decays."""

Ratios = dict[str, list[Tensor]]


class Probe:
    """Measures signal to noise of kept and pruned weights' gradients, and which weights stay kept.

    Each measurement compares the two ratios of `Moments` in three ways:

    - ``now``: ratios of the latest steps, kept weights against pruned ones. A pruned weight's
      gradient is that at zero, so pruning itself may have changed it.
    - ``choice``: ratios at the previous measurement, of the weights kept then: those kept since
      against those pruned since. Pruning can't have affected these ratios.
    - ``start``: over many batches at the dense start, kept weights against pruned ones. The same
      numbers are used for every method of one seed.

    It holds 12 bytes for each float32 weight, 4 more each for ``choice`` and ``start``, which are
    kept in half precision, and two masks.

    Args:
        layers: The layers to measure.
        bins: Number of bins of the histograms.
        group: Ranks with replicas of the model, over which the start's gradients are averaged.
    """

    def __init__(
        self, layers: Sequence[Layer], *, bins: int = 40, group: Group | None = None
    ) -> None:
        self._layers = list(layers)
        self._bins, self._group = bins, group
        self._moments = Moments()
        self._start: Ratios | None = None
        self._before: Ratios | None = None
        self._masks = [torch.ones_like(layer.weight, dtype=torch.bool) for layer in layers]
        self._unbroken = [mask.clone() for mask in self._masks]
        self._measurements: list[dict[str, Any]] = []

    def begin(self, model: nn.Module, batches: Iterable[Any], loss_fn: LossFunction) -> None:
        """Measure the start: one gradient per batch at the present weights, in training mode.

        It uses a copy of the model. Dropout draws from torch's generators.

        Args:
            model: The model that contains the layers.
            batches: Each one is passed to ``loss_fn``.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
        """
        twin = copy.deepcopy(unwrap(model)).train()
        named = dict(twin.named_parameters(remove_duplicate=False))
        weights = [named[layer.name].requires_grad_() for layer in self._layers]
        moments = Moments(1, 1)
        for batch in batches:
            found = torch.autograd.grad(loss_fn(twin, batch), weights, allow_unused=True)
            grads = cleaned(found, weights)
            average(grads, self._group)
            moments.update(grads)
        self._start = _halved(moments.ratios()) if moments.t else None

    def update(self) -> None:
        """Add a step's gradients: call it after the pruner's step, before they are cleared."""
        weights = [layer.weight for layer in self._layers]
        self._moments.update(cleaned([weight.grad for weight in weights], weights))

    @torch.no_grad()
    def measure(self, step: int, masks: Mapping[str, Tensor]) -> dict[str, float | Histogram]:
        """Measure the masks and the gradients added so far.

        Args:
            step: Number of optimizer steps so far.
            masks: As `Pruner.masks`.

        Returns:
            Values for a tracker, under ``analysis/``. `report` also has each layer's values.
        """
        before = self._masks
        # Layers that misfit and stay dense have no mask.
        after = [
            masks.get(layer.name, old) for layer, old in zip(self._layers, before, strict=True)
        ]
        gone = [~mask for mask in after]
        now = self._moments.ratios()
        looks = {"now": (now, after, gone)}
        if self._before is not None:
            fallen = [old & dead for old, dead in zip(before, gone, strict=True)]
            kept = [old & new for old, new in zip(before, after, strict=True)]
            if any(bool(mask.any()) for mask in fallen):
                looks["choice"] = (self._before, kept, fallen)
        if self._start is not None:
            looks["start"] = (self._start, after, gone)
        for unbroken, mask in zip(self._unbroken, after, strict=True):
            unbroken &= mask

        total = sum(mask.numel() for mask in after)
        rows = self._by_output(after)
        entry: dict[str, Any] = {
            "step": step,
            "survival": survival(before, after),
            "births": births(before, after),
            "unbroken": sum(int(mask.sum()) for mask in self._unbroken) / total,
            "silent": sum(int(ratio.isnan().sum()) for ratio in now["snr"]) / total,
            "kept": [int(mask.sum()) for mask in after],
            "survived": survivors(before, after),
            "collapsed": [self._layers[i].name for i in collapsed(after)],
            "empty_rows": list(map(empty_rows, rows)),
            "empty_columns": list(map(empty_columns, rows)),
        }
        values: dict[str, float | Histogram] = {
            **{f"analysis/{key}": entry[key] for key in ("survival", "births", "unbroken")},
            "analysis/silent": entry["silent"],
            "analysis/collapsed_layers": len(entry["collapsed"]),
            "analysis/empty_rows": sum(entry["empty_rows"]) / sum(map(len, rows)),
        }
        for look, (ratios, one, other) in looks.items():
            for measure in MEASURES:
                found = self._compared(ratios[measure], one, other, LIMITS[measure])
                entry.setdefault(look, {})[measure] = found
                name = f"analysis/{measure}" if look == "now" else f"analysis/{look}_{measure}"
                values |= _figures(name, found, _edges(LIMITS[measure], self._bins))
        self._measurements.append(entry)
        self._masks, self._before = [mask.clone() for mask in after], _halved(now)
        return values

    def report(self) -> dict[str, Any]:
        """All measurements so far, as JSON-like containers: ``analysis.json``."""
        return {
            "schema": SCHEMA,
            "edges": {name: _edges(limit, self._bins) for name, limit in LIMITS.items()},
            "layers": [
                {"name": layer.name, "numel": rows.numel(), "shape": [*rows.shape]}
                for layer, rows in zip(self._layers, self._by_output(self._masks), strict=True)
            ],
            "measurements": list(self._measurements),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue, as tensors, numbers and strings; masks are packed."""
        return {
            "bins": self._bins,
            "step": self._moments.t,
            "moments": self._named(self._moments.state),
            "start": None if self._start is None else self._named(self._start),
            "before": None if self._before is None else self._named(self._before),
            "masks": self._keyed([pack_bits(mask) for mask in self._masks]),
            "unbroken": self._keyed([pack_bits(mask) for mask in self._unbroken]),
            "measurements": copy.deepcopy(self._measurements),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`, on a model with the same prunable weights.

        Raises:
            ValueError: It was saved for other weights.
        """
        if list(state["masks"]) != [layer.name for layer in self._layers]:
            raise ValueError("the probe's state was saved for other weights")
        self._bins, self._moments.t = state["bins"], state["step"]
        self._moments.state = self._listed(state["moments"])
        self._start = None if state["start"] is None else self._listed(state["start"])
        self._before = None if state["before"] is None else self._listed(state["before"])
        self._masks, self._unbroken = (
            [
                unpack_bits(
                    state[key][layer.name].to(layer.weight.device), tuple(layer.weight.shape)
                )
                for layer in self._layers
            ]
            for key in ("masks", "unbroken")
        )
        self._measurements = copy.deepcopy(list(state["measurements"]))

    def _compared(
        self,
        ratio: Sequence[Tensor],
        kept: Sequence[Tensor],
        pruned: Sequence[Tensor],
        limit: float,
    ) -> dict[str, Any]:
        one, other = (distribution(ratio, m, limit, self._bins) for m in (kept, pruned))
        return {
            "kept": _plain(one),
            "pruned": _plain(other),
            "separation": _rounded(separation(one.total, other.total)),
            "separation_in_layers": _rounded(separation_in_layers(one, other)),
        }

    def _by_output(self, masks: Sequence[Tensor]) -> list[Tensor]:
        """The masks, with one row for each output."""
        return [layer.by_output(mask) for layer, mask in zip(self._layers, masks, strict=True)]

    def _keyed(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        return {layer.name: tensor for layer, tensor in zip(self._layers, tensors, strict=True)}

    def _named(self, ratios: Ratios) -> dict[str, dict[str, Tensor]]:
        return {name: self._keyed(tensors) for name, tensors in ratios.items()}

    def _listed(self, named: Mapping[str, Mapping[str, Tensor]]) -> Ratios:
        return {
            name: [tensors[layer.name].to(layer.weight.device).clone() for layer in self._layers]
            for name, tensors in named.items()
        }


def _halved(ratios: Ratios) -> Ratios:
    return {name: [tensor.half() for tensor in tensors] for name, tensors in ratios.items()}


def _edges(limit: float, bins: int) -> list[float]:
    return [limit * i / bins for i in range(bins + 1)]


def _plain(found: Distribution) -> dict[str, Any]:
    return {
        "mean": _rounded(found.mean),
        "counts": found.total,
        "layer_means": [_rounded(mean) for mean in found.means],
    }


def _rounded(value: float | None) -> float | None:
    """More digits would only store float32's rounding, and enlarge the file."""
    return None if value is None else float(f"{value:.6g}")


def _figures(
    name: str, found: Mapping[str, Any], edges: Sequence[float]
) -> dict[str, float | Histogram]:
    """A tracker's values for one comparison; an empty set has none."""
    values: dict[str, float | Histogram] = {}
    for group in ("kept", "pruned"):
        if found[group]["mean"] is not None:
            values[f"{name}_{group}"] = found[group]["mean"]
            values[f"{name}_{group}_histogram"] = Histogram(found[group]["counts"], edges)
    if found["separation"] is not None:
        values[f"{name}_separation"] = found["separation"]
    return values
