"""Trackers beside W&B: TensorBoard, one's own, several at once, and runs logged afterwards."""

import json
import shutil

import pytest
import yaml
from test_conf import composed
from test_docs import ROOT, blocks

from seven_exp.cli.sync import main as sync
from seven_exp.cli.sync import offline_runs
from seven_exp.cli.upload import main as upload
from seven_exp.config import ConfigError
from seven_exp.runs.check import check
from seven_exp.runs.identity import run_hash
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import TRACKERS, Histogram, build_tracker, described

SMALL = (
    *("model=mlp", "model.widths=[8]", "trainer.max_steps=4", "trainer.log_interval=2"),
    *("trainer.eval_interval=4", "threads=1", "trainer.save_model=false"),
)


class Lines:
    """A tracker of one's own: keeps what it is told."""

    def __init__(self, config):
        self.config, self.rows = config, []

    def start(self, run):
        self.run = run

    def log(self, step, values):
        numbers = {k: v for k, v in values.items() if not isinstance(v, Histogram)}
        self.rows.append({"step": step, **numbers})

    def finish(self, record):
        self.record = record


@pytest.fixture
def lines(monkeypatch):
    """Name of a registered tracker, and the trackers that were made under it."""
    made = []

    def make(config):
        made.append(Lines(config))
        return made[-1]

    monkeypatch.setitem(TRACKERS._entries, "lines", make)
    return made


def curves(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_and_a_tracker_of_ones_own_at_once(tmp_path, lines):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = composed(*SMALL, "tracker=tensorboard", "tracker.also=[tensorboard,lines]")
    check(config)
    lines.clear()
    run_experiment(config, tmp_path, build_tracker(config.tracker))
    logged = curves(tmp_path)
    (own,) = lines
    assert own.rows == logged
    assert own.record["status"] == "finished"
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    for key in ("loss", "test/accuracy", "sparsity"):
        expected = [(row["step"], row[key]) for row in logged if key in row]
        found = [(event.step, event.value) for event in board.Scalars(key)]
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-6)
    accuracy = json.loads((tmp_path / "results.json").read_text())["metrics"]["accuracy"]
    (final,) = board.Scalars("final/accuracy")
    assert (final.step, final.value) == (4, pytest.approx(accuracy))


def test_the_tracker_that_is_shown_works(tmp_path, capsys):
    (block,) = blocks(ROOT / "docs" / "howto" / "tracking.md", "python")
    (tmp_path / "printed.py").write_text(block)
    config = composed(
        *SMALL, "tracker=none", "tracker.also=[printed]", f"plugins=[{tmp_path / 'printed.py'}]"
    )
    check(config)
    record = run_experiment(config, tmp_path, build_tracker(config.tracker))
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "seven_dyn-0.7-seed0 mlp-digits-seven_dyn 0.7"
    assert printed[-1] == str(record["metrics"])
    assert len(printed) == 2 + len(curves(tmp_path))


def test_trackers_do_not_change_a_runs_hash(lines):
    config = composed("tracker.also=[lines]")
    check(config)
    assert run_hash(config) == run_hash(composed())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tensorbord", "unknown tracker 'tensorbord': did you mean 'tensorboard'?"),
        ("clearml", "tracker.also holds 'clearml': not installed: pip install clearml"),
    ],
)
def test_a_tracker_that_is_missing_is_named_before_the_run(name, words):
    with pytest.raises(ConfigError) as error:
        check(composed(f"tracker.also=[{name}]"))
    assert words in str(error.value)


def test_a_finished_run_is_logged_as_it_was(finished_run, tmp_path, lines, capsys):
    folder = shutil.copytree(finished_run("unstructured"), tmp_path / "sweep" / "run")
    # a copy of the same run counts once
    shutil.copytree(folder, tmp_path / "sweep" / "copy")
    assert upload([str(tmp_path / "sweep"), "--to", "lines", "--project", "mine"]) == 0
    assert "1 of 1 runs logged to lines" in capsys.readouterr().out
    (own,) = lines
    record = json.loads((folder / "results.json").read_text())
    assert own.rows == curves(folder)
    assert own.record == record
    assert own.config.project == "mine"
    assert (own.run.id, own.run.config) == (record["run_hash"], record["config"])
    assert own.run.name == "magnitude_dyn-0.5-seed0"
    assert own.run.group == "vit_tiny-digits-magnitude_dyn"


