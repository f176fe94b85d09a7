"""Creating a pruner: converts flat keywords to the types that a pruner consists of."""

import inspect
import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from seven_exp.pruning.allocation import SCOPES, Measured
from seven_exp.pruning.bounds import count, fraction, positive
from seven_exp.pruning.competition import COMPETITIVE, Competition
from seven_exp.pruning.criteria.solver import ReaderSolver, Solver
from seven_exp.pruning.keywords import check_optimizer, refuse_unread
from seven_exp.pruning.layers import Coverage, Layer, matches, survey, unwrap
from seven_exp.pruning.method import (
    Method,
    check_pattern,
    check_sharded,
    needs_batches,
    needs_model,
    regrows,
    starts_sparse,
)
from seven_exp.pruning.misfits import Misfits, misfits_of, resolve
from seven_exp.pruning.name_patterns import check_patterns
from seven_exp.pruning.patterns import Pattern, Units, parse_pattern
from seven_exp.pruning.pruner import Pruner
from seven_exp.pruning.registry import PRUNERS, PrunerSpec, When, build_method, check_when
from seven_exp.pruning.regrowth import FromZero, StayGone
from seven_exp.pruning.schedules import SCHEDULES, Gradual, Rounds, course
from seven_exp.pruning.shards import shards_of


def create_pruner(  # noqa: PLR0913  flat keywords are the user's contract
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
    pattern: str | Pattern = "unstructured",
    min_density: float = 0.0,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    exclude_defaults: bool = True,
    misfits: Misfits = "error",
    optimizer: torch.optim.Optimizer | None = None,
    **hyperparameters: Any,
) -> Pruner:
    """Create a registered pruner for a model.

    Args:
        name: A registered name, such as "seven_dyn", "seven_pre" or "magnitude".
        model: The model to prune; its modules are neither wrapped nor renamed. With
            DistributedDataParallel, gradients are averaged and all ranks choose the same masks;
            with ``fully_shard``, each rank holds the masks and the state of its own rows.
        sparsity: Final fraction of zeros among the prunable weights, in [0, 1).
        begin_step: The window starts after ``begin_step`` calls of `Pruner.step` ("during" only).
        end_step: The masks are final after ``end_step`` calls of `Pruner.step`. For a "before"
            pruner it is the same as ``rounds``; give one of the two.
        interval: Number of steps from one mask update to the next ("during" only).
        levels: Number of stairs of the schedule ("during" only); default: one per step.
        rounds: Number of mask updates of a "before" or "after" pruner.
        when: "before", "during" or "after" training; default: that of the name.
        schedule: Name of a curve; default: that of the name.
        scope: "global": all weights compete; "per_layer": each layer reaches the sparsity;
            "per_row", "lamp", "erk", "owl", "alpha"; default: that of the name.
        sparsities: Name or name pattern -> sparsity of the matching layers. The first match counts.
            Layers with the same sparsity compete among themselves, as ``scope`` says.
        pattern: "unstructured", "N:M", "RxC" blocks, "rows", "heads" or "depth"; or a pattern that
            was made for the model, such as `seven_exp.shrink.coupled_pattern`.
        min_density: Every layer of n weights keeps at least ``int(min_density * n)``, in [0, 1).
            For the scopes in which layers compete: "global" and "lamp".
        include: Names or name patterns; only matching weights are pruned. See `survey`.
        exclude: Names or name patterns; matching weights stay dense. See `survey`.
        exclude_defaults: Whether output layers, embeddings, routers and adapters stay dense.
        misfits: What to do with layers that the pruner, the scope or the pattern can't prune:
            "error" raises, "dense" leaves them dense with a warning.
        optimizer: The optimizer that trains the weights, not a wrapper of it. Methods with regrowth
            treat its moments as their papers do. SET, RigL and AC/DC require it and clear the
            moments of regrown weights. With movement and straight-through magnitude, it steps on
            the dense weights.
        **hyperparameters: The method's own, such as ``alpha_1``.

    Raises:
        ValueError: A name, a number or a combination is invalid, or the pruner does not read a
            keyword. The message names the fault and the nearest valid choice.
    """
    spec = PRUNERS[name]
    when = when or spec.when
    check_when(when)
    scope = scope or spec.scope
    SCOPES[scope]
    curve = schedule or spec.schedule
    SCHEDULES[curve]
    sparsities = dict(sparsities or {})
    given = {
        "begin_step": begin_step,
        "end_step": end_step,
        "interval": interval,
        "levels": levels,
        "rounds": rounds,
        "when": when,
        "schedule": curve,
        "scope": scope,
        "sparsities": sparsities,
        "pattern": pattern,
        "min_density": min_density,
        "optimizer": optimizer,
    }
    method = build_method(name, hyperparameters)
    refuse_unread(name, method, when, curve, given, _defaults(spec))
    sparsity = fraction("sparsity", sparsity)
    min_density = fraction("min_density", min_density)
    numbers = {
        keyword: None if given[keyword] is None else count(keyword, given[keyword])
        for keyword in ("begin_step", "end_step", "interval", "levels", "rounds")
    }
    sparsities = {key: fraction(f"sparsities['{key}']", own) for key, own in sparsities.items()}
    which = pattern if isinstance(pattern, Pattern) else parse_pattern(pattern)
    for own in (sparsity, *sparsities.values()):
        _check_floor(min_density, own, which, scope)
    timing = _timing(name, method, when, curve, spec.rounds, numbers)
    check_scope(name, method, scope, when, 1 if isinstance(timing, Gradual) else timing.n)
    check_pattern(method, which)
    if (shards := shards_of(unwrap(model))) is not None and spec.prunes:
        check_sharded(name, method, scope, which)
    which = which.of(model)

    coverage = survey(model, include, exclude, exclude_defaults=exclude_defaults)
    target = sparsity if spec.prunes else 0.0
    for own in _groups(coverage.layers, target, sparsities):
        which.check(own, scope)
    measured = isinstance(SCOPES[scope], Measured)
    rows = measured and spec.scope == "per_row" and not isinstance(which, Units)
    coverage = _fitting(coverage, method, which, rows or scope == "per_row", when, misfits)
    if isinstance(method, ReaderSolver):
        _check_readers(name, method, coverage.layers, which)
    if when == "during":
        needed = issubclass(regrows(method), FromZero)
        check_optimizer(name, optimizer, coverage.layers, needed=needed)
    if spec.prunes:
        _warn_of_curve(name, method, curve)
        if words := coverage.shortfall():
            warnings.warn(words, stacklevel=2)
    groups = _groups(coverage.layers, target, sparsities)
    competition = Competition(
        *(coverage.layers, target, groups, scope, which, min_density),
        each_row=rows,
        shards=shards,
    )
    _check_units(competition)
    return Pruner(name, model, method, timing, competition, coverage, optimizer)


