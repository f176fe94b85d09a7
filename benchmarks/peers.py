"""Compares our criteria with public implementations: same weights, same batches, scores and masks.

Without a checkout, Wanda and SparseGPT prune the decoder in tests/golden and are compared with the
recorded masks of the public implementations. None of their code is here; pass checkouts of

    --wanda           locuslab/wanda (Wanda, SparseGPT: a Llama and an OPT)
    --sparsegpt       IST-DASLab/sparsegpt (likewise)
    --ria             biomedical-cybernetics/Relative-importance-and-activation-pruning (the
                      decoder of tests/golden, as all of these)
    --thanos          vectozavr/thanos
    --alps            mazumder-lab/ALPS
    --dsnot           zyxxmu/DSnoT (after Wanda)
    --owl             luuyin/OWL (with Wanda)
    --alpha-pruning   haiquanlu/AlphaPruning (with Wanda)
    --gblm            VILA-Lab/GBLM-Pruner
    --pruner-zero     pprp/Pruner-Zero
    --synaptic-flow   ganguli-lab/Synaptic-Flow (SNIP, GraSP, SynFlow)
    --platon          QingruZhang/PLATON
    --force           naver/force (iterative SNIP, FORCE: their masks after ten rounds)
    --torch-pruning   VainF/Torch-Pruning (LAMP; Taylor, summed over rows as it does)
    --flap            CASIA-IVA-Lab/FLAP (masks of a Llama with heads of 128)

    python benchmarks/peers.py --wanda DIR --sparsegpt DIR --synaptic-flow DIR ...
"""

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from pathlib import Path
from pydoc_data.topics import topics
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from scipy.stats import spearmanr
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

import seven_exp
from seven_exp.datasets import build_data
from seven_exp.shrink import coupled_pattern

SPARSITY = 0.9
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "block_walk.safetensors"
SETTINGS: dict[str, dict[str, Any]] = {
    "50%": {"sparsity": 0.5, "pattern": "unstructured"},
    "75%": {"sparsity": 0.75, "pattern": "unstructured"},
    "2:4": {"sparsity": 0.5, "pattern": "2:4"},
    "4:8": {"sparsity": 0.5, "pattern": "4:8"},
}
LENGTH = 128
"""Number of tokens of a sequence of the models that are trained here."""
CYCLES = 10
"""Of DSnoT; the authors' code fails if a row has fewer weights to exchange."""
METHODS: dict[str, dict[str, Any]] = {
    "wanda": {},
    "sparsegpt": {},
    "ria": {},
    "thanos": {},
    "alps": {},
    "dsnot": {},
    "wanda, owl": {"scope": "owl"},
    "wanda, alpha": {"scope": "alpha"},
    "gblm": {},
    "pruner_zero": {},
}
"""Method -> our settings; the pruner's name comes first."""
Scores = dict[str, Tensor]
Batches = list[tuple[Tensor, Tensor]]


class Compared(NamedTuple):
    """Scores of one criterion, and the sparsity at which their masks are compared."""

    criterion: str
    ours: Scores
    theirs: Scores
    sparsity: float = SPARSITY


Agreements = Iterator[Compared]


class Language(NamedTuple):
    """A language model, with tokens for calibration and evaluation.

    Attributes:
        model: In evaluation mode.
        calibration: Sequences, each (1, tokens).
        held_out: (sequences, tokens).
    """

    model: PreTrainedModel
    calibration: Sequence[Tensor]
    held_out: Tensor


Prune = Callable[[Language, str, str], PreTrainedModel | None]
"""``prune(language, method, setting)``: a pruned copy of the model; None if not supported."""


