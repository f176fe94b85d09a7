"""Trackers: what is recorded, on disk and by W&B, and that no tracker's failure stops a run."""

import json
import logging
import shlex
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import wandb
from preloaded import python
from test_conf import composed
from wandb.proto import wandb_internal_pb2

from seven_exp.config import Tracker
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import (
    Guarded,
    Histogram,
    LocalRecord,
    RunInfo,
    Trackers,
    WandbTracker,
    build_tracker,
    write_json,
)
from seven_exp.tracking.interface import command_line_keys
from seven_exp.tracking.weights_and_biases import leave

ROOT = Path(__file__).parent.parent
PLACE = Tracker(project="project")
RECORD = {
    "status": "finished", "run_hash": "abc", "metrics": {"accuracy": 0.75, "loss": 0.5},
    "validation": {"accuracy": 0.6}, "best": {"accuracy": 0.8, "step": 20},
    "sparsity": 0.7, "params_nonzero": 30,
    "flops_dense": 200, "flops_sparse": 60, "seconds": 1.5, "seconds_pruning": 0.1,
    "model": "mlp", "dataset": "digits", "config": {}, "sha256": {"start": "5" * 64},
}  # fmt: skip
CONFIG = {
    "sparsity": 0.7, "seed": 1, "pruner": {"name": "seven_dyn", "alpha_1": 0.8},
    "model": {"name": "mlp", "pretrain": {"epochs": 0}}, "schedule": {"name": "cubic"},
}  # fmt: skip


def info(folder: Path, name="a run") -> RunInfo:
    return RunInfo(name, "a group", ["seven_dyn", "mine"], CONFIG, folder)


def records_of(path: Path) -> list[wandb_internal_pb2.Record]:
    """W&B's own file: LevelDB's log format (blocks of 32 KiB, 7 bytes before each fragment)."""
    data, place, partial, found = path.read_bytes(), 7, b"", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        partial += data[place + 7 : place + 7 + size]
        if place + 7 + size > len(data):
            break
        place += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            found.append(wandb_internal_pb2.Record.FromString(partial))
            partial = b""
    return found


def offline_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    # W&B's own process writes the file, and may still be at it when the run is finished.
    for _ in range(200):
        records = records_of(path)
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        time.sleep(0.1)
    raise AssertionError(f"{path} was never finished")


def items(updates) -> dict:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def test_local_record(tmp_path):
    tracker = LocalRecord()
    tracker.start(info(tmp_path))
    tracker.log(10, {"loss": 0.5, "lr": 1e-3})
    tracker.log(20, {"loss": float("nan"), "lr": float("inf")})
    tracker.finish(RECORD)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 10, "loss": 0.5, "lr": 0.001},
        {"step": 20, "loss": None, "lr": None},
    ]
    assert json.loads((tmp_path / "results.json").read_text()) == RECORD


