"""Two processes train one model: the masks of one process, one record, joint resumption."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from preloaded import python

from seven_exp.runs import load_masks

ROOT = Path(__file__).parent.parent
TINY = (
    *("model=mlp", "model.widths=[24,24]", "device=cpu", "threads=1", "tracker.mode=disabled"),
    *("sparsity=0.8", "trainer.batch_size=50", "trainer.max_steps=12", "trainer.eval_interval=6"),
)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc_per_node=2")

LEAVING = """
import atexit, os, sys
from pathlib import Path
import torch
from seven_exp.training.world import join

def tell():
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    Path(sys.argv[1], os.environ["RANK"]).write_text(" ".join(names))

def train():
    world, _ = join("cpu")
    model = world.replicas(torch.nn.Linear(3, 1))
    model(torch.ones(2, 3)).sum().backward()
    assert "gloo" in " ".join(t.read_text() for t in Path("/proc/self/task").glob("*/comm"))

atexit.register(tell)
train()
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("distributed"),
    pytest.mark.skipif(sys.platform == "win32", reason="gloo and torchrun on POSIX"),
]


def command(processes, *arguments):
    launcher = ["-m", *TORCHRUN] if processes == 2 else []
    flags = [a for a in arguments if a.startswith("-")]
    values = [a for a in arguments if a not in flags]
    return [python(), *launcher, "train.py", *flags, *TINY, *values]


def environment():
    """A thread for each process; torchrun starts them by ``PYTHON_EXEC``."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": python()}


def train(processes, *arguments):
    """The process's output and exit code."""
    return subprocess.run(
        command(processes, *arguments),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def records(root):
    """Pruner -> (results.json, masks), and that each run has left one record."""
    found = {}
    for path in root.rglob("results.json"):
        values = json.loads(path.read_text())
        assert values["pruner"] not in found
        found[values["pruner"]] = values, load_masks(path.parent / "masks.safetensors")
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The records of one process and of two, of the same sweep."""
    roots = {}
    for processes in (1, 2):
        roots[processes] = tmp_path_factory.mktemp(f"processes{processes}")
        sweep = ("-m", "pruner=seven_dyn,seven_pre,magnitude", "trainer.accumulate=2")
        done = train(processes, *sweep, f"output_root={roots[processes]}")
        assert done.returncode == 0, done.stderr
    return {processes: records(root) for processes, root in roots.items()}


@pytest.mark.parametrize("pruner", ["seven_dyn", "seven_pre", "magnitude"])
def test_masks_and_figures_are_those_of_one_process(both, pruner):
    (alone, own), (together, shared) = both[1][pruner], both[2][pruner]
    assert own.keys() == shared.keys()
    assert all((own[name] == shared[name]).all() for name in own)
    assert together["run_hash"] == alone["run_hash"]
    assert together["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-4)
    # One image of 360.
    assert together["metrics"]["accuracy"] == pytest.approx(alone["metrics"]["accuracy"], abs=0.003)


def test_a_mistake_is_told_once(tmp_path):
    done = train(2, "trainer.batch_size=1", f"output_root={tmp_path}")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    (line,) = told
    assert line.startswith("error: trainer.batch_size is 1: 2 processes share each batch")


def test_stopped_together_and_continued(tmp_path):
    long = ("trainer.max_steps=2000", "trainer.eval_interval=100", f"output_root={tmp_path}")
    process = subprocess.Popen(
        command(2, *long),
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = time.monotonic() + 300
    while not list(tmp_path.rglob("step-*.safetensors")) and time.monotonic() < patience:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=300)
    assert process.returncode != 0
    (saved,) = tmp_path.rglob("results.json")
    stopped = json.loads(saved.read_text())
    assert stopped["status"] == "interrupted"
    done = train(2, *long, "tracker.tags=[again]")
    assert done.returncode == 0, done.stderr
    assert "continuing after step" in done.stderr
    assert json.loads(saved.read_text())["status"] == "finished"
    steps = [json.loads(line)["step"] for line in (saved.parent / "metrics.jsonl").open()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 2000


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists threads as Linux does")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """A thread that releases a tensor at interpreter shutdown would abort a finished run."""
    script, told = tmp_path / "leaving.py", tmp_path / "told"
    script.write_text(LEAVING)
    told.mkdir()
    subprocess.run(
        [sys.executable, "-m", *TORCHRUN, str(script), str(told)],
        check=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )
    assert sorted(path.name for path in told.iterdir()) == ["0", "1"]
    assert not any("gloo" in path.read_text() for path in told.iterdir())
