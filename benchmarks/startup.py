"""Processor seconds of short runs beside ``import torch``: what a user waits for but training.

uv run benchmarks/startup.py --repeats 5

Each kind runs in turn, again and again, so that all of them see the same machine. Processor
seconds count a process and its children, the launchers' jobs among them.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

TRAIN = [sys.executable, str(Path(__file__).parent.parent / "train.py")]
RUN = ["trainer.max_steps=2", "model.depth=1", "model.pretrain.epochs=0"]
SWEEP = ["-m", *RUN, "tracker=none", "run.force=true"]
JOBLIB = [*TRAIN, *SWEEP, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]

KINDS: dict[str, list[str]] = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import torchvision": [sys.executable, "-c", "import torchvision"],
    "help": [*TRAIN, "--help"],
    "a two-step run": [*TRAIN, *RUN, "tracker=none", "run.force=true"],
    "a two-step run, W&B offline": [*TRAIN, *RUN, "tracker.mode=offline", "run.force=true"],
    "a skipped run": [*TRAIN, *RUN, "tracker=none", "run.skip_finished=true"],
    "a job under submitit": [*TRAIN, *SWEEP, "hydra/launcher=submitit_local", "seed=0"],
    "2 jobs under joblib": [*JOBLIB, "seed=0,1"],
    "6 jobs under joblib": [*JOBLIB, "seed=0,1,2,3,4,5"],
}


def processor_seconds(command: list[str], folder: str) -> float:
    """Of one process with its children.

    Raises:
        CalledProcessError: The command failed.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "SEVEN_EXP_CACHE": folder}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(command, cwd=folder, check=True, capture_output=True, env=env)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print a table of medians, their spread, and ratios to the first kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    arguments = parser.parse_args()
    kinds = dict.fromkeys(["import torch", *arguments.kinds])
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:  # fills the caches of data, bytecode and compiled passes
            processor_seconds(KINDS[kind], folder)
        for _ in range(arguments.repeats):
            for kind in kinds:
                seconds[kind].append(processor_seconds(KINDS[kind], folder))
    unit = median(seconds["import torch"])
    print("| kind | ratio | seconds, median (lowest to highest) |\n|---|---:|---:|")
    for kind, measured in seconds.items():
        spread = f"{median(measured):.2f} ({min(measured):.2f} to {max(measured):.2f})"
        print(f"| {kind} | {median(measured) / unit:.2f} | {spread} |")
    if {"2 jobs under joblib", "6 jobs under joblib"} <= set(kinds):
        few, many = (median(seconds[f"{n} jobs under joblib"]) for n in (2, 6))
        print(f"\nEach further job under joblib: {(many - few) / 4 / unit:.2f}")


if __name__ == "__main__":
    main()
