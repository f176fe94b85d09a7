"""A real W&B client against a local server: what arrives, and what a fault causes."""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Event

import pytest
import wandb
import yaml
from preloaded import python
from test_cli import ROOT, train
from test_tracking import CONFIG, RECORD, info, offline_records
from wandb_server import ENTITY

from seven_exp.config import Tracker
from seven_exp.tracking import Guarded, WandbTracker, weights_and_biases

pytestmark = pytest.mark.slow

SMALL = [
    *("model=mlp", "model.widths=[8]", "trainer.max_steps=20"),
    *("trainer.log_interval=5", "trainer.eval_interval=10"),
]


def records(tmp_path: Path) -> list[dict]:
    found = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    return sorted(found, key=lambda record: record["seed"])


def test_a_run_arrives_as_it_was_recorded(tmp_path, server):
    done = train(
        tmp_path, *SMALL, "tracker.tags=[mine]", "tracker.notes=a try", "tracker.artifacts=model",
        **server.environment, WANDB_SAVE_CODE="true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1  # the prunable layers; nothing of W&B's
    (run,) = server.runs.values()
    (record,) = records(tmp_path)
    assert (run.complete, run.exit_code) == (True, 0)
    assert run.about["displayName"] == "seven_dyn-0.7-seed0"
    assert (run.about["groupName"], run.about["jobType"]) == (*("mlp-digits-seven_dyn", "train"),)
    assert (run.about["tags"], run.about["notes"]) == (["seven_dyn", "mine"], "a try")
    assert run.config["pruner"] == "seven_dyn"
    assert run.config["model.widths"] == [8]
    assert run.config["optimizer.lr"] == record["config"]["optimizer"]["lr"]

    (path,) = tmp_path.rglob("metrics.jsonl")
    recorded = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(recorded) == 4
    assert None not in run.config.values()
    effective = {
        # the config's null, 0.7 of 20 steps, and what seven_dyn stands for
        "dataset.validation": 0.1, "trainer.max_steps": 20, "plan.begin": 2, "plan.end": 14,
        "pruner.when": "during", "pruner.scope": "global", "device": "cpu",
    }  # fmt: skip
    assert {key: run.config[key] for key in effective} == effective
    # never read by a pruner that acts during training
    assert "pruner.finetune_steps" not in run.config
    received = [{k: v for k, v in row.items() if not k.startswith("_")} for row in run.history]
    assert received == recorded

    assert run.summary["status"] == "finished"
    assert run.summary["run_hash"] == record["run_hash"]
    assert run.summary["final/accuracy"] == record["metrics"]["accuracy"]
    assert run.summary["final/kept_weights"] == record["params_nonzero"]
    best = max(row["validation/accuracy"] for row in recorded if "validation/accuracy" in row)
    assert run.summary["validation/accuracy"]["max"] == best
    final = run.summary["final/validation/accuracy"]
    assert final == record["validation"]["accuracy"] <= best

    assert run.files.keys() >= {"config.yaml", "wandb-metadata.json", "wandb-summary.json"}
    assert yaml.safe_load(run.files["config.yaml"])["sparsity"]["value"] == 0.7
    assert json.loads(run.files["wandb-metadata.json"])["program"].endswith("train.py")
    if (ROOT / ".git").exists():
        commit = json.loads(run.files["wandb-metadata.json"])["git"]["commit"]
        assert commit == record["git"].removesuffix("+dirty")
        assert ("diff.patch" in run.files) == record["git"].endswith("+dirty")
    summary = json.loads(run.files["wandb-summary.json"])
    assert summary["final/accuracy"] == record["metrics"]["accuracy"]

    made = {artifact.type: artifact for artifact in server.artifacts.values()}
    dense, own, code = (made[kind] for kind in ("dense-start", "run", "code"))
    assert (dense.maker, dense.users, dense.complete) == (None, [run.name], True)
    assert dense.metadata["sha256"] == record["sha256"]["start"]
    assert (own.maker, own.collection) == (run.name, f"run-{record['run_hash']}")
    assert own.metadata["accuracy"] == record["metrics"]["accuracy"]
    stored = {name: hashlib.sha256(content).hexdigest() for name, content in own.files.items()}
    assert stored.items() >= (record["sha256"].items() - {("start", dense.metadata["sha256"])})
    assert json.loads(own.files["results.json"]) == record
    assert "pruning/pruner.py" in code.files


def test_a_failed_and_a_resumed_run(tmp_path, client):
    tracker = WandbTracker("online", Tracker())
    tracker.start(replace(info(tmp_path / "one"), id="first"))
    for step in (10, 20):
        tracker.log(step, {"loss": 1 / step})
    tracker.finish({**RECORD, "status": "failed", "flops_dense": None, "error": "loss is nan"})
    (alert,) = client.alerts
    assert (alert["title"], alert["text"]) == ("failed: a run", "loss is nan")
    assert client.artifacts == {}
    first = client.runs["first"]
    assert (first.complete, first.exit_code) == (True, 1)
    assert first.config.keys() >= {"pruner.alpha_1", "schedule"}
    assert first.config["sparsity"] == CONFIG["sparsity"]

    again = WandbTracker("online", Tracker())
    again.start(replace(info(tmp_path / "one"), id="first", resumed=10))
    for step in (20, 30):  # the last checkpoint lay before the last row
        again.log(step, {"loss": 1 / step})
    again.finish(RECORD)
    assert [row["step"] for row in first.history] == [10, 20, 30]
    assert (first.exit_code, first.summary["status"]) == (0, "finished")
    assert list(client.runs) == ["first"]


@pytest.mark.parametrize("fault", ["refuse", "drop"])
def test_a_fault_that_passes_costs_nothing(tmp_path, client, fault):
    client.fail(fault, times=2, run=0)
    tracker = WandbTracker("online", Tracker())
    tracker.start(info(tmp_path))
    for step in range(1, 6):
        tracker.log(step, {"loss": 1 / step})
    tracker.finish(RECORD)
    (run,) = client.runs.values()
    assert [row["step"] for row in run.history] == [1, 2, 3, 4, 5]
    assert (run.complete, run.exit_code) == (True, 0)
    assert run.summary["final/accuracy"] == RECORD["metrics"]["accuracy"]


@pytest.mark.parametrize("fault", ["deny", "miss"])
def test_files_that_are_refused_are_one_warning(tmp_path, client, caplog, fault):
    client.fail(fault, about="CreateArtifact")
    tracker = Guarded(WandbTracker("online", Tracker()))
    tracker.start(info(tmp_path))
    tracker.log(1, {"loss": 1.0})
    tracker.finish(RECORD)
    (line,) = [r.message for r in caplog.records if r.name.startswith("seven_exp")]
    assert line.startswith("W&B has not got the run's files (")
    assert "permission denied" in line
    assert tracker.works
    (run,) = client.runs.values()
    assert (run.complete, run.exit_code) == (True, 0)
    assert run.summary["final/accuracy"] == RECORD["metrics"]["accuracy"]


@pytest.mark.parametrize("fault", ["refuse", "hang", "drop"])
def test_a_server_that_is_out_of_order_at_the_start_means_offline(tmp_path, client, caplog, fault):
    caplog.set_level(logging.INFO)
    client.fail(fault)
    tracker = Guarded(WandbTracker("online", Tracker()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_and_biases, "INIT_SECONDS", 2)
        if fault == "hang":  # so does W&B's service, when it is to end
            end, never = wandb.teardown, Event()
            patch.setattr(wandb, "teardown", lambda: (end(), never.wait()))
        tracker.start(info(tmp_path))
    tracker.log(1, {"loss": 1.0})
    tracker.finish(RECORD)
    assert tracker.works
    assert client.runs == {}
    assert offline_records(tmp_path)
    assert "W&B can't be reached" in caplog.text
    assert "wandb sync" in caplog.text


def test_no_fault_in_the_middle_of_a_run_stops_it_or_the_next(tmp_path, server):
    faults = ["refuse", "hang", "drop"]
    for number, fault in enumerate(faults):
        server.fail(fault, run=number)
    done = train(
        tmp_path, "-m", *SMALL, "seed=0,1,2,3", "tracker.view=false", **server.environment,
        WANDB_FINISH_TIMEOUT="3", WANDB_RUN_ID="inherited",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [r["status"] for r in records(tmp_path)] == ["finished"] * 4
    assert [len(p.read_text().splitlines()) for p in tmp_path.rglob("metrics.jsonl")] == [4] * 4
    said = [line for line in done.stderr.splitlines() if "WandbTracker failed" in line]
    assert len(said) == 3
    for line in said:
        # the folder in the message holds what the server did not receive
        folder = Path(line.partition("wandb sync ")[2].partition(")")[0])
        assert list(folder.glob("*.wandb"))
    assert "inherited" not in server.runs
    *broken, last = server.runs.values()
    assert [(run.complete, run.history) for run in broken] == [(False, [])] * 3
    assert (last.complete, last.exit_code, len(last.history)) == (True, 0, 4)


def test_an_agent_runs_a_sweep(tmp_path, server):
    environment = {
        **os.environ,
        **server.environment,
        # `wandb` is beside Python, and the agent's `python` is the preloaded one
        "PATH": os.pathsep.join(
            [str(Path(p).parent) for p in (python(), sys.executable)] + [os.environ["PATH"]]
        ),
        "SEVEN_EXP_CACHE": str(tmp_path / "cache"),
    }

    # Set by trackers of this very process.
    environment.pop("WANDB_SILENT", None)

    def call(*words: str) -> str:
        done = subprocess.run(
            ["wandb", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    # in another folder the program needs its whole path; all else is the file's
    said = call("sweep", "--program", str(ROOT / "train.py"), str(ROOT / "sweep" / "compare.yaml"))
    (sweep,) = server.sweeps.values()
    path = f"{ENTITY}/seven_exp/{sweep.name}"
    assert f"wandb agent {path}" in said
    written = yaml.safe_load((ROOT / "sweep" / "compare.yaml").read_text())
    assert sweep.config["parameters"] == written["parameters"]
    assert len(sweep.points) == 27
    for point in sweep.points:
        point |= {"model.pretrain.epochs": 1, "trainer.epochs": 1}

    call("agent", "--count", "2", path)
    assert len(server.runs) == sweep.handed_out == 2
    found = {record["sparsity_target"]: record for record in records(tmp_path)}
    assert len(found) == 2
    for point, run in zip(sweep.points[:2], server.runs.values(), strict=True):
        assert run.about["sweep"] == sweep.name
        assert {key: run.config[key] for key in point} == point
        record = found[point["sparsity"]]
        assert record["pruner"] == point["pruner"]
        assert run.summary[written["metric"]["name"]] == record["validation"]["accuracy"]
        assert (run.complete, run.exit_code) == (True, 0)


@pytest.mark.parametrize("older", [False, True], ids=["now", "older"])
def test_a_run_without_a_tracker_is_uploaded_later_and_once(
    finished_run, tmp_path, client, capsys, older
):
    from seven_exp.cli.upload import main as upload

    folder = shutil.copytree(finished_run("unstructured"), tmp_path / "run")
    record = json.loads((folder / "results.json").read_text())
    if older:
        # Before there was a split for validation.
        for key in ("validation", "splits", "effective"):
            del record[key]
        (folder / "results.json").write_text(json.dumps(record))
    for _ in range(2):
        assert upload([str(folder)]) == 0
    assert "1 of 1 runs logged to wandb" in capsys.readouterr().out
    (run,) = client.runs.values()
    assert run.summary["final/accuracy"] == record["metrics"]["accuracy"]
    assert run.summary["run_hash"] == record["run_hash"]
    assert run.config["pruner"] == "magnitude_dyn"
