"""All of torchvision's classification models: half of the units pruned, then removed.

    python benchmarks/zoo.py [--only NAME ...] [--speed]

Random weights. For each model one line: units, parameters before and after, seconds, and the
largest relative difference of the outputs; or why the model is refused. With --speed, the pruned
model is timed against the smaller one, alternately in one process; the ratio is that of the
medians.
"""

import argparse
import copy
import statistics
import time

import torch
import torchvision.models
from torch import nn
from torchvision.models import get_model, list_models

from seven_exp.shrink import shrink
from seven_exp.shrink.coupling import coupled

SIZES = {"inception_v3": 96}
FIXED = ("vit", "maxvit")
"""Families whose image size is 224."""


@torch.no_grad()
def prune(model: nn.Module, inputs: torch.Tensor) -> int:
    """Zero the rows of every second unit; return the number of units."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 2.0)
            module.bias.normal_(std=0.3)
    units = coupled(model, inputs)
    for unit in units[::2]:
        for name, at in [*unit.of("rows"), *unit.of("channels")]:
            weight = model.get_submodule(name).weight
            if weight.dim() > 1:
                weight[list(at)] = 0.0
    return len(units)


@torch.no_grad()
def ratio(whole: nn.Module, small: nn.Module, inputs: torch.Tensor) -> float:
    """Median time of the whole model over that of the small one."""
    times: dict[nn.Module, list[float]] = {whole: [], small: []}
    for _ in range(12):
        for model in times:
            start = time.perf_counter()
            model(inputs)
            times[model].append(time.perf_counter() - start)
    return statistics.median(times[whole][2:]) / statistics.median(times[small][2:])


def line(name: str, speed: bool) -> str:
    """The table's row of a model."""
    torch.manual_seed(0)
    more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = get_model(name, weights=None, **more).eval()
    size = SIZES.get(name, 224 if name.startswith(FIXED) else 64)
    inputs = torch.randn(1, 3, size, size)
    begin = time.process_time()
    count = prune(model, inputs)
    small = copy.deepcopy(model)
    try:
        shrink(small, inputs)
    except ValueError as error:
        return f"| {name} | {count} | | | {error} |"
    spent = time.process_time() - begin
    others = torch.randn(4, 3, size, size)
    with torch.no_grad():
        out, less = model(others), small(others)
    error = ((out - less).abs().max() / out.abs().max()).item()
    before, after = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (model, small))
    gain = f" {ratio(model, small, others):.2f} |" if speed else ""
    return f"| {name} | {count} | {before:.1f} | {after:.1f} | {spent:.0f} | {error:.0e} |{gain}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    print("| model | units | M parameters | after | CPU seconds | difference |", end="")
    print(" as fast |" if args.speed else "")
    print("|---|---:|---:|---:|---:|---:|" + ("---:|" if args.speed else ""))
    for name in args.only or list_models(module=torchvision.models):
        print(line(name, args.speed), flush=True)


if __name__ == "__main__":
    main()
