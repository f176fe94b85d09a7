"""Runs that are killed and continued end as if nothing had happened."""

import json
import logging
import os
import random
import resource
import signal
from pathlib import Path

import pytest
from test_conf import composed

from seven_exp import runs
from seven_exp.config import ConfigError, RunConfig
from seven_exp.runs import provenance
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord
from seven_exp.training.checkpoints import read_checkpoint, write_checkpoint
from seven_exp.training.interruption import InterruptedRun

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
    """Everything that a run leaves except times; weights and metrics to the byte."""
    record = json.loads((folder / "results.json").read_text())
    for key in ("seconds", "seconds_pruning", "started", "ended"):
        del record[key]
    # The order of a header's entries is chance: those of masks, not those of models.
    del record["sha256"]["masks.safetensors"]
    masks = {k: m.tolist() for k, m in runs.load_masks(folder / "masks.safetensors").items()}
    names = ["metrics.jsonl", "checkpoints/best.safetensors", "checkpoints/final.safetensors"]
    return {"record": record, "masks": masks, **{n: (folder / n).read_bytes() for n in names}}


@pytest.mark.slow
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


class Signalled(LocalRecord):
    """Gets a signal from itself when a step is logged."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def log(self, step, values):
        super().log(step, values)
        if step == self.step:
            os.kill(os.getpid(), self.number)


def after_step_8(case: str, tmp_path: Path, number: int, *overrides: str) -> RunConfig:
    """A run that was asked to stop at step 8, where no checkpoint is due; its config."""
    cache = f"cache_dir={tmp_path / 'cache'}"
    config = composed(*CASES[case], "run.checkpoint_interval=0", cache, *overrides)
    run_experiment(config, tmp_path / "whole", LocalRecord())
    run_experiment(config, tmp_path / "run", Signalled(number, 8))
    return config


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_is_obeyed_after_a_checkpoint(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(InterruptedRun) as stopped:
        after_step_8("during", tmp_path, getattr(signal, name))
    assert stopped.value.code == 75
    assert f"{name}: stopping after step 8 of 24; the same command continues" in caplog.text
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert (record["status"], record["steps"]) == ("interrupted", 8)
    config = composed(*CASES["during"], f"cache_dir={tmp_path / 'cache'}")
    run_experiment(config, tmp_path / "run", LocalRecord())
    assert "continuing after step 8 of 24" in caplog.text
    assert left_by(tmp_path / "run")["record"]["run_hash"] == runs.run_hash(config)
    assert same_but_config(tmp_path / "run", tmp_path / "whole")


def test_a_run_that_is_continued_keeps_the_date_of_its_start(tmp_path, monkeypatch):
    days = iter(f"2026-01-{day:02}T00:00:00+00:00" for day in range(1, 31))
    monkeypatch.setattr(provenance, "now", lambda: next(days))
    with pytest.raises(InterruptedRun):
        after_step_8("during", tmp_path, signal.SIGTERM)
    dates = []
    for _ in range(2):
        record = json.loads((tmp_path / "run/results.json").read_text())
        dates.append((record["started"], record["ended"]))
        config = composed(*CASES["during"], f"cache_dir={tmp_path / 'cache'}")
        run_experiment(config, tmp_path / "run", LocalRecord())
    (started, stopped), (same, ended) = dates
    assert started == same < stopped < ended


def same_but_config(one: Path, other: Path) -> bool:
    """Whether two folders hold the same result, one being of a run with other checkpoints."""
    left, right = left_by(one), left_by(other)
    del left["record"]["config"], right["record"]["config"]
    return left == right


def test_control_c_is_obeyed_so_too(tmp_path):
    # A shell's background jobs are born deaf to it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        after_step_8("rewound", tmp_path, signal.SIGINT)
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "interrupted"
    run_experiment(
        composed(*CASES["rewound"], f"cache_dir={tmp_path / 'cache'}"),
        tmp_path / "run",
        LocalRecord(),
    )
    assert same_but_config(tmp_path / "run", tmp_path / "whole")


def test_a_launcher_s_own_handler_gets_the_signal_once_all_is_saved(tmp_path):
    seen = []

    def requeue(number, frame):
        seen.append((number, sorted(p.name for p in tmp_path.glob("run/checkpoints/step-*"))))

    former = signal.signal(signal.SIGUSR2, requeue)
    try:
        after_step_8("after", tmp_path, signal.SIGUSR2)
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, former)
    assert seen == [(signal.SIGUSR2, ["step-00000008.safetensors"])]
    # It chose to go on, so the run did.
    assert same_but_config(tmp_path / "run", tmp_path / "whole")


def test_a_signal_near_the_end_waits_for_it(tmp_path):
    config = composed(*CASES["after"])
    with pytest.raises(InterruptedRun):
        run_experiment(config, tmp_path, Signalled(signal.SIGTERM, 24))
    assert json.loads((tmp_path / "results.json").read_text())["status"] == "finished"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


class Watched(LocalRecord):
    """Notes which checkpoints there are whenever a step is logged."""

    def __init__(self) -> None:
        self.seen: dict[int, list[int]] = {}

    def log(self, step, values):
        super().log(step, values)
        paths = sorted(self.folder.glob("checkpoints/step-*"))
        self.seen[step] = [int(path.stem[5:]) for path in paths]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["run.checkpoint_interval=7"], {6: [], 8: [7], 16: [7, 14], 24: [14, 21]}),
        (["run.checkpoint_interval=4", "run.keep=1"], {4: [], 6: [4], 24: [20]}),
        # At evaluations: 5, 10, 15, 20.
        (["run.checkpoint_interval=null"], {5: [], 6: [5], 24: [15, 20]}),
        (["run.checkpoint_interval=0"], {6: [], 24: []}),
        (["run.checkpoint_interval=0", "pruner=seven_pre", "pruner.rounds=2"], {2: [], 24: []}),
        (["run.checkpoint_interval=null", "pruner=seven_pre", "pruner.rounds=2"], {2: [0]}),
    ],
)
def test_when_checkpoints_are_written_and_how_many_stay(tmp_path, overrides, expected):
    watched = Watched()
    run_experiment(composed(*SMALL, *overrides), tmp_path, watched)
    assert {step: watched.seen[step] for step in expected} == expected
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_the_best_model_stays_beside_the_last(tmp_path):
    record = run_experiment(
        composed(
            *SMALL,
            "pruner=magnitude_pre",
            "optimizer.lr=0.5",
            "trainer.eval_interval=3",
            "optimizer.lr_schedule=constant",
        ),
        tmp_path,
        LocalRecord(),
    )
    assert record["best"]["step"] < 24
    kept = {
        name: composed(
            *SMALL, "trainer.max_steps=1", "optimizer.lr=1e-12", "pruner=dense",
            f"model.checkpoint={tmp_path / 'checkpoints' / name}.safetensors",
        )
        for name in ("best", "final")
    }  # fmt: skip
    for name, figures in (("best", record["best"]), ("final", record["validation"])):
        again = run_experiment(kept[name], tmp_path / name, LocalRecord())
        assert again["validation"]["accuracy"] == figures["accuracy"]


def test_a_checkpoint_of_another_run_or_another_code_is_not_gone_on_from(tmp_path):
    with pytest.raises(InterruptedRun):
        after_step_8("during", tmp_path, signal.SIGTERM)
    other = composed(*CASES["during"], "seed=5")
    assert run_experiment(other, tmp_path / "run", LocalRecord())["seed"] == 5

    with pytest.raises(InterruptedRun):
        after_step_8("during", tmp_path / "again", signal.SIGTERM)
    folder = tmp_path / "again/run"
    (path,) = folder.glob("checkpoints/step-*")
    saved = read_checkpoint(path)
    saved["state"]["model"]["renamed"] = saved["state"]["model"].pop("head.bias")
    write_checkpoint(path, saved)
    config = composed(*CASES["during"])
    with pytest.raises(ConfigError, match=r"step 8 in .* does not fit.*run\.force=true"):
        run_experiment(config, folder, LocalRecord())