def _timing(
    name: str,
    method: Method,
    when: When,
    curve: str,
    usual_rounds: int,
    numbers: Mapping[str, Any],
) -> Gradual | Rounds:
    """When the masks are chosen.

    Raises:
        ValueError: The method does not support this time, or a number is missing or contradicts
            another one.
    """
    if needs_model(method) and when == "during":
        raise ValueError(f"{name} runs the model itself: choose when=before or when=after")
    if starts_sparse(method) and when != "during":
        raise ValueError(f"{name} exchanges weights during training: choose when=during")
    begin, end, interval, levels, rounds = numbers.values()
    if when == "during":
        if end is None:
            raise ValueError(f"{name} prunes during training: give end_step")
        return Gradual(curve, begin, end, interval, levels)
    if when == "before" and None not in (rounds, end) and rounds != end:
        raise ValueError(
            f"rounds is {rounds} and end_step {end}: before training they mean the same, give one"
        )
    if rounds is None:
        rounds = usual_rounds if end is None or when == "after" else end
    return Rounds(curve, positive("rounds", rounds), when)


def check_scope(name: str, method: Method, scope: str, when: When, rounds: int) -> None:
    """Raise ValueError, with the reason, if a pruner can't use a scope."""
    kind = SCOPES[scope]
    if not isinstance(kind, Measured):
        return
    if when == "during":
        raise ValueError(
            f"scope '{scope}' measures the dense model, but {name} prunes during training: choose "
            "when=before or when=after, or another scope"
        )
    if kind.of_inputs and not isinstance(method, Solver):
        raise ValueError(
            f"scope '{scope}' measures the inputs of the dense model, which {name} does not read: "
            "choose wanda or another pruner that does, or scope alpha"
        )
    if rounds != 1:
        raise ValueError(
            f"scope '{scope}' measures the dense model once, but rounds is {rounds}: choose 1, or "
            "another scope"
        )