def main() -> None:
    """Print a table of masks of whole models, and one of scores if there are checkouts for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for peer in (*WHOLE, *PEERS):
        parser.add_argument(f"--{peer}", type=Path)
    given = {name.replace("_", "-"): folder for name, folder in vars(parser.parse_args()).items()}
    folders = {peer: folder for peer, folder in given.items() if folder}
    console = Console()
    console.print(whole_models({peer: folders[peer] for peer in WHOLE if peer in folders}))
    if any(peer in folders for peer in PEERS):
        console.print(scores({peer: folders[peer] for peer in PEERS if peer in folders}))


def whole_models(folders: dict[str, Path]) -> Table:
    """Masks of whole models, ours and theirs.

    Args:
        folders: Name in `WHOLE` -> checkout.
    """
    table = Table("model", "method", "peer", "setting", "Jaccard of masks")
    for column in ("perplexity, dense", "ours", "theirs", "seconds, ours", "theirs"):
        table.add_column(column, justify="right")
    prunes = {peer: WHOLE[peer](folder) for peer, folder in folders.items()}
    of_golden = {peer: prunes[peer] for peer in prunes if peer not in ("wanda", "sparsegpt")}
    runs: list[tuple[str, Language, dict[str, Prune]]] = [
        ("recorded decoder", recorded_decoder(), {"recording": recorded, **of_golden})
    ]
    if of_wanda := {peer: prunes[peer] for peer in prunes if peer not in of_golden}:
        runs += [("Llama", trained(llama()), of_wanda), ("OPT", trained(opt()), of_wanda)]
    for (name, language, peers), method, setting in product(runs, METHODS, SETTINGS):
        own = None
        for peer, prune in peers.items():
            theirs, their_seconds = timed(prune, language, method, setting)
            if theirs is None:
                continue
            if own is None:
                own, seconds = timed(ours, language, method, setting)
                assert own is not None
            table.add_row(
                name, method, peer, setting, f"{overlap(kept(own), kept(theirs)):.4f}",
                *(f"{perplexity(m, language.held_out):.3f}" for m in (language.model, own, theirs)),
                f"{seconds:.2f}", "" if prune is recorded else f"{their_seconds:.2f}",
            )  # fmt: skip
    return table


def timed(
    prune: Prune, language: Language, method: str, setting: str
) -> tuple[PreTrainedModel | None, float]:
    """The pruned model, and the seconds that pruning takes; printed output is dropped."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        pruned = prune(language, method, setting)
    return pruned, time.perf_counter() - start


def ours(language: Language, method: str, setting: str) -> PreTrainedModel | None:
    """A pruner of this package, with its defaults."""
    model, settings = copy.deepcopy(language.model), SETTINGS[setting] | METHODS[method]
    if method == "dsnot":
        # The authors' threshold is for the sum over a sequence, ours for the mean.
        settings |= {"threshold": 0.1 / language.calibration[0].shape[1], "cycles": CYCLES}
    pruner = seven_exp.create_pruner(method.partition(",")[0], model, **settings)
    pruner.prune(language.calibration, next_token_loss)
    return model


def next_token_loss(model: PreTrainedModel, tokens: Tensor) -> Tensor:
    """The mean cross-entropy of the next token."""
    loss: Tensor = model(tokens, labels=tokens).loss
    return loss


def recorded(language: Language, method: str, setting: str) -> PreTrainedModel | None:
    """The recorded result of the public implementations."""
    start = f"{method}_{setting.removesuffix('%').replace(':', '_')}"
    tensors = load_file(GOLDEN)
    masks = of_llama({n: t for n, t in tensors.items() if n.startswith(f"{start}.mask.")})
    if not masks:
        return None
    moved = of_llama({n: t for n, t in tensors.items() if n.startswith(f"{start}.weight.")})
    model = copy.deepcopy(language.model)
    weights = model.state_dict()
    model.load_state_dict(
        {name: moved.get(name, weights[name]) * mask for name, mask in masks.items()}, strict=False
    )
    return model


def recorded_decoder() -> Language:
    """The recorded decoder: a Llama with one head and no rotary position embedding."""
    tensors = load_file(GOLDEN)
    config = LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=1, rms_norm_eps=1e-6, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.load_state_dict(of_llama({n: t for n, t in tensors.items() if n.startswith("weights.")}))
    model.get_buffer("model.rotary_emb.inv_freq").zero_()
    # The only text of its language is its own.
    torch.manual_seed(0)
    first = torch.randint(96, (64, 1))
    held_out = model.generate(first, do_sample=True, top_k=0, max_new_tokens=31)
    return Language(model, list(tensors["calibration"].flatten(0, 1).unsqueeze(1)), held_out)


