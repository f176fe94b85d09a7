"""Do our criteria agree with other people's code? Same weights, same batches, scores and masks.

None of their code is here: point at checkouts of

    --synaptic-flow   ganguli-lab/Synaptic-Flow (SNIP, GraSP, SynFlow)
    --platon          QingruZhang/PLATON
    --force           naver/force (iterative SNIP, FORCE: their masks after ten rounds)
    --wanda           locuslab/wanda (Wanda, SparseGPT: the correlation is that of the new weights)
    --torch-pruning   VainF/Torch-Pruning (LAMP; Taylor, summed over rows as it does)

    python benchmarks/peers.py --synaptic-flow DIR --platon DIR ...
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import NamedTuple, cast

import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

import seven_exp
from seven_exp.datasets import build_data

SPARSITY = 0.9
Scores = dict[str, Tensor]
Batches = list[tuple[Tensor, Tensor]]


class Compared(NamedTuple):
    """Scores of one criterion, and the sparsity that their masks are compared at."""

    criterion: str
    ours: Scores
    theirs: Scores
    sparsity: float = SPARSITY


Agreements = Iterator[Compared]


def main() -> None:
    """Print a table of agreements."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for peer in PEERS:
        parser.add_argument(f"--{peer}", type=Path)
    options = vars(parser.parse_args())
    table = Table("criterion", "peer", "rank correlation", "Jaccard of masks")
    batches = list(build_data("digits", batch_size=64, seed=0, augment=False).train.epoch(0))[:8]
    for peer, compare in PEERS.items():
        folder = options[peer.replace("-", "_")]
        for compared in compare(folder, batches) if folder else ():
            correlation, jaccard = agreement(compared)
            table.add_row(
                compared.criterion,
                peer,
                f"{correlation:.6f}",
                f"{jaccard:.4f} at {compared.sparsity:.0%}",
            )
    Console().print(table)


def synaptic_flow(folder: Path, batches: Batches) -> Agreements:
    """SNIP, GraSP and SynFlow."""
    layers = load(folder / "Layers" / "layers.py")
    pruners = load(folder / "Pruners" / "pruners.py")
    for name, kind in (("snip", "SNIP"), ("grasp", "GraSP"), ("synflow", "SynFlow")):
        theirs = their_scores(getattr(pruners, kind), net(layers.Linear, layers.Conv2d), batches)
        pruner = seven_exp.create_pruner(name, net(), sparsity=0.0, rounds=1, exclude=[])
        pruner.prune(batches, loss, batches_per_round=len(batches))
        yield Compared(name, pruner.scores, theirs)


def force(folder: Path, batches: Batches) -> Agreements:
    """Iterative SNIP and FORCE. Their loop takes the first batch of its loader at every step."""
    sys.path.insert(0, str(folder))
    theirs = importlib.import_module("pruning.pruning_algos")
    for name, method in (("snip_iterative", 1), ("force", 3)):
        pruner = seven_exp.create_pruner(name, net(), sparsity=SPARSITY, rounds=10, exclude=[])
        pruner.prune(batches[:1], loss, batches_per_round=1)
        with contextlib.redirect_stdout(io.StringIO()):
            masks = theirs.iterative_pruning(
                nn.Sequential(net(), nn.LogSoftmax(1)), batches, torch.device("cpu"),
                pruning_factor=1 - SPARSITY, prune_method=method, num_steps=10, num_batches=1,
            )  # fmt: skip
        ours = {layer: mask.float() for layer, mask in pruner.masks.items()}
        yield Compared(name, ours, dict(zip(ours, masks, strict=True)))


