"""A finished sweep leaves its own view on W&B: a real client against a local server."""

import json
import shutil

import pytest

pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")

from test_cli import train
from test_dashboard import leaves_of, write
from wandb.apis.public import Api
from wandb_workspaces.workspaces.internal import WorkspaceViewspec

from seven_exp.cli.sweep_view import leave_view
from seven_exp.cli.sync import main as sync
from seven_exp.compare import dashboard
from seven_exp.compare.dashboard import COLUMNS
from seven_exp.config import Tracker

pytestmark = pytest.mark.slow

SMALL = (
    *("-m", "model=mlp", "model.widths=[8]", "trainer.max_steps=20"),
    *("trainer.log_interval=10", "trainer.eval_interval=20"),
)


def records(folder):
    return [json.loads(path.read_text()) for path in folder.rglob("results.json")]


@pytest.fixture
def recorded(tmp_path):
    """A folder with the records of a sweep."""
    for seed in (0, 1):
        write(tmp_path, "magnitude", 0.9, seed, 0.6 + seed / 10)
        write(tmp_path, "seven_dyn", 0.9, seed, 0.7 + seed / 10)
    return tmp_path


def folder_of(tmp_path):
    (found,) = tmp_path.rglob("multirun.yaml")
    return found.parent, "/".join(found.parent.parts[-2:])


def test_a_sweep_leaves_a_view_of_its_runs(tmp_path, server):
    done = train(tmp_path, *SMALL, "pruner=dense,magnitude", "sparsity=0.9", **server.environment)
    assert done.returncode == 0, done.stderr
    _, name = folder_of(tmp_path)
    found = {record["run_hash"]: record for record in records(tmp_path)}
    comparison = next(r for r in server.runs.values() if r.about["jobType"] == "comparison")
    runs = [run for run in server.runs.values() if run is not comparison]
    assert len(runs) == len(found) == 2
    assert {run.about["groupName"] for run in runs} == {f"mlp-digits {name}"}

    (view,) = server.views.values()
    assert view["type"] == "project-view"
    assert view["displayName"].endswith(f"mlp on digits, {name}")
    assert view["name"][3:-2] in done.stdout.partition("view on W&B: ")[2].splitlines()[0]
    # W&B's own schema of a workspace reads what the server has got
    section = WorkspaceViewspec.model_validate_json(view["spec"]).section
    (shown,) = section.run_sets
    conditions = {f["key"]["name"]: f["value"] for f in leaves_of(shown.filters)}
    assert conditions == {
        "jobType": "comparison", "displayName": f"comparison {name}", "model": "mlp",
        "dataset": "digits", "run_hash": sorted(found),
    }  # fmt: skip
    assert comparison.about["displayName"] == conditions["displayName"]
    assert [key.name for key in shown.grouping] == ["pruner.value", "sparsity.value"]

    table = json.loads(
        comparison.files[comparison.summary["comparison/accuracy/mlp-digits"]["path"]]
    )
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert table["columns"] == list(COLUMNS)
    reached = {record["sparsity"]: record["metrics"]["accuracy"] for record in found.values()}
    assert {row["reached"]: row["mean"] for row in rows} == pytest.approx(reached)
    assert {row["method"] for row in rows if row["reached"] == 0} == {"dense"}

    # the lineage: one dense start, two runs, one comparison
    dense = [a for a in server.artifacts.values() if a.type == "dense-start"]
    assert [sorted(a.users) for a in dense] == [sorted(run.name for run in runs)]
    own = [a for a in server.artifacts.values() if a.type == "run"]
    assert {a.collection for a in own} == {f"run-{identity}" for identity in found}
    assert {a.maker for a in own} == {run.name for run in runs}
    assert [a.users for a in own] == [[comparison.name]] * 2


def test_an_offline_sweep_gets_its_view_when_it_is_uploaded(tmp_path, client, capfd, monkeypatch):
    done = train(tmp_path, *SMALL, "optimizer.lr=0.001,0.01", "tracker.mode=offline")
    assert done.returncode == 0, done.stderr
    folder, name = folder_of(tmp_path)
    assert f"seven-exp sync {folder.relative_to(tmp_path)}" in done.stdout
    assert client.runs == {}
    monkeypatch.chdir(tmp_path)  # W&B writes its log there
    assert sync([str(tmp_path)]) == 0
    said = capfd.readouterr().out
    assert "2 of 2 runs uploaded" in said
    assert said.splitlines()[-1].startswith("view on W&B: ")
    (view,) = client.views.values()
    assert name in view["displayName"]
    names = {run.about["displayName"] for run in client.runs.values()}
    assert names == {
        *(f"seven_dyn-0.7-seed0 optimizer.lr={lr}" for lr in ("0.001", "0.01")),
        f"comparison {name}",
    }
    # artifacts that were logged offline arrive, too, with their users
    kinds = {a.collection: (a.type, len(a.users), a.complete) for a in client.artifacts.values()}
    for record in records(tmp_path):
        assert kinds[f"run-{record['run_hash']}"] == ("run", 1, True)
        assert kinds[f"dense-{record['sha256']['start'][:12]}"] == ("dense-start", 2, True)
    accuracies = {record["metrics"]["accuracy"] for record in records(tmp_path)}
    assert {run.summary.get("final/accuracy") for run in client.runs.values()} >= accuracies
    assert sync([str(tmp_path)]) == 0
    assert "not yet uploaded" in capfd.readouterr().out


def test_a_sweep_whose_view_is_refused_has_succeeded(tmp_path, server):
    server.fail("deny", about="UpsertView2")
    done = train(tmp_path, *SMALL, "seed=0", **server.environment)
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "W&B" in line]
    assert said == ["no view on W&B: permission denied"]
    assert server.views == {}
    assert [record["status"] for record in records(tmp_path)] == ["finished"]


@pytest.mark.parametrize(
    ("fault", "about", "words"),
    [
        ("miss", "UpsertView2", "permission denied"),
        ("miss", "UpsertBucket", "permission denied"),
        ("refuse", "UpsertView2", "did not respond"),
        ("refuse", "CreateCustomChart", "did not register the chart"),
        ("drop", "UpsertView2", ""),
    ],
)
def test_what_was_refused_is_one_line(
    recorded,
    client,
    capsys,
    monkeypatch,
    fault,
    about,
    words,
):
    monkeypatch.setattr(Api, "_HTTP_TIMEOUT", 2)
    monkeypatch.setattr(dashboard, "FINISH_SECONDS", 2)
    client.fail(fault, about=about)
    leave_view(recorded, Tracker(mode="online"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("no view on W&B: ")
    assert words in line


def test_a_view_can_be_switched_off(recorded, client, capsys):
    for section in (Tracker(mode="disabled"), Tracker(mode="online", view=False)):
        leave_view(recorded, section)
    assert capsys.readouterr() == ("", "")
    assert client.views == client.runs == {}


def test_runs_whose_files_are_not_there_are_compared_nevertheless(recorded, client, capsys):
    for path in recorded.rglob("results.json"):
        record = json.loads(path.read_text())
        record["config"]["tracker"] = {"artifacts": "masks"}
        path.write_text(json.dumps(record))
    shutil.rmtree(next(recorded.glob("*magnitude*")))
    leave_view(recorded, Tracker(mode="online"))
    assert capsys.readouterr().err == ""
    assert len(client.views) == 1
