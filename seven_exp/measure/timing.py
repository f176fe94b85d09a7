"""Times and memory of calls to compare: measured alternately, so that conditions are the same."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median, quantiles

import torch
from torch.utils.benchmark import Timer

from seven_exp.console import progress_bar

Call = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds of one call, measured in rounds.

    Attributes:
        median: Over the rounds.
        low: First quartile.
        high: Third quartile.
        ratio: Median over the rounds of the first call's time over this one's in the same round:
            the speed-up.
        ratio_low: First quartile.
        ratio_high: Third quartile.
        rounds: Number of rounds.
    """

    median: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def in_turn(
    calls: Mapping[str, Call], *, rounds: int, threads: int, block: float = 0.2
) -> dict[str, Times]:
    """Time each call once per round, in alternating order.

    Args:
        calls: The others are compared with the first.
        rounds: At least 2.
        threads: CPU threads.
        block: Minimum seconds for which a call is repeated; its mean counts.
    """
    timers = {
        name: Timer("call()", globals={"call": call}, num_threads=threads)
        for name, call in calls.items()
    }
    # torch's own way to warm up and to find how many repetitions fill a block.
    numbers = {
        name: max(1, round(block / timer.blocked_autorange(min_run_time=block / 2).median))
        for name, timer in timers.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with progress_bar("measuring", rounds) as advance:
        for done in range(rounds):
            order = list(timers) if done % 2 == 0 else list(reversed(timers))
            for name in order:
                seconds[name].append(timers[name].timeit(numbers[name]).mean)
            advance(done + 1, "")
    first = seconds[next(iter(calls))]
    return {name: _times(first, taken) for name, taken in seconds.items()}


def _times(first: list[float], taken: list[float]) -> Times:
    ratios = [a / b for a, b in zip(first, taken, strict=True)]
    low, _, high = quantiles(taken, n=4, method="inclusive")
    ratio_low, _, ratio_high = quantiles(ratios, n=4, method="inclusive")
    return Times(median(taken), low, high, median(ratios), ratio_low, ratio_high, len(taken))


def peak_memory(call: Call, device: torch.device) -> int:
    """Peak bytes of torch's tensors during a call, beyond those that existed before.

    On the CPU it comes from the profiler's list of allocations, which is exact and repeatable, but
    does not include what libraries allocate themselves.
    """
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        call()
    taken = peak = 0
    assert profile.kineto_results is not None
    memory = [e for e in profile.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(memory, key=lambda e: e.start_ns()):
        taken += event.nbytes()
        peak = max(peak, taken)
    return peak
