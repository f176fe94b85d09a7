"""Runs that are killed and continued end as if nothing had happened."""

import json
import os
import random
import resource
import signal
from pathlib import Path

import pytest
from test_conf import composed

from seven_exp import runs
from seven_exp.config import RunConfig
from seven_exp.experiment import run_experiment
from seven_exp.tracking import LocalRecord

SMALL = [
    *("model=mlp", "model.widths=[16]", "trainer.max_steps=24", "trainer.batch_size=32"),
    *("trainer.log_interval=2", "trainer.eval_interval=5", "tracker.mode=disabled"),
    *("run.checkpoint_interval=3", "sparsity=0.8", "dataset.augment=true"),
]
VIT = ["model=vit_tiny", "model.depth=1", "model.dropout=0.2", "trainer.max_steps=12"]
VIT = [*VIT, *(x for x in SMALL if not x.startswith(("model", "trainer.max_steps")))]

CASES = {
    "dropout": [*VIT, "pruner=seven_dyn", "schedule.interval=3"],
    "dropout, before": [*VIT, "pruner=seven_pre", "pruner.rounds=4"],
    "before": [*SMALL, "pruner=seven_pre", "pruner.rounds=5", "optimizer=sgd"],
    "during": [*SMALL, "pruner=seven_dyn", "optimizer=sgd", "trainer.accumulate=2"],
    "after": [*SMALL, "pruner=magnitude", "trainer.grad_clip=0.5", "dataset.augment=false"],
    "rewound": [*SMALL, "pruner=imp", "pruner.levels=3", "pruner.finetune_steps=0.7"],
    "platon": [*SMALL, "pruner=platon", "pruner.window=4"],
    "rigl": [*SMALL, "pruner=rigl", "schedule.interval=4"],
    "remembered": [*SMALL, "pruner=movement"],
    "trained": [*SMALL, "pruner=straight_through", "model.pretrain.epochs=1"],
}
KILLS = 5
"""Of each case: 50 in all."""


def in_a_child(config: RunConfig, folder: Path, seconds: float | None = None) -> int:
    """Fork a process that does the run; how it ended, as `os.waitpid` says.

    After so many seconds of its own processor time the system ends it on the spot, as SIGKILL
    does, in whatever it is at. How busy the machine is changes nothing.
    """
    child = os.fork()
    if child == 0:
        if seconds is not None:
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, max(seconds, 1e-4))
        try:
            run_experiment(config, folder, LocalRecord())
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def left_by(folder: Path) -> dict[str, object]:
    """All that a run leaves, but for times; weights and figures to the byte."""
    record = json.loads((folder / "results.json").read_text())
    del record["seconds"], record["seconds_pruning"]
    # The order of a header's entries is chance: those of masks, not those of models.
    masks = {k: m.tolist() for k, m in runs.load_masks(folder / "masks.safetensors").items()}
    names = ["metrics.jsonl", "checkpoints/best.safetensors", "checkpoints/final.safetensors"]
    return {"record": record, "masks": masks, **{n: (folder / n).read_bytes() for n in names}}


@pytest.mark.parametrize("case", CASES)
def test_killed_at_random_moments_a_run_ends_bit_identical(tmp_path, case):
    config = composed(*CASES[case], f"cache_dir={tmp_path / 'cache'}")
    # From here on, a cached start is there, and every library is imported.
    run_experiment(config, tmp_path / "here", LocalRecord())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert in_a_child(config, tmp_path / "whole") == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    whole = left_by(tmp_path / "whole")
    assert left_by(tmp_path / "here") == whole

    draw = random.Random(case)
    moments = [cost * (i + draw.random()) / KILLS for i in range(KILLS)]
    draw.shuffle(moments)
    kills, folder, continued = 0, tmp_path / "0", False
    while kills < KILLS:
        if in_a_child(config, folder, moments[kills]) == 0:
            # Continued so late that it came to its end.
            assert left_by(folder) == whole
            folder = tmp_path / str(kills)
            moments[kills] /= 2
            continue
        kills += 1
        continued |= any(folder.glob("checkpoints/step-*"))
        if (folder / "results.json").exists():
            assert json.loads((folder / "results.json").read_text())["status"] == "finished"
    assert in_a_child(config, folder) == 0
    assert left_by(folder) == whole
    assert continued
    assert sorted(p.name for p in folder.glob("checkpoints/*")) == [
        "best.safetensors",
        "final.safetensors",
    ]
