"""Measures the time and memory of a comparison of many runs.

It makes records of 25 layers and a hundred logged steps, each with every layer's sparsity, and
compares them in a separate process: table, CSV, PNG and page. On a shared machine, processor
seconds are more reliable than wall-clock seconds.

    python benchmarks/compare_scale.py [--runs 250 500 1000] [--keep FOLDER]
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LAYERS, STEPS, SEEDS = 25, 100, 5
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)
WEIGHTS = 5000


def main() -> None:
    """Print a line for each number of runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, nargs="+", default=[250, 500, 1000])
    parser.add_argument("--keep", type=Path, help="leave the records and the files there")
    options = parser.parse_args()
    table = Table(
        "runs", "MB read", "seconds", "processor seconds", "of it, ms a run", "peak MB", "page, MB"
    )
    for runs in options.runs:
        with tempfile.TemporaryDirectory() as scratch:
            folder = (options.keep or Path(scratch)) / f"{runs}_runs"
            make_records(folder, runs)
            size = sum(path.stat().st_size for path in folder.rglob("*.json*"))
            seconds, busy, peak = compare(folder)
            page = (folder / "comparison.html").stat().st_size
        table.add_row(
            *(f"{runs}", f"{size / 1e6:.0f}", f"{seconds:.2f}", f"{busy:.2f}"),
            f"{1000 * busy / runs:.1f}",
            *(f"{peak / 1e6:.0f}", f"{page / 1e6:.2f}"),
        )
    Console().print(table)


def make_records(folder: Path, runs: int) -> None:
    """Write records like those of runs, for pruners times sparsities times seeds."""
    draw = random.Random(0)
    for i in range(runs):
        group, seed = divmod(i, SEEDS)
        method, level = divmod(group, len(SPARSITIES))
        run = folder / f"{i:05d}"
        run.mkdir(parents=True, exist_ok=True)
        record = make_record(f"pruner_{method:02d}", SPARSITIES[level], seed, draw)
        (run / "results.json").write_text(json.dumps(record, indent=1))
        with (run / "metrics.jsonl").open("w") as file:
            for line in make_history(record, draw):
                file.write(json.dumps(line) + "\n")


def make_record(pruner: str, sparsity: float, seed: int, draw: random.Random) -> dict[str, Any]:
    """``results.json`` of one run."""
    quality = int(pruner[-2:]) / 100
    accuracy = 0.98 - sparsity**8 * (0.1 + quality) + draw.gauss(0, 0.005)
    layers = [
        {
            "name": f"encoder.layers.encoder_layer_{i // 4}.linear_{i % 4}.weight",
            "numel": WEIGHTS,
            "nonzero": max(1, min(WEIGHTS, int(WEIGHTS * (1 - sparsity) * draw.uniform(0.6, 1.4)))),
        }
        for i in range(LAYERS)
    ]
    kept = sum(layer["nonzero"] for layer in layers)
    groups = ("model", "dataset", "pruner", "schedule", "optimizer", "trainer", "tracker")
    config: dict[str, Any] = {
        group: {"name": "x", **{f"key_{i}": i * 0.1 for i in range(8)}} for group in groups
    }
    return {
        "schema": 1,
        "run_hash": f"{pruner}-{sparsity}-{seed}",
        "status": "finished",
        "pruner": pruner,
        "model": "vit_tiny",
        "dataset": "digits",
        "seed": seed,
        "sparsity_target": sparsity,
        "sparsity": 1 - kept / (LAYERS * WEIGHTS),
        "params_nonzero": kept,
        "flops_dense": 2 * LAYERS * WEIGHTS,
        "flops_sparse": 2 * kept,
        "layers": layers,
        "metric": "accuracy",
        "metrics": {"accuracy": accuracy, "loss": 1.5 * (1 - accuracy)},
        "steps": 10 * STEPS,
        "seconds": draw.uniform(5, 9),
        "config": {**config, "seed": seed, "sparsity": sparsity},
        "versions": {"torch": "2.5", "numpy": "2.0"},
        "device": "cpu",
    }


def make_history(record: dict[str, Any], draw: random.Random) -> Iterator[dict[str, float]]:
    """Lines of ``metrics.jsonl``."""
    for k in range(1, STEPS + 1):
        done = k / STEPS
        loss = 2.3 - done * (2.3 - record["metrics"]["loss"]) + draw.gauss(0, 0.02)
        yield {
            "step": 10 * k,
            "loss": loss,
            "accuracy": 1 - loss / 2.3,
            "sparsity": record["sparsity"] * (1 - (1 - done) ** 3),
            "lr": 1e-3,
            "test/accuracy": done * record["metrics"]["accuracy"] + draw.gauss(0, 0.005),
            "test/loss": loss * 1.1,
            **{
                f"layer_sparsity/{layer['name']}": done * (1 - layer["nonzero"] / WEIGHTS)
                for layer in record["layers"]
            },
        }


def compare(folder: Path) -> tuple[float, float, float]:
    """Seconds, processor seconds and peak resident bytes of the command, with imports."""
    started = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "seven_exp", "compare", str(folder), "--baseline", "pruner_00"],
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the comparison ended with {child.returncode}")
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = time.perf_counter() - started
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit


if __name__ == "__main__":
    main()
