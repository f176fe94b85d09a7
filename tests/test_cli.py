"""The command line as users run it: in a separate process, from another folder."""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import python

ROOT = Path(__file__).parent.parent
SMOKE = [
    *("tracker.mode=disabled", "trainer.max_steps=20", "model.depth=1"),
    *("trainer.log_interval=5", "trainer.eval_interval=10"),
]


def train(tmp_path, *arguments, starting=None, **environment):
    """Its output and exit code; ``starting`` is another Python, such as ``sys.executable``."""
    return subprocess.run(
        [starting or python(), str(ROOT / "train.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "SEVEN_EXP_CACHE": str(tmp_path / "cache"), **environment},
        timeout=300,
    )


def record_of(tmp_path) -> dict:
    (path,) = tmp_path.rglob("results.json")
    return json.loads(path.read_text())


@pytest.mark.slow
def test_a_run_leaves_its_record(tmp_path):
    given = ["pruner=seven_dyn", "sparsity=0.7", "pruner.finetune_steps=0.2", *SMOKE]
    done = train(tmp_path, *given, starting=sys.executable)
    assert done.returncode == 0, done.stderr
    assert "this run of seven_dyn never reads pruner.finetune_steps\n" in done.stderr
    record = record_of(tmp_path)
    assert record["status"] == "finished"
    prunable = record["params_prunable"]
    assert record["params_nonzero"] == int(0.3 * prunable + 1e-6)
    assert sum(layer["nonzero"] for layer in record["layers"]) == record["params_nonzero"]
    assert record["sparsity"] == pytest.approx(0.7, abs=1 / prunable)
    for words in ("seven_dyn", "70.00%", f"{record['params_nonzero']:,}", "results.json"):
        assert words in done.stdout
    assert "prunable:" in done.stderr
    folder = next(tmp_path.rglob("results.json")).parent
    assert {p.name for p in folder.iterdir()} >= {
        *(".hydra", "results.json", "metrics.jsonl", "masks.safetensors"),
        *("checkpoints", "train.log"),
    }
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 10, 15, 20]
    assert lines[-1]["test/accuracy"] == record["metrics"]["accuracy"]
    assert lines[-1]["sparsity"] == record["sparsity"]


@pytest.mark.slow
def test_a_sweep_is_many_runs_and_a_comparison(tmp_path):
    done = train(
        tmp_path,
        "-m",
        "pruner=seven_pre,magnitude",
        "sparsity=0.5",
        "seed=0,1",
        *SMOKE,
        "pruner.rounds=3",
    )
    assert done.returncode == 0, done.stderr
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("results.json")]
    assert sorted((r["pruner"], r["seed"]) for r in records) == [
        *(("magnitude", 0), ("magnitude", 1)),
        *(("seven_pre", 0), ("seven_pre", 1)),
    ]
    assert len({r["run_hash"] for r in records}) == 4
    (sheet,) = tmp_path.rglob("comparison.csv")
    assert sheet.read_text().count("seven_pre") >= 1


def test_help_is_useful_and_quick(tmp_path):
    # of the processor: this machine may have more to do
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = train(tmp_path, "--help", starting=sys.executable)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4
    assert done.returncode == 0
    for words in ("pruner: ", "seven_dyn", "sparsity", "trainer.max_steps", "tracker.mode"):
        assert words in done.stdout


MISTAKES = {
    "pruner=seven_dym": "did you mean 'seven_dyn'",
    "model=vit_tny": "did you mean 'vit_tiny'",
    "dataset=digit": "did you mean 'digits'",
    "schedule=cubik": "did you mean 'cubic'",
    "sparsity=-0.1": "sparsity is -0.1",
    "sparsity=1.0": "sparsity is 1.0",
    "sparsity=1.3": "sparsity is 1.3",
    "sparsity=abc": "sparsity is 'abc'",
    "sparsty=0.7": "did you mean 'sparsity'",
    "+sparsty=0.7": "did you mean 'sparsity'",
    "trainer.max_steps=-5": "trainer.max_steps is -5",
    "trainer.max_step=5": "did you mean 'max_steps'",
    "schedule.end_step=100000": "schedule.end_step is 100000",
    "schedule.end_step=1.5": "schedule.end_step is 1.5: give an integer for steps, or",
    "pruner.finetune_steps=2.5": "a decimal up to 1 for a fraction of the training",
    "schedule.interval=1.5": "a decimal up to 1 for a fraction of the training",
    "schedule.end_step=0.05": "never reach its target",
    "schedule.begin_step=-3": "schedule.begin_step is -3",
    "schedule.interval=5000": "interval is 5000",
    "+pruner.alpha_3=0.5": "did you mean 'alpha_",
    "pruner.alpha_1=1.5": "error: pruner.alpha_1 is 1.5",
    "pruner.alpha_1=much": "pruner.alpha_1 is 'much'",
    "pruner.scope=globl": "did you mean 'global'",
    "pruner.exclude=[encodr]": "matches no parameter",
    "optimizer=adamm": "did you mean 'adam'",
    "optimizer.lr=0": "optimizer.lr is 0",
    "tracker.mode=of": "choose from disabled, offline, online",
    "device=gpu": "device is 'gpu'",
    "plugins=[nowhere.py]": "nowhere.py",
    "trainer.max_steps=many": "trainer.max_steps is 'many'",
    "schedule.begin_step=soon": "a fraction of the training",
    "model.widht=3": "did you mean 'width'",
    "model.depth=deep": "model.depth is 'deep'",
    "pruner.rounds=3": "pruner.rounds is 3",
    "model.checkpoint=nowhere.pt": "model.checkpoint is 'nowhere.pt'",
    "pruner.pattern=3:2": "unknown pattern '3:2'",
    "pruner.include=[a": "no viable alternative",
}


