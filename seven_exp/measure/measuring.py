"""Measures one run or export on this machine, and interprets the result."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.config import faults_of_the_user
from seven_exp.datasets import Batches
from seven_exp.measure.timing import in_turn, peak_memory
from seven_exp.measure.variants import Variant, subject_of
from seven_exp.runs.provenance import processor, versions
from seven_exp.tasks import Inputs, forward
from seven_exp.tracking import write_json
from seven_exp.training.world import device_of

SCHEMA = 1
"""Version of the schema of measure.json."""

_SPREAD = 0.02
"""Ratios this close to 1 count as no difference."""


def measure(
    folder: Path,
    *,
    batch: int,
    device: str,
    dtype: str,
    repeats: int,
    threads: int | None,
    trust_plugins: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Time and memory of every variant, in ``measure.json``.

    Args:
        folder: Folder of a run or an export.
        batch: Batch size for throughput; latency is that of one example.
        device: As in the config.
        dtype: "float32", "float16" or "bfloat16".
        repeats: Rounds in which every variant runs once.
        threads: CPU threads; None: torch's default.
        trust_plugins: Whether to run the plugins that the folder's record names.

    Returns:
        The content of the file, and its path.

    Raises:
        ConfigError: The folder can't be used, or there is no such device.
        OSError: The file can't be written.
    """
    place, kind = device_of(device), getattr(torch, dtype)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    with faults_of_the_user():
        subject = subject_of(folder, place, kind, trust_plugins=trust_plugins)
    inputs = {n: _inputs(subject.data.test, n, place, kind) for n in {1, batch}}
    times = {}
    for n, given in inputs.items():
        calls = {v.name: partial(_call, v.model, given) for v in subject.variants}
        times[n] = in_turn(calls, rounds=repeats, threads=threads)
    rows = []
    for variant in subject.variants:
        peak = None
        if next(variant.model.parameters(), None) is not None:
            peak = peak_memory(partial(_call, variant.model, inputs[batch]), place)
        latency, bulk = times[1][variant.name], times[batch][variant.name]
        rows.append(
            {
                "name": variant.name,
                "bytes": variant.bytes,
                "peak_bytes": peak,
                "flops": variant.flops,
                "latency": asdict(latency),
                "batch": asdict(bulk),
                "examples_per_second": batch / bulk.median,
            }
        )
    facts = {
        "schema": SCHEMA,
        "source": str(folder),
        "device": torch.cuda.get_device_name(place) if place.type == "cuda" else processor(),
        "threads": threads,
        "dtype": dtype,
        "batch_size": batch,
        "length": _length(inputs[1]),
        "versions": versions(),
        "variants": rows,
        "reading": reading(rows, subject.variants),
    }
    path = folder / "measure.json"
    write_json(path, facts)
    return facts, path


@torch.inference_mode()
def _call(model: nn.Module, inputs: Inputs) -> Tensor:
    return forward(model, inputs)


def _inputs(batches: Batches, n: int, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Examples from the split's first batch, repeated if it has fewer."""
    inputs, _ = next(iter(batches.epoch(0)))

    def take(values: Tensor) -> Tensor:
        chosen = values[torch.arange(n) % len(values)].to(device)
        return chosen.to(dtype) if chosen.is_floating_point() else chosen

    if isinstance(inputs, Mapping):
        return {name: take(values) for name, values in inputs.items()}
    return take(inputs)


def _length(inputs: Inputs) -> int | None:
    """Number of tokens of a text."""
    return next(iter(inputs.values())).shape[1] if isinstance(inputs, Mapping) else None


def reading(rows: Sequence[Mapping[str, Any]], variants: Sequence[Variant]) -> list[str]:
    """What was measured and what theory predicts, one sentence per variant."""
    dense, sentences = rows[0], []
    for row, variant in zip(rows[1:], variants[1:], strict=True):
        said = [_compared(row[key]) for key in ("latency", "batch")]
        words = f"{row['name']}: {said[0]} for one example, {said[1]} in a batch"
        if row["flops"] and dense["flops"]:
            words += f"; theory: {dense['flops'] / row['flops']:.2f}x"
        if not variant.skips:
            words += "; dense kernels multiply by zeros too, so no gain is possible"
        sentences.append(words)
    return sentences


def _compared(times: Mapping[str, float]) -> str:
    ratio = f"{times['ratio']:.2f}x"
    if times["ratio_low"] > 1 + _SPREAD:
        return f"faster ({ratio})"
    if times["ratio_high"] < 1 - _SPREAD:
        return f"slower ({ratio})"
    return f"no difference beyond the spread ({ratio})"
