"""The keywords of `create_pruner`: which ones a pruner reads, and which values are valid."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from seven_exp.pruning.layers import Layer
from seven_exp.pruning.method import Method, regrows
from seven_exp.pruning.registry import PRUNERS, When, build_method
from seven_exp.pruning.regrowth import FromZero, Remembered
from seven_exp.pruning.schedules import course

_TIMING = {
    "before": ("rounds", "end_step"),
    "during": ("begin_step", "end_step", "interval", "levels"),
    "after": ("rounds",),
}
_OF_MODEL = ("sparsity", "include", "exclude", "exclude_defaults", "misfits")
_OF_CHOICE = ("when", "schedule", "scope", "sparsities", "pattern", "min_density")


def read_by(
    name: str,
    when: When | None = None,
    schedule: str | None = None,
    method: Method | None = None,
) -> tuple[str, ...]:
    """The keywords that a pruner reads, except its hyper-parameters.

    Args:
        name: A registered name.
        when: When the pruner acts; None: the default of the name.
        schedule: Name of the curve; None: the default of the name.
        method: The pruner's method; None: the method with its default hyper-parameters.

    Raises:
        ValueError: The name or the schedule is unknown.
    """
    spec = PRUNERS[name]
    if not spec.prunes:
        return _OF_MODEL
    timing = _TIMING[when or spec.when]
    if len(set(course(schedule or spec.schedule))) == 1:
        # A constant curve has no stairs.
        timing = tuple(keyword for keyword in timing if keyword != "levels")
    method = method or build_method(name, {})
    returns = issubclass(regrows(method), FromZero | Remembered)
    optimizer = ("optimizer",) if returns and (when or spec.when) == "during" else ()
    return (*_OF_MODEL, *_OF_CHOICE, *timing, *optimizer)


def refuse_unread(
    name: str,
    method: Method,
    when: When,
    schedule: str,
    given: Mapping[str, Any],
    defaults: Mapping[str, Any],
) -> None:
    """Raise ValueError if a given keyword is not read by the pruner; the message names all of them.

    Args:
        name: A registered name.
        method: The pruner's method.
        when: When the pruner acts.
        schedule: Name of the curve.
        given: Keyword -> value.
        defaults: Keyword -> the value that counts as not given.
    """
    read = read_by(name, when, schedule, method)
    unread = [k for k, v in given.items() if k not in read and v != defaults[k] and v is not None]
    if not unread:
        return
    time = "keeps every weight" if "when" not in read else f"prunes {when} training"
    if unread == ["levels"]:
        time = f"has the schedule '{schedule}', which has no stairs,"
    timing = [keyword for keyword in _TIMING[when] if keyword in read]
    instead = f" (it reads {', '.join(timing)})" if timing else ""
    them = "it" if len(unread) == 1 else "them"
    raise ValueError(
        f"{name} {time} and does not read {', '.join(unread)}: leave {them} out{instead}"
    )


def check_optimizer(name: str, optimizer: Any, layers: Iterable[Layer], *, needed: bool) -> None:
    """Raise ValueError unless the optimizer is one and, if needed, trains the layers' weights.

    Pruners that regrow weights from zero need it. Frozen weights have no moments.
    """
    if optimizer is None and needed:
        raise ValueError(
            f"{name} needs the optimizer: pass optimizer=...; regrown weights start at zero, and "
            "the pruner must clear the optimizer's old moments for them"
        )
    if not isinstance(optimizer, Optimizer | None):
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer is a {kind}: pass the torch.optim.Optimizer of the training")
    if optimizer is None or not needed:
        return
    trained: set[nn.Parameter] = {p for group in optimizer.param_groups for p in group["params"]}
    for layer in layers:
        if layer.weight.requires_grad and layer.weight not in trained:
            raise ValueError(
                f"{layer.name} is not a parameter of the optimizer: pass the optimizer that "
                "trains it, or exclude it"
            )
