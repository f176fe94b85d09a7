"""Do our criteria agree with other people's code? Same weights, same batches, scores and masks.

None of their code is here: point at checkouts of

    --synaptic-flow   ganguli-lab/Synaptic-Flow (SNIP, GraSP, SynFlow)
    --platon          QingruZhang/PLATON

    python benchmarks/peers.py --synaptic-flow DIR --platon DIR
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

import seven_exp
from seven_exp.datasets import build_data

SPARSITY = 0.9
Scores = dict[str, Tensor]


def main() -> None:
    """Print a table of agreements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--synaptic-flow", type=Path)
    parser.add_argument("--platon", type=Path)
    options = parser.parse_args()
    table = Table("criterion", "peer", "rank correlation", f"Jaccard of masks at {SPARSITY:.0%}")
    for name, peer, ours, theirs in comparisons(options.synaptic_flow, options.platon):
        correlation, jaccard = agreement(ours, theirs)
        table.add_row(name, peer, f"{correlation:.6f}", f"{jaccard:.4f}")
    Console().print(table)


def comparisons(
    synaptic_flow: Path | None, platon: Path | None
) -> Iterator[tuple[str, str, Scores, Scores]]:
    """(criterion, peer, our scores, their scores) for every checkout given."""
    batches = list(build_data("digits", batch_size=64, seed=0, augment=False).train.epoch(0))[:8]
    if synaptic_flow is not None:
        layers = load(synaptic_flow / "Layers" / "layers.py")
        pruners = load(synaptic_flow / "Pruners" / "pruners.py")
        for name, kind in (("snip", "SNIP"), ("grasp", "GraSP"), ("synflow", "SynFlow")):
            theirs = their_scores(
                getattr(pruners, kind), net(layers.Linear, layers.Conv2d), batches
            )
            pruner = seven_exp.create_pruner(name, net(), sparsity=0.0, rounds=1, exclude=[])
            pruner.prune(batches, loss, batches_per_round=len(batches))
            yield name, "Synaptic-Flow", pruner.scores, theirs
    if platon is not None:
        yield "platon", "PLATON", *platon_scores(load(platon / "Pruner.py"), batches)


def agreement(ours: Scores, theirs: Scores) -> tuple[float, float]:
    """Spearman's correlation of the scores, and the Jaccard index of the masks they give."""
    one = torch.cat([ours[name].double().flatten() for name in ours])
    two = torch.cat([theirs[name].double().flatten() for name in ours])
    k = int((1 - SPARSITY) * one.numel())
    kept = [set(scores.argsort(descending=True, stable=True)[:k].tolist()) for scores in (one, two)]
    correlation = float(spearmanr(one.numpy(), two.numpy()).statistic)
    return correlation, len(kept[0] & kept[1]) / len(kept[0] | kept[1])


def net(
    linear: Callable[..., nn.Module] = nn.Linear, conv: Callable[..., nn.Module] = nn.Conv2d
) -> nn.Sequential:
    """The same small network whatever its layers' classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        conv(1, 8, 3, padding=1), nn.ReLU(), conv(8, 16, 3, padding=1), nn.ReLU(),
        nn.Flatten(), linear(16 * 64, 32), nn.ReLU(), linear(32, 10),
    )  # fmt: skip


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy."""
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def their_scores(
    kind: Callable[..., SimpleNamespace], model: nn.Module, batches: list[tuple[Tensor, Tensor]]
) -> Scores:
    """Scores of one of Synaptic-Flow's pruners, which know parameters by their id."""
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {n: b for n, b in model.named_buffers() if n.endswith("weight_mask")}
    pruner = kind([(masks[f"{name}_mask"], weight) for name, weight in weights.items()])
    pruner.score(model, nn.CrossEntropyLoss(), batches, torch.device("cpu"))
    return {name: pruner.scores[id(weight)].detach() for name, weight in weights.items()}


def platon_scores(
    module: ModuleType, batches: list[tuple[Tensor, Tensor]]
) -> tuple[Scores, Scores]:
    """Both fed with one training trajectory of thirty-one steps, three whole windows."""
    model = net()
    settings = SimpleNamespace(beta1=0.85, beta2=0.95, deltaT=10)
    theirs = module.Pruner(model, settings, total_step=31, mask_param_name=["weight"])
    ours = seven_exp.create_pruner("platon", model, sparsity=0.0, end_step=30, exclude=[])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(31):
        loss(model, batches[step % len(batches)]).backward()
        optimizer.step()
        theirs.update_ipt_with_local_window(model, step)
        ours.step()
        optimizer.zero_grad()
    names = list(ours.masks)
    return ours.scores, {n: theirs.exp_avg_ipt[n] * theirs.exp_avg_unc[n] for n in names}


def load(path: Path) -> ModuleType:
    """A Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"error: no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
