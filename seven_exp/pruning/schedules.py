"""Schedules: map the progress of pruning to the present sparsity. Pure functions of numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from seven_exp.registry import Registry

Curve = Callable[[float, float], float]
"""``curve(progress, sparsity)``: the sparsity at ``progress`` in (0, 1]; ``sparsity`` at 1."""

SCHEDULES: Registry[Curve] = Registry("schedule")


@SCHEDULES.register("one_shot")
def one_shot(progress: float, sparsity: float) -> float:
    """The full sparsity at the first mask update."""
    return sparsity


@SCHEDULES.register("linear")
def linear(progress: float, sparsity: float) -> float:
    """Equal increments at each update."""
    return sparsity * progress


@SCHEDULES.register("cubic")
def cubic(progress: float, sparsity: float) -> float:
    """Fast at first, slow at the end (Zhu and Gupta, arXiv 1710.01878, eq. 1).

    In densities: ``k + (1 - k) (1 - progress)^3`` with ``k = 1 - sparsity``.
    """
    return sparsity * (1 - (1 - progress) ** 3)


@SCHEDULES.register("exponential")
def exponential(progress: float, sparsity: float) -> float:
    """Each update removes the same fraction of the kept weights: density ``k^progress``.

    (de Jorge et al., arXiv 2006.09081.)
    """
    return float(1 - (1 - sparsity) ** progress)


@SCHEDULES.register("cosine")
def cosine(progress: float, sparsity: float) -> float:
    """Half a cosine: slow at both ends."""
    return sparsity * (1 - math.cos(math.pi * progress)) / 2


@SCHEDULES.register("constant")
def constant(progress: float, sparsity: float) -> float:
    """The full sparsity throughout: for pruners that start sparse and only exchange weights."""
    return sparsity


def course(curve: str) -> list[float]:
    """The curve's values at 100 points on the way to a sparsity of 0.5."""
    return [SCHEDULES[curve](place / 100, 0.5) for place in range(1, 101)]


_PHASES = 10


@SCHEDULES.register("alternating")
def alternating(progress: float, sparsity: float) -> float:
    """Ten alternating dense and sparse phases, the last one sparse (AC/DC, arXiv 2106.12379)."""
    phase = min(_PHASES - 1, int(progress * _PHASES))
    return sparsity if phase % 2 else 0.0


@dataclass(frozen=True)
class Gradual:
    """During training: a curve over the window of steps ``begin <= t < end``.

    The window's steps are numbered j = 0 .. N-1 with N = end - begin. Masks are updated at the
    last step of each ``interval`` and at j = N-1, to the curve's value at ``(j + 1) / N``, so the
    last update reaches the final sparsity exactly. With ``levels``, the sparsity is a staircase of
    that many equal stairs, each at the curve's value at its end.

    Raises:
        ValueError: The window is empty or negative, the interval or the levels do not fit into it,
            or the curve does not end at the final sparsity.
    """

    curve: str
    begin: int
    end: int
    interval: int = 1
    levels: int | None = None

    def __post_init__(self) -> None:
        if self.begin < 0:
            raise ValueError(f"begin_step is {self.begin}: a step can't be negative")
        if self.end <= self.begin:
            raise ValueError(
                f"end_step {self.end} is not after begin_step {self.begin}: "
                "the schedule would never reach its target"
            )
        steps = self.end - self.begin
        for name, number in (("interval", self.interval), ("levels", self.levels)):
            if number is not None and not 1 <= number <= steps:
                raise ValueError(
                    f"{name} is {number}, which does not fit into the window of {steps} steps: "
                    f"choose 1 to {steps}"
                )
        reached = SCHEDULES[self.curve](1.0, 0.5)
        if abs(reached - 0.5) > 1e-9:
            raise ValueError(
                f"schedule '{self.curve}' does not reach its target: for sparsity 0.5 it ends at "
                f"{reached:g}"
            )

    def covers(self, step: int) -> bool:
        """Whether ``step`` lies in the window."""
        return self.begin <= step < self.end

    def updates(self, step: int) -> bool:
        """Whether the masks are updated at ``step``."""
        j = step - self.begin
        return self.covers(step) and ((j + 1) % self.interval == 0 or step == self.end - 1)

    def progress(self, step: int) -> float:
        """The fraction of the window that is complete after ``step``, in [0, 1]."""
        return min(1.0, max(0.0, (step - self.begin + 1) / (self.end - self.begin)))

    def sparsity(self, step: int, target: float) -> float:
        """The sparsity after ``step``, on the way to ``target``; 0 before the window."""
        if step < self.begin:
            return 0.0
        progress = self.progress(step)
        if self.levels is not None:
            # The small offset keeps rounding from lifting the last step of a stair.
            progress = math.ceil(progress * self.levels - 1e-9) / self.levels
        return target if progress == 1 else SCHEDULES[self.curve](progress, target)


@dataclass(frozen=True)
class Rounds:
    """Outside training: consecutive mask updates along a curve.

    Attributes:
        curve: Name of the curve.
        n: Number of updates.
        when: Before or after training.
    """

    curve: str
    n: int
    when: Literal["before", "after"]

    @property
    def window(self) -> Gradual | None:
        """The rounds as a window of steps; "after" pruners get theirs in `Pruner.prune`."""
        return Gradual(self.curve, 0, self.n) if self.when == "before" else None
