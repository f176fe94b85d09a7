"""Exact selection of the k largest of many scores: ours and torch's.

python benchmarks/selection.py
python benchmarks/selection.py --numbers 10_000_000 --device cuda
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from torch import Tensor

from seven_exp.pruning.select import top_k_masks


def main() -> None:
    """Print the seconds of each method, row by row, and the ratio to ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--numbers", type=int, default=100_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", type=float, nargs="*", default=[0.75, 0.4, 0.1])
    options = parser.parse_args()
    torch.manual_seed(0)
    scores = torch.randn(options.numbers, device=options.device).square_()
    layers = list(scores.split(1 << 21))
    copy = timed(lambda: scores.clone(), options.repeats, options.device)
    console = Console()
    console.print(
        f"{options.numbers:,} scores on {options.device}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads; a copy takes {1e3 * copy:.0f} ms"
    )
    for density in options.keep:
        k = int(density * options.numbers)
        ways: dict[str, Callable[[], object]] = {
            "ours, masks included": lambda k=k: top_k_masks(layers, k),
            "topk": lambda k=k: scores.topk(k, sorted=False),
            "topk, sorted": lambda k=k: scores.topk(k),
            "kthvalue": lambda k=k: scores.kthvalue(scores.numel() - k + 1),
            "sort": lambda: scores.sort(),
        }
        check(scores, layers, k)
        ours = None
        for name, way in ways.items():
            seconds = timed(way, options.repeats, options.device)
            ours = ours or seconds
            console.print(f"keep {density}  {name:22} {seconds:8.3f} s  {seconds / ours:6.1f}")


def check(scores: Tensor, layers: list[Tensor], k: int) -> None:
    """Raise AssertionError unless the masks hold the k largest."""
    masks = torch.cat(top_k_masks(layers, k))
    assert int(masks.sum()) == k
    assert scores[masks].min() >= scores[~masks].max()


def timed(work: Callable[[], object], repeats: int, device: str) -> float:
    """Median seconds."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