def wanda(folder: Path, batches: Batches) -> Agreements:
    """Wanda and SparseGPT on one wide layer, fed by the layers before it."""
    # Their files import transformers for one class, and wait for a GPU.
    sys.modules.setdefault("transformers", cast(ModuleType, SimpleNamespace(Conv1D=type(None))))
    torch.cuda.synchronize = lambda *_: None
    layer = "5.weight"
    fed = [net()[:5](images).detach() for images, _ in batches]

    model = net()
    wrapped = load(folder / "lib" / "layerwrapper.py").WrappedGPT(model[5])
    for inputs in fed:
        wrapped.add_batch(inputs, None)
    pruner = seven_exp.create_pruner("wanda", net(), sparsity=0.0, include=[layer])
    pruner.prune(batches, loss)
    scores = model[5].weight.detach().abs() * wrapped.scaler_row.sqrt()
    yield Compared("wanda", pruner.scores, {layer: scores})

    for name, sparsity, pattern, groups in (
        ("sparsegpt", SPARSITY, "unstructured", {}),
        ("sparsegpt 2:4", 0.5, "2:4", {"prune_n": 2, "prune_m": 4}),
    ):
        model = net()
        theirs = load(folder / "lib" / "sparsegpt.py").SparseGPT(model[5])
        for inputs in fed:
            theirs.add_batch(inputs, None)
        theirs.fasterprune(sparsity, **groups)
        own = net()
        pruner = seven_exp.create_pruner(
            "sparsegpt", own, sparsity=sparsity, pattern=pattern, include=[layer]
        )
        pruner.prune(batches, loss)
        weights = ({layer: net[5].weight.abs()} for net in (own, model))
        yield Compared(name, *weights, sparsity)


def torch_pruning(folder: Path, batches: Batches) -> Agreements:
    """LAMP's normalisation; Taylor's importance of a layer's rows."""
    sys.path.insert(0, str(folder))
    peer = importlib.import_module("torch_pruning")
    pruner = seven_exp.create_pruner("lamp", net(), sparsity=0.0, exclude=[])
    squares = {name: net().get_parameter(name).detach().square() for name in pruner.masks}
    lamp = peer.importance.LAMPImportance()._lamp
    shares = {name: lamp(square.clone()) for name, square in squares.items()}
    yield Compared("lamp", pruner.scores, shares)

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 400))
    pruner = seven_exp.create_pruner("taylor_pre", model, sparsity=0.0, exclude=[])
    pruner.prune(batches[:1], loss)
    loss(model, batches[0]).backward()
    graph = peer.DependencyGraph().build_dependency(model, batches[0][0])
    group = graph.get_pruning_group(model[1], peer.prune_linear_out_channels, list(range(400)))
    theirs = peer.importance.TaylorImportance(normalizer=None)(group)
    yield Compared("taylor, by row", {"1": pruner.scores["1.weight"].sum(1)}, {"1": theirs})


def platon(folder: Path, batches: Batches) -> Agreements:
    """PLATON's own class."""
    yield Compared("platon", *platon_scores(load(folder / "Pruner.py"), batches))


PEERS: dict[str, Callable[[Path, Batches], Agreements]] = {
    "synaptic-flow": synaptic_flow,
    "platon": platon,
    "force": force,
    "wanda": wanda,
    "torch-pruning": torch_pruning,
}


def agreement(compared: Compared) -> tuple[float, float]:
    """Spearman's correlation of the scores, and the Jaccard index of the masks they give."""
    ours, theirs = compared.ours, compared.theirs
    one = torch.cat([ours[name].double().flatten() for name in ours])
    two = torch.cat([theirs[name].double().flatten() for name in ours])
    k = int((1 - compared.sparsity) * one.numel())
    kept = [set(scores.argsort(descending=True, stable=True)[:k].tolist()) for scores in (one, two)]
    correlation = float(spearmanr(one.detach().numpy(), two.detach().numpy()).statistic)
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
    kind: Callable[..., SimpleNamespace], model: nn.Module, batches: Batches
) -> Scores:
    """Scores of one of Synaptic-Flow's pruners, which know parameters by their id."""
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {n: b for n, b in model.named_buffers() if n.endswith("weight_mask")}
    pruner = kind([(masks[f"{name}_mask"], weight) for name, weight in weights.items()])
    pruner.score(model, nn.CrossEntropyLoss(), batches, torch.device("cpu"))
    return {name: pruner.scores[id(weight)].detach() for name, weight in weights.items()}


def platon_scores(module: ModuleType, batches: Batches) -> tuple[Scores, Scores]:
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
