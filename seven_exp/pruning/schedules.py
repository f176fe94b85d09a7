"""Schedules: how far along pruning is -> the sparsity wanted now. Pure functions of numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from seven_exp.registry import Registry

Curve = Callable[[float, float], float]
"""``curve(progress, sparsity)``: sparsity wanted at ``progress`` in (0, 1]; at 1 all of it."""

SCHEDULES: Registry[Curve] = Registry("schedule")


@SCHEDULES.register("one_shot")
def one_shot(progress: float, sparsity: float) -> float:
    """The whole way at the first mask update."""
    return sparsity


@SCHEDULES.register("linear")
def linear(progress: float, sparsity: float) -> float:
    """Equal shares at equal steps."""
    return sparsity * progress


@SCHEDULES.register("cubic")
def cubic(progress: float, sparsity: float) -> float:
    """Fast at first, slow at the end (Zhu and Gupta, arXiv 1710.01878, eq. 1).

    In densities: ``k + (1 - k) (1 - progress)^3`` with ``k = 1 - sparsity``.
    """
    return sparsity * (1 - (1 - progress) ** 3)


@SCHEDULES.register("exponential")
def exponential(progress: float, sparsity: float) -> float:
    """The same share of the survivors each time: density ``k^progress`` (arXiv 2006.09081)."""
    return float(1 - (1 - sparsity) ** progress)


@SCHEDULES.register("cosine")
def cosine(progress: float, sparsity: float) -> float:
    """Half a cosine: slow at both ends."""
    return sparsity * (1 - math.cos(math.pi * progress)) / 2


@SCHEDULES.register("constant")
def constant(progress: float, sparsity: float) -> float:
    """Sparse all along: for pruners that start sparse and only exchange weights."""
    return sparsity


def course(curve: str) -> list[float]:
    """The curve's values on its way to a sparsity of a half, at 100 places."""
    return [SCHEDULES[curve](place / 100, 0.5) for place in range(1, 101)]


_PHASES = 10


@SCHEDULES.register("alternating")
def alternating(progress: float, sparsity: float) -> float:
    """Ten phases in turn dense and sparse, the last sparse (AC/DC, arXiv 2106.12379)."""
    phase = min(_PHASES - 1, int(progress * _PHASES))
    return sparsity if phase % 2 else 0.0


@dataclass(frozen=True)
class Gradual:
    """During training: a curve laid over the steps ``begin <= t < end``.

    The window's steps are numbered j = 0 .. N-1 with N = end - begin. Masks are updated at the
    last step of each ``interval`` and at j = N-1, to the curve's value at ``(j + 1) / N``; so the
    last update reaches the final sparsity exactly. With ``levels``, the way there is a staircase of
    so many equal treads, each as high as the curve at its end.

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
        if not 1 <= self.interval <= self.end - self.begin:
            raise ValueError(
                f"interval {self.interval} does not fit into the window of "
                f"{self.end - self.begin} steps: choose 1 to {self.end - self.begin}"
            )
        if self.levels is not None and not 1 <= self.levels <= self.end - self.begin:
            raise ValueError(
                f"levels {self.levels} do not fit into the window of "
                f"{self.end - self.begin} steps: choose 1 to {self.end - self.begin}"
            )
        reached = SCHEDULES[self.curve](1.0, 0.5)
        if abs(reached - 0.5) > 1e-9:
            raise ValueError(
                f"schedule '{self.curve}' never reaches its target: "
                f"asked for sparsity 0.5, it ends at {reached:g}"
            )

    def covers(self, step: int) -> bool:
        """Whether ``step`` lies in the window."""
        return self.begin <= step < self.end

    def updates(self, step: int) -> bool:
        """Whether the masks are chosen anew at ``step``."""
        j = step - self.begin
        return self.covers(step) and ((j + 1) % self.interval == 0 or step == self.end - 1)

    def progress(self, step: int) -> float:
        """How much of the window is behind once ``step`` is done, in [0, 1]."""
        return min(1.0, max(0.0, (step - self.begin + 1) / (self.end - self.begin)))

    def sparsity(self, step: int, target: float) -> float:
        """Sparsity wanted once ``step`` is done, on the way to ``target``; 0 before the window."""
        if step < self.begin:
            return 0.0
        progress = self.progress(step)
        if self.levels is not None:
            # Nudged, so that a tread's last step is not lifted by rounding.
            progress = math.ceil(progress * self.levels - 1e-9) / self.levels
        return target if progress == 1 else SCHEDULES[self.curve](progress, target)


@dataclass(frozen=True)
class Rounds:
    """Outside training: so many mask updates along a curve, one after another.

    Attributes:
        curve: Name of the curve.
        n: How many.
        when: Before training or after it.
    """

    curve: str
    n: int
    when: Literal["before", "after"]

    @property
    def window(self) -> Gradual:
        """The rounds as steps."""
        return Gradual(self.curve, 0, self.n)
