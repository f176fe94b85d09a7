"""Sweeps on joblib, submitit and Ray, each with its real engine; Slurm's commands are imitated."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import joblib
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from preloaded import python
from submitit.core.utils import UncompletedJobError
from test_cli import ROOT, train

from seven_exp.cli import faults

pytestmark = pytest.mark.slow

SMALL = [
    *("tracker.mode=disabled", "model=mlp", "model.widths=[8]", "trainer.max_steps=20"),
    *("trainer.log_interval=5", "trainer.eval_interval=10"),
]
LAUNCHERS = {
    "joblib": ["hydra.launcher.n_jobs=2"],
    "ray": ["hydra.launcher.num_cpus=2", "hydra.launcher.cpus_per_job=1"],
}
THREADS = {"joblib": max(1, joblib.cpu_count() // 2), "ray": 1}
COUNTS_THREADS = """
import contextlib, os, pathlib, torch
from hydra.core.hydra_config import HydraConfig
from omegaconf.errors import MissingMandatoryValue
with contextlib.suppress(MissingMandatoryValue, ValueError):
    # The process that only launches jobs has no job's number.
    HydraConfig.get().job.num
    pathlib.Path(f"threads.{os.getpid()}").write_text(str(torch.get_num_threads()))
"""


def records(tmp_path: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]


def assert_whole(tmp_path: Path, threads: int) -> None:
    """A sweep over two seeds: both finished, from one shared start, and compared."""
    found = records(tmp_path)
    assert sorted((r["seed"], r["status"]) for r in found) == [(0, "finished"), (1, "finished")]
    assert len(list(tmp_path.rglob("pretrained/*.safetensors"))) == 1
    (sheet,) = tmp_path.rglob("comparison.csv")
    assert "seven_dyn" in sheet.read_text()
    counted = {path.read_text() for path in tmp_path.glob("threads.[0-9]*")}
    assert counted == {str(threads)}


@pytest.fixture
def _threads_counted(tmp_path, monkeypatch):
    """Runs with ``plugins=[threads.py]`` leave the number of their threads."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    (tmp_path / "threads.py").write_text(COUNTS_THREADS)


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.usefixtures("_threads_counted")
def test_a_sweep_in_processes_of_its_own(tmp_path, launcher):
    done = train(
        tmp_path, "-m", f"hydra/launcher={launcher}", *LAUNCHERS[launcher], *SMALL,
        "seed=0,1", "model.pretrain.epochs=1", "plugins=[threads.py]", starting=sys.executable,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_whole(tmp_path, THREADS[launcher])


COMMANDS = {
    "sbatch": """
        # Starts an array's two tasks and returns at once.
        script="${@: -1}"
        cp "$script" "$SLURM_IMITATION/script"
        export SLURM_JOB_ID=7 SLURM_ARRAY_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1
        export SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        for task in 0 1; do
            SLURM_ARRAY_TASK_ID=$task bash "$script" > "$SLURM_IMITATION/$task.log" 2>&1 &
        done
        echo "Submitted batch job 7"
    """,
    "srun": """
        while [[ $1 == -* ]]; do
            case $1 in --output | --error) shift 2 ;; *) echo "$1" ; shift ;; esac
        done
        # What is started is Python.
        exec "$PRELOADED_PYTHON" "${@:2}"
    """,
    "sacct": """
        printf 'JobID|State|NodeList\\n7_0|RUNNING|here\\n7_1|RUNNING|here\\n'
    """,
}


def test_slurm_gets_an_array_with_all_that_was_asked_for(tmp_path):
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, lines in COMMANDS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{lines}")
        (commands / name).chmod(0o755)
    done = train(
        tmp_path, "-m", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu",
        "hydra.launcher.cpus_per_task=3", *SMALL, "seed=0,1",
        PATH=f"{commands}:{os.environ['PATH']}", SLURM_IMITATION=str(tmp_path),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["finished"] * 2
    asked = {
        line.removeprefix("#SBATCH --")
        for line in (tmp_path / "script").read_text().splitlines()
        if line.startswith("#SBATCH")
    }
    assert asked >= {
        *("partition=gpu", "gpus-per-node=1", "cpus-per-task=3", "mem=32GB", "time=240"),
        *("signal=USR2@120", "requeue", "array=0-1%2", "job-name=seven_exp", "open-mode=append"),
    }
    assert "--cpus-per-task=3" in (tmp_path / "0.log").read_text()


def test_without_slurm_there_is_one_line(tmp_path):
    done = train(tmp_path, "-m", "hydra/launcher=submitit_slurm", "seed=0,1", PATH=str(tmp_path))
    assert done.returncode == 2, done.stderr
    assert "hydra/launcher=submitit_local" in done.stderr
    assert done.stderr.count("\n") == 1


def process_of(folder: Path) -> int:
    """The process that does the run of this folder: it holds the log open."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if link.readlink() == folder / "train.log":
                return int(link.parts[2])
    raise AssertionError(f"nobody is at {folder}")


@pytest.mark.skipif(not Path("/proc/self/cmdline").is_file(), reason="needs /proc")
@pytest.mark.usefixtures("_threads_counted")
def test_submitit_queues_a_run_again_that_is_warned(tmp_path):
    sweep = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "train.py"), "-m", "hydra/launcher=submitit_local"),
            *("hydra.launcher.cpus_per_task=2", *SMALL, "plugins=[threads.py]", "seed=0,1"),
            *("trainer.max_steps=2000", "trainer.eval_interval=2000", "model.pretrain.epochs=1"),
        ],
        cwd=tmp_path,
        env={**os.environ, "SEVEN_EXP_CACHE": str(tmp_path / "cache")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (begun := [p for p in tmp_path.rglob("metrics.jsonl") if p.stat().st_size]):
        assert sweep.poll() is None
        time.sleep(0.02)
    folder = begun[0].parent
    os.kill(process_of(folder), signal.SIGUSR2)
    _, said = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, said
    assert_whole(tmp_path, 2)
    assert {record["steps"] for record in records(tmp_path)} == {2000}
    logs = [path.read_text() for path in tmp_path.rglob(".submitit/*/*_log.err")]
    assert sum("Requeued job" in log for log in logs) == 1
    assert "continuing after step" in (folder / "train.log").read_text()


WITHOUT = """
import runpy, sys
for name in {hidden!r}:
    sys.modules[name] = None
sys.argv = ["train.py", *{arguments!r}]
runpy.run_path({program!r}, run_name="__main__")
"""
JOBLIB = "hydra_plugins.hydra_joblib_launcher"
SUBMITIT = "hydra_plugins.hydra_submitit_launcher"
MISSING = {
    "hydra/launcher=joblib": ([JOBLIB, f"{JOBLIB}.joblib_launcher"], "--extra joblib"),
    "hydra/launcher=submitit_slurm": ([SUBMITIT, f"{SUBMITIT}.submitit_launcher"], "--extra slurm"),
    "hydra/launcher=ray": (["ray"], "--extra ray"),
    "hydra/sweeper=optuna": (["optuna"], "--extra optuna"),
}


@pytest.mark.parametrize("choice", MISSING)
def test_an_engine_that_is_not_installed(tmp_path, choice):
    hidden, hint = MISSING[choice]
    code = WITHOUT.format(
        hidden=hidden, arguments=["-m", choice, "seed=0,1"], program=str(ROOT / "train.py")
    )
    done = subprocess.run([python(), "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert hint in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_process_that_died_is_one_line(capsys):
    ray = pytest.importorskip("ray")
    for error in [
        TerminatedWorkerError("A worker process managed by the executor was killed\n\nlong"),
        UncompletedJobError("Job 7 (task: 0) has not produced any output\nlong"),
        ray.exceptions.WorkerCrashedError(),
    ]:
        with pytest.raises(SystemExit) as stopped:
            faults.stop_if_explained(error)
        assert stopped.value.code == 1
        said = capsys.readouterr().err
        assert said.startswith("error: a job's process died (")
        assert "same command continues" in said
        assert said.count("\n") == 1