def of_llama(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Recorded tensors by their names in a Llama."""
    parts = {
        r".*?(layers|embed_tokens|norm|lm_head)\.": r"model.\1.",
        r"model\.lm_head": "lm_head",
        r"\.([qkvo])\.": r".self_attn.\1_proj.",
        r"\.(gate|up|down)\.": r".mlp.\1_proj.",
        r"\.norm1\.": ".input_layernorm.",
        r"\.norm2\.": ".post_attention_layernorm.",
    }
    named = {}
    for name, tensor in tensors.items():
        for part, its in parts.items():
            name = re.sub(part, its, name, count=1)
        named[name] = tensor
    return named


def llama() -> PreTrainedModel:
    """A small Llama, of characters."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128, hidden_size=192, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def opt() -> PreTrainedModel:
    """A small OPT, of characters."""
    torch.manual_seed(0)
    return OPTForCausalLM(
        OPTConfig(
            vocab_size=128, hidden_size=192, word_embed_proj_dim=192, ffn_dim=768,
            num_hidden_layers=4, num_attention_heads=4, max_position_embeddings=LENGTH,
            dropout=0.0,
        )
    )  # fmt: skip


def trained(model: PreTrainedModel, steps: int = 200) -> Language:
    """The model after some training steps on the text of Python's manual."""
    text = "".join(topics[name] for name in sorted(topics)).encode("ascii", "replace")
    tokens = torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).view(-1, LENGTH)
    train, held_out = tokens[:-64], tokens[-64:]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (16,))]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return Language(model, list(train[torch.randint(len(train), (16, 1))]), held_out)


def locuslab(folder: Path) -> Prune:
    """The code of Wanda's authors, including SparseGPT; it expects a GPU and loads C4."""
    sys.path.insert(0, str(folder))
    vars(torch.cuda)["synchronize"] = lambda *_: None
    data = ModuleType("lib.data")
    sys.modules["lib.data"] = data

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method not in ("wanda", "sparsegpt"):
            return None
        model, loader = served(language)
        vars(data)["get_loaders"] = lambda *_, **__: (loader, None)
        kind = "prune_opt" if isinstance(model, OPTForCausalLM) else "prune"
        module = importlib.import_module(f"lib.{kind}")
        vars(module)["get_loaders"] = data.get_loaders
        n, m = pruned_of(setting)
        options = SimpleNamespace(
            nsamples=len(loader), seed=0, sparsity_ratio=SETTINGS[setting]["sparsity"],
            use_variant=False,
        )  # fmt: skip
        walk = getattr(module, f"prune_{method}")
        walk(options, model, None, torch.device("cpu"), prune_n=n, prune_m=m)
        return model

    return prune


def ist_daslab(folder: Path) -> Prune:
    """The code of SparseGPT's authors, which reads its options from the command line."""
    sys.path.insert(0, str(folder))
    vars(torch.cuda)["synchronize"] = lambda *_: None

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method != "sparsegpt":
            return None
        model, loader = served(language)
        kind = "opt" if isinstance(model, OPTForCausalLM) else "llama"
        module = importlib.import_module(kind)
        n, m = pruned_of(setting)
        vars(module)["args"] = SimpleNamespace(
            nsamples=len(loader), sparsity=SETTINGS[setting]["sparsity"], prunen=n, prunem=m,
            percdamp=0.01, blocksize=128, wbits=16, minlayer=-1, maxlayer=1000, prune_only="",
            invert=False, true_sequential=False,
        )  # fmt: skip
        getattr(module, f"{kind}_sequential")(model, loader, torch.device("cpu"))
        return model

    return prune


def ria(folder: Path) -> Prune:
    """RIA, without its permutation of channels."""
    options = {
        "calib_dataset": "c4", "seqlen": None, "model": "llama", "prune_method": "ria", "a": 0.5,
        "reconstruction": False, "gptq": False, "reallocation": False, "per_outneuron": False,
        "semi_sparse_acc": False,
    }  # fmt: skip
    return by_function("ria", folder, "prune", "prune_ria", options)


def thanos(folder: Path) -> Prune:
    """Thanos, without outlier rows; the authors leave the last row dense in N:M."""
    return by_function("thanos", folder, "prune", "prune_thanos", {}, blocksize=128)


def dsnot(folder: Path) -> Prune:
    """DSnoT after Wanda, with the defaults of its command line except for the cycles."""
    options = {
        "initial_method": "wanda", "skip_layer": "mlp", "skip_sub_layer": "",
        "without_DSnoT": False, "pow_of_var_regrowing": 1, "max_cycle_time": CYCLES,
        "update_threshold": 0.1, "without_same_sign": True, "get_time_overhead": False,
    }  # fmt: skip
    return by_function("dsnot", folder, "prune", "prune_DSnoT", options)


