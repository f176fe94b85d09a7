"""Measures the cost of a training step with each pruner, compared with a dense step.

One process, one encoder. Each pruner has its own copy of the encoder and alternates with a dense
copy, so that conditions are the same; ratios compare neighbouring steps. Other implementations run
from checkouts, and none of their code is here:

    --seven    xiaojinying/SEVEN
    --platon   QingruZhang/PLATON

    python benchmarks/cost.py --seven DIR --platon DIR
    python benchmarks/cost.py --device cuda --layers 12 --width 768 --batch 32 --length 128

With --depths, it measures the block walk of Wanda and SparseGPT in models of these depths:

    python benchmarks/cost.py --depths 2 4 8 16 32 --width 128 --batch 16 --length 128
"""

import argparse
import contextlib
import gc
import io
import itertools
import math
import multiprocessing
import platform
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils import prune as torch_prune

import seven_exp
from seven_exp.pruning import PRUNERS, prunable_layers, read_by

SPARSITY = 0.9
Act = Callable[[], object]
"""Called after each optimizer step."""


class Block(nn.Module):
    """Pre-norm attention and MLP, only with nn.Linear, which all implementations can prune."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, length, width) -> the same."""
        y = self.before_attention(x)
        q, k, v = (
            layer(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(y)
        return x + self.down(nn.functional.gelu(self.up(self.before_mlp(x))))


class Run:
    """A model in training, with a function that is called after each step."""

    def __init__(self, options: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(options.device)
        width = options.width
        self.encoder = nn.Sequential(*(Block(width) for _ in range(options.layers)))
        self.head = nn.Linear(width, 2)
        self.encoder.to(self.device), self.head.to(self.device)
        parameters = [*self.encoder.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        self.x = torch.randn(options.batch, options.length, width, device=self.device)
        self.y = torch.randint(2, (options.batch,), device=self.device)
        self.act: Act = lambda: None

    def step(self) -> tuple[float, float]:
        """Seconds of a whole step, and of the function after it."""
        start = self._now()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = nn.functional.cross_entropy(self.head(self.encoder(self.x).mean(1)), self.y)
        loss.backward()
        self.optimizer.step()
        between = self._now()
        self.act()
        end = self._now()
        self.optimizer.zero_grad()
        return end - start, end - between

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    """Print ratios, row by row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    for name, default in (("layers", 6), ("width", 384), ("batch", 8), ("length", 64)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--steps", type=int, default=40, help="pairs of steps for each pruner")
    parser.add_argument("--only", nargs="*", help="names of the rows wanted")
    parser.add_argument("--depths", nargs="*", type=int, help="blocks of the walked models")
    for peer in ("seven", "platon"):
        parser.add_argument(f"--{peer}", type=Path)
    options = parser.parse_args()

    warnings.filterwarnings("ignore", message=".*has lost all its weights")
    console = Console(width=120, highlight=False)
    if options.depths:
        console.print(walks(options))
        return
    dense = Run(options)
    weights = sum(layer.weight.numel() for layer in prunable_layers(dense.encoder))
    console.print(
        f"{'':36} whole step / dense step: median, quartiles, mean; itself: median, least"
    )
    quickest = math.inf
    for name, attach in contenders(options):
        if options.only and name not in options.only:
            continue
        run = Run(options)
        with contextlib.redirect_stdout(io.StringIO()):
            run.act = attach(run, options.steps + 4)
            wholes, own, references = compare(dense, run, options.steps)
        ratios = [whole / reference for whole, reference in zip(wholes, references, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        quickest = min(quickest, *references)
        console.print(
            f"{name:36} {median:.3f}  {low:.3f} to {high:.3f}  {statistics.mean(ratios):.3f}  "
            f"{1e3 * statistics.median(own):8.1f} ms {1e3 * min(own):8.1f} ms"
        )
    console.print(
        f"dense step {1e3 * quickest:.0f} ms at least; {weights:,} prunable weights; torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"
    )


class Walk(NamedTuple):
    """The cost of a block walk.

    Attributes:
        passes: Passes per block and batch.
        live: Peak bytes of live tensors, without the model and the batches.
        resident: Growth of the peak of the process's resident set, in bytes.
        seconds: Duration of the whole walk.
    """

    passes: float
    live: int
    resident: int
    seconds: float


def walks(options: argparse.Namespace) -> Table:
    """Block walks by the model's depth, each in a separate process, to measure its peak."""
    table = Table(
        "pruner", *("blocks", "passes a block", "tensors, MB", "resident, MB", "s a block")
    )
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as pool:
        for name in ("wanda", "sparsegpt"):
            for depth in options.depths:
                walk = pool.submit(walked, name, depth, options).result()
                table.add_row(
                    name, str(depth), f"{walk.passes:g}", f"{walk.live / 1e6:.2f}",
                    f"{walk.resident / 1e6:.1f}", f"{walk.seconds / depth:.2f}",
                )  # fmt: skip
    return table


def walked(name: str, depth: int, options: argparse.Namespace) -> Walk:
    """Prune a model of this depth, and count live tensors at each call of a layer."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Block(options.width) for _ in range(depth)))
    batches = [torch.randn(1, options.length, options.width) for _ in range(options.batch)]
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    passes, most = 0, 0

    def look(module: nn.Module, _: Any) -> None:
        nonlocal passes, most
        passes += module in firsts
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
        storages = [tensor.untyped_storage() for tensor in tensors]
        sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
        most = max(most, sum(size for place, size in sizes.items() if place not in own))

    firsts = {block.query for block in model}
    for layer in prunable_layers(model):
        layer.module.register_forward_pre_hook(look)
    # Objects that exist now are excluded.
    gc.collect()
    gc.freeze()
    before, start = peak(), time.perf_counter()
    pruner.prune(batches, lambda m, batch: m(batch).mean())
    seconds = time.perf_counter() - start
    return Walk(passes / depth / len(batches), most, peak() - before, seconds)


def peak() -> int:
    """Peak bytes of this process's resident set."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def compare(dense: Run, run: Run, steps: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of a run's steps, of the pruner's own part, and of the neighbouring dense steps."""
    wholes, own, references = [], [], []
    for i in range(steps + 3):
        # Alternate the order, because each leaves the cache in another state.
        if i % 2:
            reference, (whole, part) = dense.step()[0], run.step()
        else:
            (whole, part), reference = run.step(), dense.step()[0]
        if i >= 3:
            wholes.append(whole)
            own.append(part)
            references.append(reference)
    return wholes, own, references


def contenders(options: argparse.Namespace) -> Iterator[tuple[str, Callable[[Run, int], Act]]]:
    """(name, function that attaches the pruner to a run of this many steps)."""
    yield "nothing", lambda run, steps: run.act
    for name in PRUNERS:
        if PRUNERS[name].when == "during" and PRUNERS[name].prunes:
            yield name, lambda run, steps, name=name: ours(run, name, 0, steps)
    yield (
        "seven_dyn, before its window",
        lambda run, steps: ours(run, "seven_dyn", steps, 2 * steps),
    )
    yield "seven_dyn, after its window", lambda run, steps: ours(run, "seven_dyn", 0, 2)
    yield "torch.nn.utils.prune, masks kept", lambda run, steps: torchs(run, at_every_step=False)
    yield "torch.nn.utils.prune, at every step", lambda run, steps: torchs(run, at_every_step=True)
    if options.seven:
        yield "SEVEN, its authors'", lambda run, steps: reference(run, options.seven, steps)
    if options.platon:
        yield "PLATON, its authors'", lambda run, steps: platon(run, options.platon, steps)


def ours(run: Run, name: str, begin: int, end: int) -> Act:
    """A pruner of this package."""
    settings = {"begin_step": begin, "end_step": end}
    if "optimizer" in read_by(name):
        settings["optimizer"] = run.optimizer
    return seven_exp.create_pruner(name, run.encoder, sparsity=SPARSITY, **settings).step


def torchs(run: Run, *, at_every_step: bool) -> Act:
    """Global magnitude pruning by torch.nn.utils.prune."""
    weights = [(layer.module, layer.attribute) for layer in prunable_layers(run.encoder)]

    def prune() -> None:
        torch_prune.global_unstructured(weights, torch_prune.L1Unstructured, amount=0.02)

    prune()
    return prune if at_every_step else lambda: None


def reference(run: Run, folder: Path, steps: int) -> Act:
    """The authors' code of SEVEN, with its fixed device replaced."""
    sys.path.insert(0, str(folder))
    modules = [import_module(f"strategies.{name}") for name in ("pruner", "utils")]
    for module in modules:
        vars(module)["torch"] = on_device(run.device)
    settings = SimpleNamespace(alpha_1=0.8, alpha_2=0.9, pruning_algo="SEVEN", iter_num=steps)
    pruner = modules[0].pruner(run.encoder, compression=1 - SPARSITY, config=settings)
    pruner.init_mask()
    count = itertools.count()
    return lambda: pruner.model_masks(next(count))


def on_device(device: torch.device) -> Any:
    """The torch module with a ``torch.device`` that always returns this device."""

    class Torch:
        def __getattr__(self, name: str) -> Any:
            return (lambda *_: device) if name == "device" else getattr(torch, name)

    return Torch()


def platon(run: Run, folder: Path, steps: int) -> Act:
    """The authors' code of PLATON; it masks at every tenth step."""
    sys.path.insert(0, str(folder))
    settings = SimpleNamespace(
        **{"beta1": 0.85, "beta2": 0.95, "deltaT": 10, "warmup_steps": 1},
        **{"initial_threshold": 1.0, "final_threshold": 1 - SPARSITY},
        **{"initial_warmup": 0, "final_warmup": 0},
    )
    names = [layer.name for layer in prunable_layers(run.encoder)]
    pruner = import_module("Pruner").Pruner(run.encoder, settings, steps, mask_param_name=names)
    count = itertools.count(1)
    return lambda: pruner.update_and_pruning(run.encoder, next(count))


if __name__ == "__main__":
    main()
