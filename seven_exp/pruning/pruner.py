"""The pruner: ties a criterion, a schedule and a scope to a model's weights."""

import inspect
import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.pruning.allocation import SCOPES
from seven_exp.pruning.choose import choose_masks
from seven_exp.pruning.criteria.base import Criterion, LossFunction, cleaned
from seven_exp.pruning.layers import Layer, matches, prunable_layers, unwrap
from seven_exp.pruning.masks import apply_masks, pack_bits, unpack_bits
from seven_exp.pruning.patterns import NOfM, parse_pattern
from seven_exp.pruning.registry import PRUNERS, When, check_when
from seven_exp.pruning.schedules import SCHEDULES, Schedule
from seven_exp.registry import nearest


class Pruner:
    """Chooses masks on a schedule and keeps pruned weights at exactly zero.

    Made by `create_pruner`. A pruner that prunes *during* training acts in `step`; the others act
    in `prune`, after which `step` only keeps the masks applied.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        criterion: Criterion,
        *,
        model: nn.Module,
        name: str,
        when: When,
        sparsity: float,
        sparsities: Mapping[str, float],
        schedule: str,
        window: Schedule | None,
        rounds: int,
        scope: str,
        pattern: str,
        min_density: float,
        optimizer: torch.optim.Optimizer | None,
    ) -> None:
        self.layers = list(layers)
        self.criterion = criterion
        self.name, self.when, self.scope, self.pattern = name, when, scope, pattern
        self.target = sparsity
        self.curve, self.window, self.rounds = schedule, window, rounds
        self._min_density = min_density
        self._model, self._optimizer = model, optimizer
        self._pattern = parse_pattern(pattern)
        self._units = self._pattern.units(self.layers)
        self._groups = _groups(self.layers, sparsity, sparsities)
        self._t = 0
        self._masks = [torch.ones_like(w, dtype=torch.bool) for w in self._weights()]
        self._sizes = [mask.numel() for mask in self._masks]
        self._kept = list(self._sizes)
        self._revival = criterion.revival
        if when != "during" and self._revival == "moved":
            # Nothing moves weights outside training.
            self._revival = "remembered"
        # Values that pruned weights may come back with.
        self._memory: list[Tensor] | None = None
        if self._revival == "remembered":
            self._memory = [weight.detach().clone() for weight in self._weights()]
        if criterion.starts_sparse:
            self._choose(self._selected(criterion.scores(self._weights()), lambda target: target))
            self.apply()

    @property
    def masks(self) -> dict[str, Tensor]:
        """Bool tensors keyed by parameter name, shaped like the weights; True = kept."""
        return {layer.name: mask for layer, mask in zip(self.layers, self._masks, strict=True)}

    @property
    def scores(self) -> dict[str, Tensor]:
        """The criterion's scores now, by parameter name; 0 where a weight is gone for good."""
        scores = self.criterion.scores(self._values())
        if self._revival == "never":
            scores = [s * mask for s, mask in zip(scores, self._masks, strict=True)]
        return {layer.name: score for layer, score in zip(self.layers, scores, strict=True)}

    @property
    def sparsity(self) -> float:
        """Fraction of zeros among the prunable weights, now."""
        return 1 - sum(self._kept) / sum(self._sizes)

    @property
    def layer_counts(self) -> dict[str, tuple[int, int]]:
        """Parameter name -> (number of weights, number kept)."""
        counts = zip(self._sizes, self._kept, strict=True)
        return {layer.name: count for layer, count in zip(self.layers, counts, strict=True)}

    @torch.no_grad()
    def step(self) -> None:
        """Call after ``optimizer.step()`` and before ``zero_grad()``, like an LR scheduler.

        Inside the window it takes in the gradients and, where the schedule says so, chooses the
        masks anew; always it sets pruned weights back to zero. Outside `prune`, a step of a
        "before" pruner that has not finished its rounds counts as one of them.
        """
        if self.window is None:
            return
        if self.window.covers(self._t) and self.criterion.uses_gradients:
            grads = [weight.grad for weight in self._weights()]
            values = self._values()
            self.criterion.update(values, cleaned(grads, values))
        self._advance()

    def prune(
        self,
        batches: Iterable[Any] | None = None,
        loss_fn: LossFunction | None = None,
        *,
        batches_per_round: int | None = None,
    ) -> None:
        """Choose the masks outside training; the surviving weights keep their values.

        Every round takes gradients on the next batches at the weights as masked so far, then
        raises the sparsity along the schedule. Parameters' ``.grad`` and the training mode are
        left as they are.

        Args:
            batches: What ``loss_fn`` takes, one each; begun again when they run out. Not needed
                by criteria that look at the weights alone.
            loss_fn: ``loss_fn(model, batch)`` -> scalar.
            batches_per_round: Default: all batches where there is one round, else one.

        Raises:
            RuntimeError: This pruner acts during training.
            ValueError: The criterion needs batches and has none.
        """
        if self.when == "during":
            raise RuntimeError(f"{self.name} prunes during training: call step() after each step")
        if not self.criterion.uses_gradients:
            batches, per_round = [None], 1
        elif batches is None or loss_fn is None:
            raise ValueError(f"{self.name} needs batches and a loss: prune(batches, loss_fn)")
        elif batches_per_round is None and self.rounds == 1:
            batches = list(batches)
            per_round = len(batches)
        else:
            per_round = batches_per_round or 1
        supply = iter(_endless(batches))
        self.window, self._t = Schedule(self.curve, 0, self.rounds), 0
        weights = self._weights()
        for _ in range(self.rounds):
            if self.criterion.uses_gradients and loss_fn is not None:
                chosen = list(itertools.islice(supply, max(1, per_round)))
                self.criterion.measure(self._model, weights, self._values(), chosen, loss_fn)
            with torch.no_grad():
                self._advance()

    def apply(self) -> None:
        """Set every pruned weight to exactly zero."""
        if sum(self._kept) < sum(self._sizes):
            apply_masks(self._weights(), self._masks)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, as tensors, numbers and strings; masks are packed to bits."""
        return {
            "name": self.name,
            "target": self.target,
            "step": self._t,
            "window": None if self.window is None else vars(self.window) | {},
            "masks": {name: pack_bits(mask) for name, mask in self.masks.items()},
            "state": {
                name: dict(zip(self.masks, tensors, strict=True))
                for name, tensors in self.criterion.state.items()
            },
            "numbers": dict(self.criterion.numbers),
            "memory": None
            if self._memory is None
            else dict(zip(self.masks, self._values(), strict=True)),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, on a model with the same prunable weights.

        Raises:
            ValueError: It was saved by another pruner or for other weights.
        """
        if state["name"] != self.name or list(state["masks"]) != list(self.masks):
            raise ValueError(f"the state of '{state['name']}' does not fit {self.name}'s weights")
        weights = self._weights()
        self.target, self._t = state["target"], state["step"]
        self.window = None if state["window"] is None else Schedule(**state["window"])
        self._choose(
            [
                unpack_bits(packed.to(weight.device), weight.shape)
                for packed, weight in zip(state["masks"].values(), weights, strict=True)
            ]
        )
        self.criterion.state = {
            name: [tensors[layer.name].to(layer.weight.device).clone() for layer in self.layers]
            for name, tensors in state["state"].items()
        }
        self.criterion.numbers = dict(state["numbers"])
        if state["memory"] is not None:
            self._memory = [
                state["memory"][layer.name].to(layer.weight.device).clone() for layer in self.layers
            ]
        self.apply()

    def _advance(self) -> None:
        """One step on: new masks if the schedule says so, and pruned weights back to zero."""
        assert self.window is not None
        values = self._values()
        if self.window.updates(self._t):
            wanted = partial(self.window.sparsity, self._t)
            ranks = self.criterion.rank(values, self._masks, self.window.progress(self._t))
            before = self._masks
            self._choose(self._selected(ranks, wanted))
            self._revive(before, values)
        if self._memory is not None:
            self._memory = [value.detach() for value in values]
        self._t += 1
        self.apply()

    def _values(self) -> list[Tensor]:
        """The weights, pruned ones as they would come back."""
        weights: list[Tensor] = list(self._weights())
        if self._memory is None:
            return weights
        with torch.no_grad():
            return [
                torch.where(mask, weight, remembered)
                for mask, weight, remembered in zip(self._masks, weights, self._memory, strict=True)
            ]

    def _revive(self, before: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        """Give weights that are back the value they come back with."""
        if self._revival in ("never", "moved"):
            return
        for weight, old, new, value in zip(
            self._weights(), before, self._masks, values, strict=True
        ):
            returned = new & ~old
            if self._revival == "remembered":
                torch.where(returned, value, weight, out=weight.data)
                continue
            weight.data.masked_fill_(returned, 0.0)
            state = self._optimizer.state.get(weight, {}) if self._optimizer else {}
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == weight.shape:
                    moment.masked_fill_(returned, 0.0)

    def _selected(self, scores: Sequence[Tensor], wanted: Callable[[float], float]) -> list[Tensor]:
        """New masks, given what sparsity is wanted now of layers with a target."""
        masks = list(self._masks)
        for target, members in self._groups.items():
            candidates = [self._masks[i] for i in members]
            if self._revival != "never":
                candidates = [torch.ones_like(mask) for mask in candidates]
            chosen = choose_masks(
                [scores[i] for i in members],
                candidates,
                1 - wanted(target),
                scope=SCOPES[self.scope],
                pattern=self._pattern,
                units=None if self._units is None else [self._units[i] for i in members],
                min_density=self._min_density,
            )
            for i, mask in zip(members, chosen, strict=True):
                masks[i] = mask
        return masks

    def _choose(self, masks: list[Tensor]) -> None:
        self._masks = masks
        living = [i for i, kept in enumerate(self._kept) if kept]
        self._kept = torch.stack([mask.sum().cpu() for mask in masks]).tolist()
        for i in living:
            if self._kept[i] == 0:
                warnings.warn(
                    f"{self.layers[i].name} has lost all its weights; min_density keeps some",
                    stacklevel=4,
                )

    def _weights(self) -> list[nn.Parameter]:
        return [layer.weight for layer in self.layers]


def create_pruner(
    name: str,
    model: nn.Module,
    *,
    sparsity: float,
    begin_step: int = 0,
    end_step: int | None = None,
    interval: int = 1,
    levels: int | None = None,
    rounds: int | None = None,
    when: When | None = None,
    schedule: str | None = None,
    scope: str | None = None,
    sparsities: Mapping[str, float] | None = None,
    pattern: str = "unstructured",
    min_density: float = 0.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    **hyperparameters: Any,
) -> Pruner:
    """A registered pruner for a model.

    Args:
        name: A registered name, such as "seven_dyn", "seven_pre" or "magnitude".
        model: Prunable weights are found in it; nothing in it is wrapped or renamed.
        sparsity: Final fraction of zeros among the prunable weights, in [0, 1).
        begin_step: First call of `Pruner.step` at which it acts ("during" only).
        end_step: The masks are final after ``end_step`` calls of `Pruner.step`. For a "before"
            pruner the same as ``rounds``.
        interval: Steps from one choice of masks to the next ("during" only).
        levels: Stairs of the schedule ("during" only); default: as fine as the steps.
        rounds: Mask updates of a "before" or "after" pruner.
        when: "before", "during" or "after"; default: what the name stands for.
        schedule: Name of a curve; default: what the name stands for.
        scope: "global": all weights compete; "per_layer": each layer reaches the sparsity;
            "per_row", "erk"; default: what the name stands for.
        sparsities: Name pattern -> another sparsity for the layers that match, the first one
            counting. The layers of one sparsity are pruned by ``scope`` among themselves.
        pattern: "unstructured", "N:M", "RxC" blocks, "rows" or "heads".
        min_density: Every layer keeps at least this fraction of its weights, in [0, 1).
        include: Name patterns; see `prunable_layers`.
        exclude: Name patterns; see `prunable_layers`.
        optimizer: Whose state of weights that start anew at zero is cleared (SET, RigL).
        **hyperparameters: The criterion's own, such as ``alpha_1``.

    Raises:
        ValueError: A name, a number or a combination of them is not valid; the message says which
            and names the nearest valid choice.
    """
    spec = PRUNERS[name]
    when = when or spec.when
    check_when(when)
    check_sparsity(sparsity)
    scope = scope or spec.scope
    SCOPES[scope]
    _check_floor(min_density, sparsity, pattern)
    curve = schedule or spec.schedule
    SCHEDULES[curve]
    criterion = build_criterion(name, hyperparameters)
    if criterion.only_before and when == "during":
        raise ValueError(f"{name} looks at the model itself: choose when=before or when=after")
    if criterion.starts_sparse and when != "during":
        raise ValueError(f"{name} exchanges weights while they are trained: choose when=during")
    rounds = _rounds(rounds, spec.rounds, end_step if when == "before" else None)
    window = None
    if when == "during":
        if end_step is None:
            raise ValueError(f"{name} prunes during training: give end_step")
        window = Schedule(curve, begin_step, end_step, interval, levels)
    elif when == "before":
        window = Schedule(curve, begin_step, begin_step + rounds)

    layers = prunable_layers(model, include, exclude)
    target = float(sparsity) if spec.prunes else 0.0
    sparsities = dict(sparsities or {}) if spec.prunes else {}
    for own in sparsities.values():
        check_sparsity(own)
        _check_floor(min_density, own, pattern)
    for own, members in _groups(layers, target, sparsities).items():
        parse_pattern(pattern).check([layers[i] for i in members], own, scope)
    if criterion.uses_gradients:
        for layer in layers:
            if not layer.weight.requires_grad:
                raise ValueError(
                    f"{layer.name} is frozen and {name} needs its gradient: "
                    "exclude it, or let it require gradients"
                )
    return Pruner(
        layers,
        criterion,
        model=unwrap(model),
        name=name,
        when=when,
        sparsity=target,
        sparsities=sparsities,
        schedule=curve,
        window=window,
        rounds=rounds,
        scope=scope,
        pattern=pattern,
        min_density=min_density,
        optimizer=optimizer,
    )


def _groups(
    layers: Sequence[Layer], sparsity: float, sparsities: Mapping[str, float]
) -> dict[float, list[int]]:
    """Target -> the layers that have it.

    Raises:
        ValueError: A pattern matches no layer.
    """
    for pattern in sparsities:
        if not any(matches(layer.name, pattern) for layer in layers):
            raise ValueError(f"sparsities pattern '{pattern}' matches no prunable weight")
    groups: dict[float, list[int]] = {}
    for i, layer in enumerate(layers):
        own = (s for pattern, s in sparsities.items() if matches(layer.name, pattern))
        groups.setdefault(float(next(own, sparsity)), []).append(i)
    return groups


def build_criterion(name: str, hyperparameters: dict[str, Any]) -> Criterion:
    """The criterion that a pruner's name stands for.

    Raises:
        ValueError: Unknown pruner, or a hyper-parameter that it does not take.
    """
    criterion = PRUNERS[name].criterion
    known = list(inspect.signature(criterion).parameters)
    for key in hyperparameters:
        if key not in known:
            hint = nearest(key, known) if known else "it takes none"
            raise ValueError(f"{name} has no hyper-parameter '{key}': {hint}")
    return criterion(**hyperparameters)


def check_sparsity(sparsity: float) -> None:
    """Raise ValueError unless the sparsity is a number in [0, 1)."""
    if not isinstance(sparsity, int | float) or not 0 <= sparsity < 1:
        near = 0.0 if isinstance(sparsity, int | float) and sparsity < 0 else 0.99
        raise ValueError(
            f"sparsity is {sparsity}: choose a fraction of zeros from 0 up to, not including, 1, "
            f"such as {near}"
        )


def _check_floor(min_density: float, sparsity: float, pattern: str) -> None:
    if not 0 <= min_density < 1:
        raise ValueError(f"min_density is {min_density}: choose a number in [0, 1)")
    if min_density > 1 - sparsity:
        raise ValueError(
            f"min_density is {min_density}: more than the density asked for, {1 - sparsity:g}"
        )
    if min_density and not isinstance(parse_pattern(pattern), NOfM) and pattern != "unstructured":
        raise ValueError(f"min_density counts weights: pattern '{pattern}' removes whole units")


def _rounds(given: int | None, default: int, window: int | None) -> int:
    rounds = next(r for r in (given, window, default) if r is not None)
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: choose 1 or more")
    return rounds


def _endless(batches: Iterable[Any]) -> Iterable[Any]:
    """The batches again and again.

    Raises:
        ValueError: There are none, or they can't be gone through again.
    """
    while True:
        exhausted = True
        for batch in batches:
            exhausted = False
            yield batch
        if exhausted:
            raise ValueError("no batches left to prune on: give more, or a list of them")