def owl(folder: Path) -> Prune:
    """OWL with Wanda; unstructured only."""
    options = {"Hyper_m": 5, "Lamda": 0.08, "model": "llama"}
    return by_function("wanda, owl", folder, "prune_all", "prune_wanda_outlier", options)


def alpha_pruning(folder: Path) -> Prune:
    """AlphaPruning with Wanda, by the exponent of the upper half of the spectrum."""
    with library(folder):
        # Only its other metrics use this package.
        sys.modules.setdefault("weightwatcher", ModuleType("weightwatcher"))
        spectra = importlib.import_module("lib.esd_utils")
    options = {
        "model": "llama", "ww_metric": "alpha_mid", "epsilon": 0.3, "mapping_type": "block_wise",
    }  # fmt: skip
    walk = by_function("wanda, alpha", folder, "prune", "prune_wanda_ww", options)

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        blocks = language.model.model.layers
        found = spectra.net_esd_estimator(blocks, fix_fingers="xmin_mid")
        with tempfile.TemporaryDirectory() as cache:
            np.save(f"{cache}/alpha_mid.npy", found["alpha"])
            options["ww_metric_cache"] = cache
            return walk(language, method, setting)

    return prune


def gblm(folder: Path) -> Prune:
    """GBLM with the 2-norm of the gradients."""
    return by_gradients("gblm", folder, "prune_gblm", {"gradient_inv": False}, scale=100)


def pruner_zero(folder: Path) -> Prune:
    """Pruner-Zero with the expression that its search has found."""
    with library(folder):
        tree = importlib.import_module("lib.gptree").GPTree
    engine = tree.load_tree(str(folder / "data" / "best_tree.json"))
    return by_gradients("pruner_zero", folder, "prune_pruner_zero", {}, engine=engine)


def by_gradients(
    name: str,
    folder: Path,
    function: str,
    options: dict[str, Any],
    *,
    scale: float = 1.0,
    **keywords: Any,
) -> Prune:
    """The authors' loop with the norms of the gradients in a file, as their script stores them."""
    options = {**options, "use_variant": False}
    walk = by_function(name, folder, "prune", function, options, **keywords)

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method != name:
            return None
        model = copy.deepcopy(language.model)
        sums = {n: torch.zeros_like(p) for n, p in model.named_parameters() if p.dim() == 2}
        for tokens in language.calibration:
            model.zero_grad()
            next_token_loss(model, tokens).backward()
            for parameter, total in sums.items():
                gradient = model.get_parameter(parameter).grad
                assert gradient is not None
                total += (scale * gradient).square()
        norms = {}
        for parameter, total in sums.items():
            if found := re.fullmatch(r"model\.layers\.(\d+)\.(.*)\.weight", parameter):
                norms[f"{found[2]}_layer_{found[1]}"] = total.sqrt()
        with tempfile.TemporaryDirectory() as cache:
            options["gradient_path"] = f"{cache}/gradients.pth"
            torch.save(norms, options["gradient_path"])
            return walk(language, method, setting)

    return prune


def by_function(
    name: str,
    folder: Path,
    module: str,
    function: str,
    options: dict[str, Any],
    **keywords: Any,
) -> Prune:
    """One of the loops that stem from Wanda's: ``function(args, model, tokenizer, device, ...)``.

    Args:
        name: The only method that it has.
        folder: Checkout with a package ``lib``.
        module: Of the package.
        function: In the module.
        options: What it reads of the command line.
        **keywords: Passed on.
    """
    data = ModuleType("lib.data")
    with library(folder, data):
        # Pruner-Zero's file imports a module that its repository lacks.
        sys.modules["lib.ablate"] = ModuleType("lib.ablate")
        vars(sys.modules["lib.ablate"])["AblateGPT"] = None
        walk = importlib.import_module(f"lib.{module}")

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method != name or not isinstance(language.model, LlamaForCausalLM):
            return None
        if METHODS[name].get("scope") and SETTINGS[setting]["pattern"] != "unstructured":
            return None
        model, loader = served(language)
        vars(walk)["get_loaders"] = lambda *_, **__: (loader, None)
        n, m = pruned_of(setting)
        given = {
            "nsamples": len(loader), "seed": 0, "sparsity_ratio": SETTINGS[setting]["sparsity"],
            "use_variant": False, **options,
        }  # fmt: skip
        device = torch.device("cpu")
        with on_cpu():
            getattr(walk, function)(
                SimpleNamespace(**given), model, None, device, prune_n=n, prune_m=m, **keywords
            )
        return model

    return prune


