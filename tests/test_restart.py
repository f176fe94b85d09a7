"""The same command again: a killed sweep is completed, nothing is done twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from preloaded import python
from test_cli import ROOT
from test_conf import composed

from seven_exp import runs
from seven_exp.runs.ledger import Ledger

pytestmark = pytest.mark.slow

COMMAND = [
    *("pruner=seven_dyn", "tracker.mode=disabled", "model.depth=1", "trainer.log_interval=5"),
    *("trainer.eval_interval=50", "run.checkpoint_interval=5"),
]


def start(tmp_path, *arguments, starting=None) -> subprocess.Popen:
    return subprocess.Popen(
        [starting or python(), str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "SEVEN_EXP_CACHE": str(tmp_path / "cache")},
    )


def wait_for(condition, process: subprocess.Popen) -> None:
    """Until it holds, as long as the process runs."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def finished(tmp_path) -> dict[str, Path]:
    """Run hash -> a folder with its record, of those that are done."""
    paths = tmp_path.rglob("results.json")
    records = ((json.loads(path.read_text()), path.parent) for path in paths)
    return {r["run_hash"]: folder for r, folder in records if r["status"] == "finished"}


def test_a_killed_sweep_is_completed_by_the_same_command(tmp_path):
    sweep = (
        *("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *COMMAND),
        *("seed=0,1,2,3", "trainer.max_steps=150"),
    )
    # joblib's processes are killed with it
    process = start(tmp_path, *sweep, starting=sys.executable)

    def one_done_another_begun() -> bool:
        done = set(finished(tmp_path).values())
        begun = {path.parent.parent for path in tmp_path.rglob("checkpoints/step-*")}
        return bool(done) and bool(begun - done)

    wait_for(one_done_another_begun, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {h: (f / "results.json").stat().st_ino for h, f in finished(tmp_path).items()}
    (first,) = tmp_path.glob("outputs/multirun/*/*")
    begun = {path.parent.parent for path in first.rglob("checkpoints/step-*")}
    begun -= set(finished(tmp_path).values())
    assert 1 <= len(before) < 4

    process = start(tmp_path, *sweep)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    (second,) = (p for p in tmp_path.glob("outputs/multirun/*/*") if p != first)
    records = finished(second)
    assert len(records) == 4
    # What was done is the same file still; what was begun went on in its folder.
    for run_hash, inode in before.items():
        assert (records[run_hash] / "results.json").stat().st_ino == inode
    assert errors.count("already done") == len(before)
    assert errors.count("continuing after step") >= 1
    for folder in begun:
        assert json.loads((folder / "results.json").read_text())["status"] == "finished"
    # Every step of every run was logged once.
    steps = [*range(5, 151, 5)]
    for folder in records.values():
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == steps
    inodes = Counter(p.stat().st_ino for p in tmp_path.rglob("metrics.jsonl"))
    unfinished = [p for p in first.glob("[0-9]*") if not (p / "results.json").exists()]
    with_figures = sum((p / "metrics.jsonl").exists() for p in unfinished)
    assert len(inodes) == 4 + with_figures
    # The comparison of the second sweep has all.
    assert (second / "comparison.csv").exists()
    assert ",4," in (second / "comparison.csv").read_text()


def test_one_process_works_a_second_one_leaves_it_to_the_first_which_a_signal_stops(tmp_path):
    window = ("schedule.begin_step=0", "schedule.end_step=100")
    command = (*COMMAND, "trainer.max_steps=1000000", *window)
    working = start(tmp_path, *command)
    wait_for(lambda: any(tmp_path.rglob("checkpoints/step-*")), working)
    second = start(tmp_path, *command)
    _, errors = second.communicate()
    assert second.returncode == 75, errors
    (folder,) = (path.parent for path in tmp_path.rglob("metrics.jsonl"))
    assert f"{folder} is being done by another process: left to it" in errors

    working.send_signal(signal.SIGTERM)
    _, errors = working.communicate()
    assert working.returncode == 75, errors
    assert "SIGTERM: stopping after step" in errors.splitlines()[-1]
    assert "the same command continues from there" in errors.splitlines()[-1]
    assert json.loads((folder / "results.json").read_text())["status"] == "interrupted"


def test_a_sweep_says_which_runs_are_elsewhere_and_the_same_command_finishes_it(tmp_path):
    sweep = ["-m", *COMMAND, "trainer.max_steps=10", "seed=0,1", "hydra.sweep.dir=outputs/sweep"]
    config = composed(*COMMAND, "trainer.max_steps=10", "seed=1")
    with Ledger(tmp_path / "outputs").claimed(runs.run_hash(config), 0) as mine:
        assert mine
        _, errors = (process := start(tmp_path, *sweep)).communicate()
    assert process.returncode == 75, errors
    assert errors.splitlines()[-1] == (
        "1 of 2 runs is being done by another process: the same command finishes the table"
    )
    assert [r["seed"] for r in records(tmp_path / "outputs/sweep")] == [0]
    _, errors = (process := start(tmp_path, *sweep)).communicate()
    assert process.returncode == 0, errors
    assert [r["seed"] for r in records(tmp_path / "outputs/sweep")] == [0, 1]


def records(folder: Path) -> list[dict]:
    return sorted(
        (json.loads(path.read_text()) for path in folder.rglob("results.json")),
        key=lambda record: record["seed"],
    )