def test_a_record_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_json(path, {"old": 1})

    def crash(self, target):
        raise OSError("the machine went down")

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="went down"):
        write_json(path, {"new": list(range(1000))})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_wandb_offline_holds_config_history_and_summary(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tmp_path = tmp_path / "my runs"
    tmp_path.mkdir()
    tracker = WandbTracker("online", PLACE)
    tracker.start(info(tmp_path))
    tracker.log(10, {"loss": 0.5, "validation/accuracy": 0.6, "layer_sparsity/fc": 0.1})
    tracker.log(20, {"loss": 0.4, "validation/accuracy": 0.9, "layer_sparsity/fc": 0.2})
    tracker.finish(RECORD)

    # without a login: offline, with one line that says how to sync
    said = [r.message for r in caplog.records if r.name.startswith("seven_exp")]
    assert len(said) == 1

    typed = shlex.split(said[0].partition("wandb login && ")[2])
    assert typed[:2] == ["wandb", "sync"]
    assert Path(typed[2]).is_dir()  # whatever is in its name

    records = offline_records(tmp_path)
    (run,) = [r.run for r in records if r.WhichOneof("record_type") == "run"][:1]
    assert (run.display_name, run.run_group, list(run.tags)) == (
        *("a run", "a group"),
        ["seven_dyn", "mine"],
    )
    config = items(run.config.update)
    assert {k: v for k, v in config.items() if k != "_wandb"} == {
        "sparsity": 0.7, "seed": 1, "pruner": "seven_dyn", "pruner.alpha_1": 0.8,
        "model": "mlp", "model.pretrain.epochs": 0, "schedule": "cubic",
    }  # fmt: skip
    history = [items(r.history.item) for r in records if r.WhichOneof("record_type") == "history"]
    assert [(row["step"], row["loss"], row["layer_sparsity/fc"]) for row in history] == [
        *((10, 0.5, 0.1), (20, 0.4, 0.2)),
    ]
    metrics = [r.metric for r in records if r.WhichOneof("record_type") == "metric"]
    by_name = {m.name or m.glob_name: m for m in metrics}
    assert by_name["validation/accuracy"].summary.max
    assert by_name["validation/loss"].summary.min
    assert by_name["*"].step_metric == "step"
    summary = {}
    for r in records:
        if r.WhichOneof("record_type") == "summary":
            summary |= items(r.summary.update)
    assert summary["final/accuracy"] == 0.75
    assert summary["best/accuracy"] == 0.8
    assert summary["final/kept_weights"] == 30
    assert [r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit"] == [0]


def test_wandb_is_given_histograms(tmp_path):
    tracker = WandbTracker("offline", PLACE)
    tracker.start(info(tmp_path))
    tracker.log(10, {"loss": 0.5, "analysis/spread": Histogram([3, 0, 4], [0.0, 0.5, 1.0, 1.5])})
    tracker.finish(RECORD)
    (row,) = [
        items(r.history.item)
        for r in offline_records(tmp_path)
        if r.WhichOneof("record_type") == "history"
    ]
    spread = {key: value for key, value in row.items() if key.startswith("analysis/")}
    assert spread == {
        "analysis/spread/_type": "histogram",
        "analysis/spread/values": [3, 0, 4],
        "analysis/spread/bins": [0.0, 0.5, 1.0, 1.5],
    }


@pytest.mark.parametrize(
    ("artifacts", "names"),
    [
        ("none", None),
        ("masks", {"results.json", "masks.safetensors"}),
        ("model", {"results.json", "masks.safetensors", "checkpoints/final.safetensors"}),
    ],
)
def test_an_offline_run_names_its_files_and_copies_none(tmp_path, artifacts, names):
    (tmp_path / "checkpoints").mkdir()
    saved = ("masks.safetensors", "checkpoints/final.safetensors")
    for name in ("results.json", *saved, "checkpoints/best.safetensors"):
        (tmp_path / name).write_text(name)
    tracker = WandbTracker("offline", Tracker(artifacts=artifacts))
    tracker.start(info(tmp_path))
    sums = {"start": "5" * 64, **dict.fromkeys(saved, "0" * 64)}
    tracker.finish({**RECORD, "run_hash": "abc", "sha256": sums})
    logged = {
        record.artifact.name: record.artifact
        for record in offline_records(tmp_path)
        if record.WhichOneof("record_type") == "artifact"
    }
    if names is None:
        assert logged == {}
        return
    assert logged.keys() == {"dense-555555555555", "run-abc"}
    dense, own = logged["dense-555555555555"], logged["run-abc"]
    assert (dense.type, dense.use_after_commit, len(dense.manifest.contents)) == (
        *("dense-start", True),
        0,
    )
    places = {entry.path: entry.local_path for entry in own.manifest.contents}
    assert places == {name: str(tmp_path / name) for name in names}


def test_a_failed_run_is_failed_at_wandb_too(tmp_path):
    tracker = WandbTracker("offline", PLACE)
    tracker.start(info(tmp_path))
    tracker.finish({**RECORD, "status": "failed", "flops_dense": None})
    exits = [r.exit for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "exit"]
    assert [e.exit_code for e in exits] == [1]


def test_jobs_of_one_process_are_runs_of_their_own(tmp_path):
    ids = set()
    for name in ("one", "two"):
        tracker = WandbTracker("offline", PLACE)
        tracker.start(info(tmp_path / name, name))
        tracker.log(1, {"loss": 1.0})
        tracker.finish(RECORD)
        records = offline_records(tmp_path / name)
        (run, *_) = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        assert run.display_name == name
        ids.add(run.run_id)
    assert len(ids) == 2


class Failing:
    def __init__(self, where: str) -> None:
        self.where, self.calls = where, []

    def __getattr__(self, name):
        def call(*_):
            self.calls.append(name)
            if name == self.where:
                raise ConnectionError("the server\nis gone")

        return call


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_failing_tracker_stops_nothing(tmp_path, where, caplog):
    config = composed(
        "model=mlp", "model.widths=[8]", "trainer.max_steps=20", f"cache_dir={tmp_path}"
    )
    failing = Failing(where)
    tracker = Trackers([Guarded(failing), LocalRecord()])
    record = run_experiment(config, tmp_path / "run", tracker)
    assert record["status"] == "finished"
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "finished"
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert warnings == [
        "Failing failed (the server is gone): the run continues, its record on disk is complete"
    ]
    # once it has failed, it is left alone
    assert failing.calls.count(where) == 1
    assert failing.calls[-1] == where


def test_an_unreachable_server_means_offline(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("seven_exp.tracking.weights_and_biases.logged_in", lambda: True)
    real = wandb.init

    def init(*, mode, **arguments):
        if mode == "online":
            raise wandb.errors.CommError("no route to host")
        return real(mode=mode, **arguments)

    monkeypatch.setattr(wandb, "init", init)
    tracker = WandbTracker("online", PLACE)
    tracker.start(info(tmp_path))
    tracker.finish(RECORD)
    assert "no route to host" in caplog.text
    assert offline_records(tmp_path)


@pytest.mark.slow
def test_who_is_logged_in(tmp_path, monkeypatch):
    # each in a process of its own: wandb reads its environment once
    code = "from seven_exp.tracking.weights_and_biases import logged_in; print(logged_in())"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {'a' * 40}\n")
    netrc.chmod(0o600)
    cases = [({}, "False"), ({"WANDB_API_KEY": "a" * 40}, "True"), ({"NETRC": str(netrc)}, "True")]
    for environment, expected in cases:
        with monkeypatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            done = subprocess.run(
                [python(), "-c", code], capture_output=True, text=True, check=True
            )
        assert done.stdout.strip() == expected


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "variable"), [("disabled", "online"), ("online", "disabled")])
def test_disabled_never_imports_wandb(mode, variable, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", variable)
    code = (
        "import sys; from seven_exp.tracking import build_tracker; "
        "from seven_exp.config import Tracker; "
        "c = Tracker(mode=sys.argv[1], project='p'); "
        "t = build_tracker(c); "
        "print([type(x).__name__ for x in t.trackers], 'wandb' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, mode], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['LocalRecord'] False"


def test_every_key_of_the_group_reaches_wandb(tmp_path):
    config = composed(
        "tracker.mode=offline", "tracker.project=other", "tracker.entity=team",
        "tracker.group=mine", "tracker.tags=[x]", "model=mlp", "model.widths=[8]",
        "trainer.max_steps=2", f"cache_dir={tmp_path}",
    )  # fmt: skip
    run_experiment(config, tmp_path / "run", build_tracker(config.tracker))
    (run, *_) = [
        r.run for r in offline_records(tmp_path / "run") if r.WhichOneof("record_type") == "run"
    ]
    assert (run.project, run.entity, run.run_group) == ("other", "team", "mine")
    assert list(run.tags) == ["seven_dyn", "x"]
    history = [
        items(r.history.item)
        for r in offline_records(tmp_path / "run")
        if r.WhichOneof("record_type") == "history"
    ]
    assert set(history[-1]) >= {
        *("step", "loss", "accuracy", "sparsity", "lr", "test/accuracy", "test/loss"),
        "layer_sparsity/hidden0.weight",
    }


VARIABLES = {
    "WANDB_MODE": "offline", "WANDB_PROJECT": "theirs", "WANDB_ENTITY": "us",
    "WANDB_RUN_GROUP": "their group", "WANDB_TAGS": "a,b", "WANDB_NAME": "their name",
}  # fmt: skip


def opened(tmp_path: Path, *overrides: str) -> wandb_internal_pb2.RunRecord:
    """What W&B receives when a run starts; its files are below ``tmp_path``."""
    leave(60)  # it reads its environment once
    tracker = build_tracker(composed(*overrides).tracker)
    tracker.start(replace(info(tmp_path / "run"), id="own"))
    tracker.finish(RECORD)
    leave(60)
    (run, *_) = [r.run for r in offline_records(tmp_path) if r.WhichOneof("record_type") == "run"]
    return run


def test_where_the_config_is_null_the_variables_of_wandb_decide(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = opened(tmp_path)
    assert (run.project, run.entity, run.run_group) == ("theirs", "us", "their group")
    assert (run.display_name, list(run.tags)) == ("their name", ["seven_dyn", "mine", "a", "b"])


def test_the_config_wins_over_the_variables_of_wandb(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    for name, value in {**VARIABLES, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run = opened(
        tmp_path, "tracker.mode=offline", "tracker.project=p", "tracker.entity=e",
        "tracker.group=g", "tracker.tags=[]",
    )  # fmt: skip
    assert (run.project, run.entity, run.run_group) == ("p", "e", "g")
    assert list(run.tags) == ["seven_dyn", "mine"]


@pytest.mark.slow
def test_an_inherited_id_is_one_run_s_only(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "inherited")
    found = []
    for place in (tmp_path / "one", tmp_path / "two"):
        (place / "run").mkdir(parents=True)
        monkeypatch.setenv("WANDB_DIR", str(place))
        found.append(opened(place, "tracker.mode=offline").run_id)
    assert found == ["inherited", "own"]


def test_keys_are_those_of_the_command_line():
    nested = {"a": {"name": "x", "b": {"c": 1}}, "d": [1]}
    assert command_line_keys(nested) == {"a": "x", "a.b.c": 1, "d": [1]}