def alps(folder: Path) -> Prune:
    """ALPS's class for one layer, block by block."""
    with library(folder):
        layer_class = importlib.import_module("alps").ALPS_prune

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method != "alps" or not isinstance(language.model, LlamaForCausalLM):
            return None
        model = copy.deepcopy(language.model)
        n, m = pruned_of(setting)
        for block in model.model.layers:
            solvers = {
                layer: layer_class(
                    layer, len(language.calibration), language.calibration[0].shape[1]
                )
                for layer in block.modules()
                if isinstance(layer, nn.Linear)
            }

            def add(layer: nn.Module, args: Any, output: Tensor, solvers: Any = solvers) -> None:
                solvers[layer].add_batch(args[0].data, output.data)

            hooks = [layer.register_forward_hook(add) for layer in solvers]
            with torch.no_grad(), on_cpu():
                for tokens in language.calibration:
                    model(tokens)
                for hook in hooks:
                    hook.remove()
                for solver in solvers.values():
                    solver.ALPS_admm(SETTINGS[setting]["sparsity"], nm_n=m - n, nm_m=m)
        return model

    return prune


@contextlib.contextmanager
def library(folder: Path, data: ModuleType | None = None) -> Iterator[None]:
    """Within the context, modules of a checkout can be imported; each has a package ``lib``."""
    # A name that transformers no longer has, and that no loop calls.
    sys.modules["transformers"].__dict__["AdamW"] = torch.optim.AdamW
    for name in [name for name in sys.modules if name.partition(".")[0] == "lib"]:
        del sys.modules[name]
    if data is not None:
        vars(data)["get_loaders"] = None
        sys.modules["lib.data"] = data
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Within the context, tensors stay on the CPU where the authors' code expects a GPU."""
    to = Tensor.to

    def stay(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        moved = ["cpu" if isinstance(arg, str) and arg.startswith("cuda") else arg for arg in args]
        return to(tensor, *moved, **kwargs)

    with (
        mock.patch.object(Tensor, "to", stay),
        mock.patch.object(Tensor, "cuda", lambda tensor: tensor),
        mock.patch.object(torch.cuda, "synchronize"),
    ):
        yield


def served(language: Language) -> tuple[PreTrainedModel, list[tuple[Tensor]]]:
    """A copy of the model as the authors' loops expect it, and their loader."""
    model = copy.deepcopy(language.model)
    length = language.calibration[0].shape[1]
    vars(model).update(seqlen=length, hf_device_map={})
    if isinstance(model, LlamaForCausalLM):
        # Their code calls layers without rotary embeddings, which present layers don't compute.
        rotary = model.model.rotary_emb

        def rotate(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            positions = torch.arange(length)[None]
            return args, {"position_embeddings": rotary(args[0], positions), **kwargs}

        for layer in model.model.layers:
            layer.register_forward_pre_hook(rotate, with_kwargs=True)
    return model, [(tokens,) for tokens in language.calibration]


def pruned_of(setting: str) -> tuple[int, int]:
    """Pruned weights per group and group size; (0, 0) without groups."""
    n, _, m = SETTINGS[setting]["pattern"].partition(":")
    return (int(m) - int(n), int(m)) if m else (0, 0)


def kept(model: PreTrainedModel) -> dict[str, Tensor]:
    """Which weights of the layers are kept."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {n: layer.weight != 0 for n, layer in layers.items() if n != "lm_head"}


def overlap(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The Jaccard index of two whole models' masks."""
    both = sum(int((mask & theirs[name]).sum()) for name, mask in ours.items())
    return both / sum(int((mask | theirs[name]).sum()) for name, mask in ours.items())


@torch.no_grad()
def perplexity(model: PreTrainedModel, tokens: Tensor) -> float:
    """The exponential of the mean cross-entropy of the next token."""
    return float(next_token_loss(model, tokens).exp())


def scores(folders: dict[str, Path]) -> Table:
    """Scores of single criteria, ours and theirs.

    Args:
        folders: Name in `PEERS` -> checkout.
    """
    table = Table("criterion", "peer", "rank correlation", "Jaccard of masks")
    batches = list(build_data("digits", batch_size=64, seed=0, augment=False).train.epoch(0))[:8]
    for peer, folder in folders.items():
        for compared in PEERS[peer](folder, batches):
            correlation, jaccard = agreement(compared)
            table.add_row(
                compared.criterion,
                peer,
                f"{correlation:.6f}",
                f"{jaccard:.4f} at {compared.sparsity:.0%}",
            )
    return table


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
    """Iterative SNIP and FORCE. Their loop uses the first batch of its loader at every step."""
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


def flap(folder: Path, batches: Batches) -> Agreements:
    """FLAP's masks at 50%. Its code squares the scores of attention, which the paper does not."""
    with library(folder, ModuleType("lib.data")):
        walk = importlib.import_module("lib.prune")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=4,
        num_attention_heads=4, head_dim=128, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    language = trained(LlamaForCausalLM(config), steps=100)
    model = copy.deepcopy(language.model)
    pattern = coupled_pattern(model, {"input_ids": language.calibration[0]})
    pruner = seven_exp.create_pruner("flap", model, sparsity=0.5, pattern=pattern)
    pruner.prune(language.calibration, next_token_loss)
    # Its code masks what makes a unit, and leaves what reads it.
    makers = [
        name for name in pruner.masks if not name.endswith(("o_proj.weight", "down_proj.weight"))
    ]
    ours = {name: pruner.masks[name].float() for name in makers}
    squared = walk.metrics["WIFV"]

    def plain(layers: Any, subset: Any, name: str) -> Tensor:
        score: Tensor = squared(layers, subset, name)
        return score.sqrt() if "attn" in name else score

    in_float, options = Tensor.type, {"metrics": "WIFV", "structure": "AL-AM", "unstr": True}
    for name, metric in (("flap", squared), ("flap, attention not squared", plain)):
        walk.metrics["WIFV"] = metric
        peer, loader = served(language)
        vars(walk)["get_loaders"] = lambda *_, loader=loader, **__: (loader, None)
        given = SimpleNamespace(nsamples=len(loader), seed=0, pruning_ratio=0.5, **options)
        with (
            on_cpu(),
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(Tensor, "type", lambda t, *_: in_float(t, torch.float32)),
        ):
            walk.prune_flap(given, peer, None, torch.device("cpu"))
        theirs = {name: (peer.get_parameter(name) != 0).float() for name in makers}
        yield Compared(name, ours, theirs, 0.5)


def platon(folder: Path, batches: Batches) -> Agreements:
    """PLATON's own class."""
    yield Compared("platon", *platon_scores(load(folder / "Pruner.py"), batches))


WHOLE: dict[str, Callable[[Path], Prune]] = {
    "wanda": locuslab,
    "sparsegpt": ist_daslab,
    "ria": ria,
    "thanos": thanos,
    "alps": alps,
    "dsnot": dsnot,
    "owl": owl,
    "alpha-pruning": alpha_pruning,
    "gblm": gblm,
    "pruner-zero": pruner_zero,
}
PEERS: dict[str, Callable[[Path, Batches], Agreements]] = {
    "synaptic-flow": synaptic_flow,
    "platon": platon,
    "force": force,
    "torch-pruning": torch_pruning,
    "flap": flap,
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
    """The same small network for any layer classes."""
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
    """Scores of one of Synaptic-Flow's pruners, which identify parameters by id."""
    weights = {n: p for n, p in model.named_parameters() if n.endswith("weight")}
    masks = {n: b for n, b in model.named_buffers() if n.endswith("weight_mask")}
    pruner = kind([(masks[f"{name}_mask"], weight) for name, weight in weights.items()])
    pruner.score(model, nn.CrossEntropyLoss(), batches, torch.device("cpu"))
    return {name: pruner.scores[id(weight)].detach() for name, weight in weights.items()}


def platon_scores(module: ModuleType, batches: Batches) -> tuple[Scores, Scores]:
    """Both on one training trajectory of thirty-one steps, three whole averaging windows."""
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
    """Import a Python file as a module."""
    spec = importlib.util.spec_from_file_location(f"peer_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        sys.exit(f"error: no file {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