def _fitting(
    coverage: Coverage,
    method: Method,
    pattern: Pattern,
    each_row: bool,
    when: When,
    misfits: Misfits,
) -> Coverage:
    """The layers that the method, the pattern and the scope can prune.

    Raises:
        ValueError: Some layers don't fit and ``misfits`` is "error", or no layer fits.
    """
    solved = isinstance(method, Solver)
    frozen_too = needs_batches(method) and when == "during"
    found = misfits_of(
        coverage.layers, pattern, each_row=each_row, solved=solved, needs_gradients=frozen_too
    )
    if solved:
        # A solver leaves these dense whatever ``misfits`` says.
        coverage, found = resolve(coverage, found, "dense"), {}
    fitting = [layer for layer in coverage.layers if layer.name not in found]
    return resolve(coverage, found | pattern.misfits(fitting), misfits)


def _check_readers(
    name: str, solver: ReaderSolver, layers: Sequence[Layer], pattern: Pattern
) -> None:
    """Raise ValueError unless layers read the units, with biases if the solver moves them."""
    readers = [layers[i] for i in sorted(pattern.readers(layers))]
    if not readers:
        raise ValueError(
            f"{name} scores a unit by the layer that reads it, and every layer has units of its "
            "own: it fits the heads and MLPs of Transformers"
        )
    lacking = [x.name for x in readers if getattr(x.module, "bias", None) is None]
    if solver.moves_biases and lacking:
        raise ValueError(
            f"{name} moves the mean of pruned inputs to a bias, and {lacking[0]} has none: load "
            "the model with biases (model.biases=true on the command line), or choose bias=false "
            "(pruner.bias=false)"
        )


def _defaults(spec: PrunerSpec) -> dict[str, Any]:
    """Keyword of `create_pruner` -> its default for this pruner."""
    parameters = inspect.signature(create_pruner).parameters.values()
    own = {"when": spec.when, "schedule": spec.schedule, "scope": spec.scope, "sparsities": {}}
    return {parameter.name: parameter.default for parameter in parameters} | own


def _groups(
    layers: Sequence[Layer], sparsity: float, sparsities: Mapping[str, float]
) -> dict[float, list[int]]:
    """Final sparsity -> indices of the layers that have it.

    Raises:
        ValueError: A name pattern matches no layer.
    """
    check_patterns("sparsities", sparsities, [layer.name for layer in layers], "prunable weight")
    groups: dict[float, list[int]] = {}
    for i, layer in enumerate(layers):
        own = (s for pattern, s in sparsities.items() if matches(layer.name, pattern))
        groups.setdefault(float(next(own, sparsity)), []).append(i)
    return groups


def _check_floor(min_density: float, sparsity: float, pattern: Pattern, scope: str) -> None:
    # In floating point, 0.1 > 1 - 0.9.
    if min_density > 1 - sparsity + 1e-9:
        raise ValueError(
            f"min_density is {min_density}, more than the final density {1 - sparsity:g}: "
            f"choose {1 - sparsity:g} or less"
        )
    if min_density and isinstance(pattern, Units):
        raise ValueError(
            f"min_density counts single weights, but pattern '{pattern}' removes whole units: "
            "leave min_density out"
        )
    if min_density and scope not in COMPETITIVE:
        raise ValueError(
            f"min_density is {min_density}: scope '{scope}' fixes what each layer keeps; choose "
            f"{' or '.join(COMPETITIVE)}"
        )


def _check_units(competition: Competition) -> None:
    """Raise ValueError if layers that share units, which are pruned together, are to differ."""
    pattern = competition.pattern
    if len(competition.targets) < 2 or not isinstance(pattern, Units) or not pattern.spans_weights:
        return
    first: dict[int, tuple[float, str]] = {}
    for target, members in competition.targets.items():
        for i in members:
            name = competition.layers[i].name
            other, its = first.setdefault(competition.families[i], (target, name))
            if other != target:
                raise ValueError(
                    f"sparsities: {its} has {other:g} and {name} {target:g}, but they share units "
                    f"of pattern {pattern}, which are pruned together: give both the same"
                )


def _warn_of_curve(name: str, method: Method, curve: str) -> None:
    """Warn if the method can't follow the curve."""
    values = course(curve)
    if starts_sparse(method) and min(values) < max(values):
        words = "starts sparse, which this schedule undoes: choose constant"
    elif regrows(method) is StayGone and any(b < a for a, b in itertools.pairwise(values)):
        words = "never lets a pruned weight return, so it keeps the highest sparsity so far"
    else:
        return
    warnings.warn(f"{name} with schedule '{curve}': it {words}", stacklevel=3)