def started(folder, sweeper="a.BasicSweeper", shared=(), own=(), **values):
    """What trackers are told of a run that was started in a sweep."""
    hydra = {"mode": "MULTIRUN", "sweeper": {"_target_": sweeper}}
    (folder / "0" / ".hydra").mkdir(parents=True)
    for path, overrides in (
        (folder / "multirun.yaml", [*shared, "pruner=rigl,set", "optimizer.lr=0.1,0.2"]),
        (folder / "0" / ".hydra" / "hydra.yaml", [*shared, *own]),
    ):
        path.write_text(yaml.safe_dump({"hydra": {**hydra, "overrides": {"task": overrides}}}))
    record = {
        "pruner": "rigl", "model": "mlp", "dataset": "digits", "sparsity_target": 0.5, "seed": 3,
        "config": {"trainer": {"max_steps": 5, "epochs": None}}, **values,
    }  # fmt: skip
    return described(record, folder / "0", lower_is_better=False, id="x")


def test_names_and_groups_tell_runs_and_sweeps_apart(tmp_path):
    own = ("pruner=rigl", "optimizer.lr=0.2")
    run = started(tmp_path / "day" / "hour", shared=["trainer.max_steps=5"], own=own)
    assert run.name == "rigl-0.5-seed3 optimizer.lr=0.2"
    assert (run.group, run.job) == ("mlp-digits day/hour", "train")
    tuned = started(tmp_path / "day" / "later", sweeper="b.Optuna", own=own)
    assert (tuned.group, tuned.job) == ("mlp-digits day/later", "tune")
    pruned = started(tmp_path / "a" / "b", config={"trainer": {"max_steps": 0}})
    assert (pruned.name, pruned.job) == ("rigl-0.5-seed3", "prune")


def test_settings_are_what_the_run_reads_and_no_nulls(tmp_path):
    config = {
        "device": "auto", "seed": 3, "pruner": {"name": "rigl", "scope": None, "rounds": None},
        "schedule": {"name": "cubic", "end_step": 0.7}, "calibration": {"name": "c4", "size": 1},
        "trainer": {"max_steps": None, "epochs": 2},
    }  # fmt: skip
    effective = {"device": "cpu", "pruner.scope": "erk", "trainer.max_steps": 40}
    unread = ["calibration", "pruner.rounds", "schedule.name"]
    run = started(tmp_path / "a", config=config, effective=effective, unread=unread)
    assert run.settings == {
        "device": "cpu", "seed": 3, "pruner": "rigl", "pruner.scope": "erk",
        "schedule.end_step": 0.7, "trainer.max_steps": 40, "trainer.epochs": 2,
    }  # fmt: skip


def test_a_tracker_that_fails_is_an_exit_code(finished_run, monkeypatch, capsys, lines):
    monkeypatch.setattr(Lines, "log", lambda *_: 1 / 0)
    assert upload([str(finished_run("unstructured")), "--to", "lines"]) == 1
    assert "0 of 1 runs logged" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "arguments", "words"),
    [
        (upload, ["nowhere"], "no folder 'nowhere'"),
        (upload, ["empty"], "no run below 'empty'"),
        (upload, ["run", "--to", "tensorbord"], "did you mean 'tensorboard'"),
        (upload, ["run"], "not logged in to W&B: wandb login"),
        (sync, ["nowhere"], "no folder 'nowhere'"),
        (sync, ["offline"], "not logged in to W&B: wandb login"),
    ],
)
def test_mistakes_are_one_line(
    finished_run, tmp_path, monkeypatch, capsys, command, arguments, words
):
    shutil.copytree(finished_run("unstructured"), tmp_path / "run")
    (tmp_path / "empty").mkdir()
    offline = tmp_path / "offline" / "run" / "wandb" / "offline-run-1-abc"
    offline.mkdir(parents=True)
    (offline / "run-abc.wandb").touch()
    monkeypatch.chdir(tmp_path)
    assert command(arguments) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.count("\n") == 1


def test_runs_that_are_uploaded_are_not_uploaded_again(tmp_path, capsys):
    for name, done in (("a", True), ("b", False)):
        folder = tmp_path / name / "wandb" / f"offline-run-1-{name}"
        folder.mkdir(parents=True)
        (folder / f"run-{name}.wandb").touch()
        if done:
            (folder / f"run-{name}.wandb.synced").touch()
    assert offline_runs([tmp_path, tmp_path / "b"]) == [tmp_path / "b/wandb/offline-run-1-b"]
    assert sync([str(tmp_path / "a")]) == 0
    assert "no offline W&B run" in capsys.readouterr().out
