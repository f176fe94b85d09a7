"""Measures seconds and peak memory of the block walk, and of public implementations of it.

One process, a random Llama of each depth; all prune copies of it in turn, to 50%. Peak memory is
the growth of the resident set in a fork of the process, beside the copy and the calibration data.
Unlike a count of live tensors it includes what operations allocate within themselves, and threads.
None of the others' code is here:

    --wanda           checkout of locuslab/wanda (Wanda, SparseGPT)
    --sparsegpt       checkout of IST-DASLab/sparsegpt
    --llm-compressor  the installed package llmcompressor (both); where it wants an older torch,
                      --no-deps will do, beside compressed-tensors, loguru and nvidia-ml-py

    OMP_NUM_THREADS=1 python benchmarks/walk_cost.py --wanda DIR --sparsegpt DIR --llm-compressor
"""

import argparse
import contextlib
import copy
import ctypes
import gc
import io
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peers import Language, Prune, ist_daslab, kept, locuslab, ours, overlap
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

SETTING = "50%"
_MMAP_THRESHOLD, _ARENA_MAX = -3, -8
"""Parameters of ``mallopt``, as in glibc's malloc.h."""


def main() -> None:
    """Print a row for each method, depth and implementation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    for name, default in (("width", 256), ("samples", 16), ("length", 128), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--methods", nargs="+", default=["wanda", "sparsegpt"])
    parser.add_argument("--wanda", type=Path)
    parser.add_argument("--sparsegpt", type=Path)
    parser.add_argument("--llm-compressor", action="store_true")
    options = parser.parse_args()
    prunes: dict[str, Prune] = {"ours": ours}
    if options.wanda:
        prunes["wanda"] = locuslab(options.wanda)
    if options.sparsegpt:
        prunes["sparsegpt"] = ist_daslab(options.sparsegpt)
    if options.llm_compressor:
        prunes["llm-compressor"] = llm_compressor()
    table = Table("method", "blocks", "whose")
    for column in ("seconds", "range", "ours / theirs", "range", "memory, MB", "range", "Jaccard"):
        table.add_column(column, justify="right")
    for method in options.methods:
        for depth in options.depths:
            measure(table, method, depth, prunes, options)
    Console(width=150).print(table)


def measure(
    table: Table, method: str, depth: int, prunes: dict[str, Prune], options: argparse.Namespace
) -> None:
    """Add a row for each implementation of a method, at this depth."""
    small, language = (random_llama(blocks, options) for blocks in (1, depth))
    seconds, same = in_fork(timed, method, prunes, small, language, options.repeats)
    grown = {
        name: [in_fork(growth, method, prunes[name], small, language) / 1e6 for _ in range(2)]
        for name in seconds
    }
    for name in seconds:
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[name], strict=True)]
        table.add_row(
            method, str(depth), name, *summary(seconds[name]), *summary(ratios),
            *summary(grown[name]), f"{same[name]:.4f}", end_section=name == list(seconds)[-1],
        )  # fmt: skip


def timed(
    method: str, prunes: dict[str, Prune], small: Language, language: Language, repeats: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds in turn of all that have the method, and the overlap of their masks with ours."""
    seconds: dict[str, list[float]] = {
        name: [] for name, prune in prunes.items() if pruned(prune, small, method) is not None
    }
    masks: dict[str, dict[str, Tensor]] = {}
    for _ in range(repeats):
        for name, own in seconds.items():
            given = itself(language)
            start = time.perf_counter()
            pruned(prunes[name], given, method)
            own.append(time.perf_counter() - start)
            masks[name] = kept(given.model)
    return seconds, {name: overlap(masks["ours"], mask) for name, mask in masks.items()}


def summary(values: list[float]) -> tuple[str, str]:
    """Median and range."""
    return f"{statistics.median(values):.2f}", f"{min(values):.2f} to {max(values):.2f}"


def random_llama(blocks: int, options: argparse.Namespace) -> Language:
    """A Llama of so many blocks with random weights, calibrated by random tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024, hidden_size=options.width, intermediate_size=11 * options.width // 4,
        num_hidden_layers=blocks, num_attention_heads=options.width // 64,
        max_position_embeddings=options.length,
    )  # fmt: skip
    tokens = torch.randint(1024, (options.samples, 1, options.length))
    return Language(LlamaForCausalLM(config).eval(), list(tokens), tokens[:0])


def itself(language: Language) -> Language:
    """A copy that is pruned itself, where `peers` otherwise prunes a copy."""
    model = copy.deepcopy(language.model)
    vars(model)["__deepcopy__"] = lambda _: model
    return language._replace(model=model)


def pruned(prune: Prune, language: Language, method: str) -> PreTrainedModel | None:
    """The pruned model, without what is printed on the way."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return prune(language, method, SETTING)


def in_fork(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns in a fork, which leaves the heap of this process as it is."""
    fork = multiprocessing.get_context("fork")
    result, end = fork.Pipe(duplex=False)
    process = fork.Process(target=lambda: end.send(function(*args)))
    process.start()
    end.close()
    value = result.recv()
    process.join()
    return value


def growth(method: str, prune: Prune, small: Language, language: Language) -> int:
    """Growth of the peak of the resident set, in bytes, in a process of its own."""
    # malloc shall return freed tensors to the system at once.
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, 2**16)
    libc.mallopt(_ARENA_MAX, 1)
    # The first run also loads code.
    pruned(prune, itself(small), method)
    given = itself(language)
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
    before = resident("VmRSS")
    pruned(prune, given, method)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """A line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name)))


def llm_compressor() -> Prune:
    """llm-compressor's `oneshot`, without the files that it reads and writes."""
    from llmcompressor.args import DatasetArguments, RecipeArguments
    from llmcompressor.entrypoints.oneshot import Oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
    from loguru import logger

    logger.remove()
    kinds = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}

    def prune(language: Language, method: str, setting: str) -> PreTrainedModel | None:
        if method not in kinds:
            return None
        bare = SimpleNamespace(
            model=copy.deepcopy(language.model),
            recipe=kinds[method](sparsity=0.5, targets=["Linear"], ignore=["re:.*lm_head"]),
            dataset_args=DatasetArguments(pipeline="sequential"),
            recipe_args=RecipeArguments(),
        )
        batches = [{"input_ids": tokens} for tokens in language.calibration]
        Oneshot.apply_recipe_modifiers(bare, DataLoader(batches, batch_size=None))
        return bare.model

    return prune


if __name__ == "__main__":
    main()
