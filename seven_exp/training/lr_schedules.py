"""Learning-rate schedules by name: pure functions of the step, so that no state is saved."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from seven_exp.config import Fraction, Steps, moment
from seven_exp.registry import Registry

LR_SCHEDULES: Registry[Callable[..., float]] = Registry("lr_schedule")
"""Functions ``(step, steps, warmup, *, **options) -> float``: the factor of the base rate at
``step``, counted from 0, of ``steps``; ``warmup`` of them, the first, are over."""

Factor = Annotated[float, Field(gt=0)]


def lr_factor(
    name: str, step: int, steps: int, warmup: int, options: Mapping[str, Any] | None = None
) -> float:
    """Factor of the base rate at ``step`` of ``steps``: a line up to 1, then a named schedule.

    Args:
        name: A registered schedule.
        step: From 0 on.
        steps: Length of the training.
        warmup: Steps of the line.
        options: The schedule's keywords.

    Raises:
        ValueError: The name is unknown.
    """
    if step < warmup:
        return (step + 1) / warmup
    return LR_SCHEDULES[name](step, steps, warmup, **(options or {}))


def _progress(step: int, steps: int, warmup: int) -> float:
    """Fraction of the training after the warm-up that is over."""
    return (step - warmup) / max(1, steps - warmup)


def _between(floor: float, height: float) -> float:
    return floor + (1 - floor) * height


@LR_SCHEDULES.register("constant")
def constant(step: int, steps: int, warmup: int) -> float:
    """Stays at 1."""
    return 1.0


@LR_SCHEDULES.register("linear")
def linear(step: int, steps: int, warmup: int, *, floor: Fraction = 0.0) -> float:
    """A line from 1 to ``floor``."""
    return _between(floor, 1 - _progress(step, steps, warmup))


@LR_SCHEDULES.register("polynomial")
def polynomial(
    step: int, steps: int, warmup: int, *, power: Factor = 2.0, floor: Fraction = 0.0
) -> float:
    """(1 - progress)^power, from 1 to ``floor``."""
    return _between(floor, (1 - _progress(step, steps, warmup)) ** power)


@LR_SCHEDULES.register("cosine")
def cosine(step: int, steps: int, warmup: int, *, floor: Fraction = 0.0) -> float:
    """Half a cosine from 1 to ``floor`` (Loshchilov and Hutter, arXiv 1608.03983, eq. 5)."""
    return _between(floor, (1 + math.cos(math.pi * _progress(step, steps, warmup))) / 2)


@LR_SCHEDULES.register("cosine_restarts")
def cosine_restarts(
    step: int,
    steps: int,
    warmup: int,
    *,
    first: Steps = 0.25,
    growth: Annotated[int, Field(ge=1)] = 1,
    floor: Fraction = 0.0,
) -> float:
    """Cosines that begin at 1 again (same source): ``first`` steps, each ``growth`` times longer.

    A decimal ``first`` is a fraction of the whole training.
    """
    length, since = max(1, moment(first, steps)), step - warmup
    while since >= length:
        since, length = since - length, length * growth
    return _between(floor, (1 + math.cos(math.pi * since / length)) / 2)


@LR_SCHEDULES.register("step")
def every(step: int, steps: int, warmup: int, *, every: Steps = 0.25, gamma: Factor = 0.1) -> float:
    """A factor of ``gamma`` after each ``every`` steps since the start of the training."""
    return float(gamma ** (step // max(1, moment(every, steps))))


@LR_SCHEDULES.register("multi_step")
def multi_step(
    step: int,
    steps: int,
    warmup: int,
    *,
    milestones: list[Steps] = [0.5, 0.75],  # noqa: B006  never changed, and the type says list
    gamma: Factor = 0.1,
) -> float:
    """A factor of ``gamma`` at each milestone, counted from the start of the training.

    The defaults are those of He et al. for CIFAR (arXiv 1512.03385, section 4.2).
    """
    return float(gamma ** sum(step >= moment(milestone, steps) for milestone in milestones))


@LR_SCHEDULES.register("one_cycle")
def one_cycle(
    step: int,
    steps: int,
    warmup: int,
    *,
    rise: Fraction = 0.3,
    start_divisor: Factor = 25.0,
    end_divisor: Factor = 1e4,
) -> float:
    """Half a cosine from 1 / ``start_divisor`` up to 1, and one down (Smith, arXiv 1708.07120).

    As torch's ``OneCycleLR``, with the optimizer's rate as the largest one; the momentum stays.
    ``end_divisor`` divides the starting rate, ``rise`` is the upward part of the steps.
    """
    now, last = step - warmup, max(1, steps - warmup - 1)
    top = max(0.0, rise * (steps - warmup) - 1)
    low = 1 / start_divisor
    if now <= top:
        return 1.0 if top == 0 else 1 + (low - 1) / 2 * (math.cos(math.pi * now / top) + 1)
    end = low / end_divisor
    fallen = 1.0 if top >= last else (now - top) / (last - top)
    return end + (1 - end) / 2 * (math.cos(math.pi * fallen) + 1)


_DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda fallen: 1 - fallen,
    "cosine": lambda fallen: (1 + math.cos(math.pi * fallen)) / 2,
    "sqrt": lambda fallen: 1 - math.sqrt(fallen),
}


@LR_SCHEDULES.register("warmup_stable_decay")
def warmup_stable_decay(
    step: int,
    steps: int,
    warmup: int,
    *,
    decay: Steps = 0.2,
    shape: Literal["linear", "cosine", "sqrt"] = "sqrt",
    floor: Fraction = 0.0,
) -> float:
    """Stays at 1 and falls to ``floor`` in the last ``decay`` steps.

    (Hu et al., arXiv 2404.06395; the falling 1 - sqrt is that of Hägele et al., arXiv 2405.18392.)
    """
    length = moment(decay, steps)
    fallen = max(0.0, (step - (steps - length)) / max(1, length))
    return _between(floor, _DECAYS[shape](fallen))