INTERRUPTS = """
import sys

class Key:
    def find_spec(self, name, *_):
        if name == "{imported}":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Key())
"""


EVERYDAY = ["pruner=seven_dym", "sparsity=-0.1", "schedule.end_step=100000", "pruner.pattern=3:2"]
OTHERS = [pytest.param(m, marks=pytest.mark.slow) for m in MISTAKES if m not in EVERYDAY]


@pytest.mark.parametrize("argument", [*EVERYDAY, *OTHERS])
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path, argument):
    done = train(tmp_path, argument)
    assert done.returncode == 2, done.stderr
    assert MISTAKES[argument] in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob(".hydra"))


@pytest.mark.slow
def test_a_file_of_something_else_is_no_checkpoint(tmp_path):
    done = train(tmp_path, f"model.checkpoint={ROOT / 'README.md'}")
    assert done.returncode == 2
    assert "README.md': it is no checkpoint of weights" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob(".hydra"))


def test_a_mistake_removes_nothing_but_the_folder_made_for_it(tmp_path):
    kept = tmp_path / "run" / "notes.txt"
    kept.parent.mkdir()
    kept.write_text("")
    done = train(tmp_path, "seed=-1", "hydra.run.dir=run")
    assert done.returncode == 2
    assert kept.exists()


@pytest.mark.parametrize("flags", [["--cfg", "hydra", "-m"], ["--resolve"]])
def test_flags_that_do_not_go_together(tmp_path, flags):
    done = train(tmp_path, *flags)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["seven_exp.cli.train", "torch"])
def test_interrupted_while_it_starts(tmp_path, imported):
    # As a key press would: wherever Python is when that module begins to be imported.
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTS.format(imported=imported))
    done = train(tmp_path, *SMOKE, PYTHONPATH=f"{tmp_path}:{ROOT}", starting=sys.executable)
    assert done.returncode == 1
    assert done.stderr.startswith("error: interrupted")
    assert done.stderr.count("\n") == 1


def test_a_missing_data_folder(tmp_path):
    done = train(
        tmp_path, "dataset=cifar10", "dataset.download=false", "dataset.data_dir=/nowhere/at/all"
    )
    assert done.returncode == 2
    assert "dataset.data_dir" in done.stderr
    assert "/nowhere/at/all" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_output_folder_that_can_not_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    done = train(tmp_path, "output_root=file/runs")
    assert done.returncode == 2
    assert "output_root" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("written", ["~/runs", "'~/runs'"])
def test_a_home_directory_is_expanded(tmp_path, written):
    home = tmp_path / "home"
    work = tmp_path / "work"
    work.mkdir()
    done = train(work, f"output_root={written}", *SMOKE, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert list(home.glob("runs/*/*/results.json"))
    assert list(home.glob("runs/.runs/*.txt"))
    assert not list(work.iterdir())


@pytest.mark.slow
def test_a_sweep_lies_below_the_home_directory_too(tmp_path):
    home = tmp_path / "home"
    done = train(
        tmp_path, "-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "output_root=~/runs",
        "seed=0,1", *SMOKE, HOME=str(home),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(list(home.glob("runs/multirun/*/*/*/results.json"))) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"home"}


@pytest.mark.slow
def test_a_diverging_run_is_recorded_as_failed(tmp_path):
    done = train(tmp_path, "optimizer=sgd", "optimizer.lr=1e30", *SMOKE)
    assert done.returncode == 1
    assert "the loss became" in done.stderr.splitlines()[-1]
    record = record_of(tmp_path)
    assert record["status"] == "failed"
    assert "the loss became" in record["error"]


@pytest.mark.slow
def test_a_criterion_of_ones_own(tmp_path):
    example = ROOT / "examples" / "own_criterion"
    done = train(
        tmp_path,
        "--config-dir",
        str(example / "conf"),
        f"plugins=[{example / 'spread.py'}]",
        "pruner=spread_dyn",
        "pruner.decay=0.5",
        *SMOKE,
    )
    assert done.returncode == 0, done.stderr
    record = record_of(tmp_path)
    assert record["criterion"] == "spread"
    assert record["params_nonzero"] == int(0.3 * record["params_prunable"] + 1e-6)


@pytest.mark.slow
def test_one_job_of_a_sweep_does_not_take_the_others_with_it(tmp_path):
    done = train(tmp_path, "-m", "sparsity=1.3,0.5", *SMOKE)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert "sparsity is 1.3" in lines[0]
    assert lines[0].endswith("(jobs that are valid will run)")
    assert "sparsity is 1.3" in lines[-1]
    assert record_of(tmp_path)["sparsity_target"] == 0.5


@pytest.mark.slow
def test_a_sweep_with_a_misspelt_name_promises_nothing_and_runs_nothing(tmp_path):
    done = train(tmp_path, "-m", "pruner=seven_dyn,magnitud", "sparsity=0.7,1.7", *SMOKE)
    assert done.returncode == 2
    first, last = done.stderr.splitlines()
    assert first.startswith("error: sparsity is 1.7: choose")
    assert "will run" not in first
    assert last == "error: unknown pruner 'magnitud': did you mean 'magnitude'?"
    assert not list(tmp_path.rglob("results.json"))
