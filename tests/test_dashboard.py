"""The comparison on W&B: what would be sent, from the objects' own serialisation."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("wandb_workspaces", reason="the extra 'dashboard' is not installed")

import wandb
from preloaded import python
from wandb_server import ENTITY, PROJECT, WandbServer

from seven_exp.cli.compare import main
from seven_exp.compare import dashboard as boards
from seven_exp.compare.dashboard import COLUMNS, build_dashboard, parse_place, publish
from seven_exp.compare.records import read_records
from seven_exp.compare.summary import summarize

ROOT = Path(__file__).parent.parent
LAYERS = ("a.weight", "b.weight")


def write(root, pruner, sparsity, seed, accuracy, model="vit_tiny"):
    folder = root / f"{model}_{pruner}_{sparsity}_{seed}"
    folder.mkdir()
    (folder / "results.json").write_text(
        json.dumps({
            "run_hash": folder.name, "status": "finished", "pruner": pruner, "model": model,
            "dataset": "digits", "seed": seed, "sparsity_target": sparsity, "params_nonzero": 1,
            "splits": {"metrics": "test"},
            "metrics": {"accuracy": accuracy}, "seconds": 1.0, "flops_sparse": 5,
            "layers": [{"name": name, "numel": 10, "nonzero": 5} for name in LAYERS],
            "config": {"seed": seed, "sparsity": sparsity, "pruner": {"name": pruner}},
        })
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path):
    for seed in (0, 1, 2):
        for sparsity in (0.5, 0.9):
            write(tmp_path, "magnitude", sparsity, seed, 0.6 + seed / 10)
            # ahead by 1, 2 and 3 points
            write(tmp_path, "seven_dyn", sparsity, seed, 0.6 + seed / 10 + 0.01 * (seed + 1))
    write(tmp_path, "magnitude", 0.5, 0, 0.5, model="mlp")
    return tmp_path


@pytest.fixture
def board(sweep):
    records, _ = read_records([sweep])
    rows, _ = summarize(records, "accuracy", "magnitude")
    return build_dashboard(rows, "accuracy", "magnitude", "team", "project")


def sent(model):
    """What ``save`` would send of a report or a workspace."""
    return json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))


def blocks(board, kind):
    return [b for b in sent(board.report._to_model())["blocks"] if b["type"] == kind]


def panels(block):
    return block["metadata"]["panelBankSectionConfig"]["panels"]


def filters(block):
    (runs,) = block["metadata"]["runSets"]
    return {f["key"]["name"]: f["value"] for f in runs["filters"]["filters"]}


def vit(board):
    """The panel grids of the second model: means, runs, and layers with training."""
    grids = blocks(board, "panel-grid")
    assert len(grids) == 6
    return grids[3:]


def test_the_report_begins_with_the_table_of_means(board):
    tables = [b["content"] for b in blocks(board, "markdown-block")]
    assert len(tables) == 2
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables[1].splitlines()]
    assert lines[0][:6] == [
        *("sparsity", "method", "accuracy", "seeds", "minus magnitude", "p (Holm)"),
    ]
    by_place = {(line[0], line[1]): line for line in lines[2:]}
    assert set(by_place) == {
        (s, method) for s in ("50%", "90%") for method in ("magnitude", "seven_dyn")
    }
    # worked out in test_compare: 4.302653 * 0.01 / sqrt 3
    assert by_place["90%", "seven_dyn"][4] == "+2.00 ± 2.48"
    titles = [b["children"][0]["text"] for b in blocks(board, "heading") if b["level"] == 1]
    assert titles == ["mlp on digits", "vit_tiny on digits"]


def test_intervals_are_drawn_from_the_table_that_is_sent(board):
    means, *_ = vit(board)
    assert filters(means) == {"jobType": "comparison"}
    (panel,) = panels(means)
    (query,) = panel["config"]["userQuery"]["queryFields"]
    (table,) = [f for f in query["fields"] if f["name"] == "summaryTable"]
    ((key),) = [a["value"] for a in table["args"] if a["name"] == "tableKey"]
    rows = [dict(zip(COLUMNS, row, strict=True)) for row in board.tables[key]]
    row = next(r for r in rows if (r["method"], r["sparsity"]) == ("magnitude", 0.9))
    # 0.6, 0.7 and 0.8: s is 0.1
    assert row["mean"] == pytest.approx(0.7)
    assert row["high"] - row["mean"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    assert row["mean"] - row["low"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-6)
    (name,) = board.charts
    assert panel["config"]["panelDefId"] == f"team/{name}"
    # every field of the chart is a column of the table
    wanted = set(re.findall(r"\$\{field:(\w+)\}", json.dumps(board.charts[name])))
    assert {"method", "sparsity", "mean", "low", "high"} <= wanted
    settings = panel["config"]["fieldSettings"]
    assert wanted <= set(settings)
    assert set(settings.values()) <= set(COLUMNS)


def test_panels_use_the_keys_that_the_tracker_logs(board):
    _, runs, rest = vit(board)
    expected = {"jobType": "train", "model": "vit_tiny", "dataset": "digits"}
    assert filters(runs) == expected
    assert filters(rest) == {**expected, "sparsity": 0.9}
    scatter, flops, comparer = panels(runs)
    assert scatter["viewType"] == "Scatter Plot"
    # what was reached: a dense run keeps all, whatever sparsity its config asks for
    assert scatter["config"]["xAxis"] == "summary:final/sparsity"
    assert scatter["config"]["yAxis"] == "summary:final/accuracy"
    assert flops["config"]["xAxis"] == "summary:final/flops_sparse"
    assert comparer["config"] == {"diffOnly": True}
    bars, layers, *training = panels(rest)
    assert bars["config"]["metrics"] == [f"layer_sparsity/{name}" for name in LAYERS]
    assert layers["config"]["metricRegex"] == "layer_sparsity/.*"
    assert [p["config"]["metrics"] for p in training] == [
        ["validation/accuracy"],
        ["loss"],
        ["sparsity"],
    ]
    for panel in (bars, layers, *training):
        assert panel["config"]["groupBy"] == "pruner.value"
        assert panel["config"]["aggregate"] is True
    for panel in (layers, *training):
        assert panel["config"]["xAxis"] == "step"
    (table,) = runs["metadata"]["runSets"]
    assert "summary:final/accuracy" in table["runFeed"]["columnOrder"]
    assert "config:pruner.value" in table["runFeed"]["columnOrder"]


def test_a_workspace_shows_the_runs_of_its_own_model_and_data_set(board):
    views = [workspace._to_model() for workspace in board.workspaces]
    assert [(view.entity, view.project, view.display_name) for view in views] == [
        ("team", "project", f"{boards.TITLE}: {model} on digits") for model in ("mlp", "vit_tiny")
    ]
    sections = sent(views[1])["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections] == ["accuracy over sparsity", "layers", "training"]
    assert [len(s["panels"]) for s in sections] == [4, 2, 3]
    assert all(s["isOpen"] for s in sections)
    shown = [view.spec.section.run_sets[0].filters for view in views]
    for model, filters in zip(("mlp", "vit_tiny"), shown, strict=True):
        leaves = [(f["key"]["name"], f["op"], f["value"]) for f in leaves_of(filters)]
        assert leaves == [
            ("jobType", "=", "comparison"),
            *(("jobType", "=", "train"), ("model", "=", model), ("dataset", "=", "digits")),
        ]


def leaves_of(filters):
    """The conditions of a tree of filters."""
    for one in filters["filters"]:
        if one.get("filters"):
            yield from leaves_of(one)
        else:
            yield one


class Server:
    """Replaces W&B: gives the same answers, and records the calls."""

    def __init__(self, monkeypatch):
        self.views, self.logged, self.charts = {}, {}, []
        monkeypatch.setattr(wandb, "Api", lambda: self)
        monkeypatch.setattr(wandb, "init", self.init)
        for module in ("workspaces.internal", "reports.v2.interface"):
            monkeypatch.setattr(f"wandb_workspaces.{module}.execute_graphql", self.execute)
        for module in ("workspaces.interface", "reports.v2.interface"):
            monkeypatch.setattr(
                f"wandb_workspaces.{module}.get_app_url", lambda api: "https://wandb.example"
            )

    def init(self, **settings):
        self.settings = settings
        return SimpleNamespace(log=self.logged.update, finish=lambda: None)

    def create_custom_chart(self, **chart):
        if chart["name"] in self.charts:
            raise wandb.Error("it exists")
        self.charts.append(chart["name"])

    def projects(self, entity):
        return [SimpleNamespace(name="project")]

    def reports(self, path):
        assert path == "team/project"
        return [
            SimpleNamespace(
                display_name=view["displayName"],
                url=f"https://wandb.example/team/project/reports/x--{key}",
            )
            for key, view in self.views.items()
            if view["type"] == "runs"
        ]

    def execute(self, api, query, variables):
        if "mutation" in query:
            key = variables.get("id") or f"id{len(self.views)}"
            inserted = key not in self.views
            view = {
                **variables, "id": key,
                "project": {"name": "project", "entityName": "team"},
                "updatedAt": None, "createdAt": None,
            }  # fmt: skip
            self.views[key] = view
            return {"upsertView": {"view": view, "inserted": inserted}}
        if "reportId" in variables:
            found = next(v for k, v in self.views.items() if k in variables["reportId"])
            return {"view": found}
        edges = [
            {"node": view}
            for view in self.views.values()
            if view["type"] == "project-view" and view["name"] == variables["viewName"]
        ]
        return {"project": {"allViews": {"edges": edges}}}


def test_publishing_twice_updates_what_is_there(board, monkeypatch):
    server = Server(monkeypatch)
    first = publish(board)
    assert {view["type"] for view in server.views.values()} == {"runs", "project-view"}
    assert server.settings["job_type"] == "comparison"
    assert {key: table.data for key, table in server.logged.items()} == board.tables
    contents = {key: json.loads(view["spec"]) for key, view in server.views.items()}
    for workspace in board.workspaces:
        workspace.sections.pop()
    board.report.blocks.pop()
    assert publish(board) == first
    assert set(server.views) == set(contents)
    assert len(server.charts) == 1
    for key, view in server.views.items():
        assert json.loads(view["spec"]) != contents[key]


SEND = """
import sys
from pathlib import Path
from seven_exp.compare import dashboard
from seven_exp.compare.records import read_records
from seven_exp.compare.summary import summarize
rows, _ = summarize(read_records([Path(sys.argv[1])])[0], "accuracy", None)
dashboard._send_tables(
    dashboard.build_dashboard(rows, "accuracy", None, sys.argv[2], sys.argv[3])
)
"""


@pytest.mark.slow
def test_a_real_client_sends_the_means(sweep, tmp_path):
    with WandbServer() as server:
        done = subprocess.run(
            [python(), "-c", SEND, str(sweep), ENTITY, PROJECT],
            env={**os.environ, **server.environment, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (run,) = server.runs.values()
    assert (run.name, run.about["jobType"], run.complete) == (boards.RUN, "comparison", True)
    file = run.summary["comparison/accuracy/vit_tiny-digits"]["path"]
    table = json.loads(run.files[file])
    assert table["columns"] == list(COLUMNS)
    means = {(row[0], row[1]): row[2] for row in table["data"]}
    # 0.6, 0.7 and 0.8; and 1, 2 and 3 points more
    assert means == {
        (method, sparsity): pytest.approx(mean)
        for method, mean in (("magnitude", 0.70), ("seven_dyn", 0.72))
        for sparsity in (0.5, 0.9)
    }
    assert not (tmp_path / "wandb").exists()


REFUSED = """
import sys
from seven_exp.compare import dashboard
from seven_exp.cli.compare import main
dashboard._send_tables = lambda board: None
sys.exit(main([sys.argv[1], "--wandb", sys.argv[2], "--format", "html"]))
"""


@pytest.mark.slow
def test_a_real_client_that_is_refused_costs_one_line(sweep):
    # the server knows no call for charts, reports or workspaces, and refuses them
    with WandbServer() as server:
        done = subprocess.run(
            [python(), "-c", REFUSED, str(sweep), f"{ENTITY}/{PROJECT}"],
            env={**os.environ, **server.environment, "PYTHONPATH": str(ROOT)},
            cwd=sweep, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert server.unknown
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if not line.startswith("wandb: ")]
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: W&B: ")
    assert (sweep / "comparison.html").exists()


def test_the_command_prints_where_it_went(sweep, monkeypatch, capsys):
    Server(monkeypatch)
    monkeypatch.setattr("seven_exp.tracking.weights_and_biases.logged_in", lambda: True)
    assert main([str(sweep), "--wandb", "team/project", "--format", "html"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("on W&B: https://wandb.example/team/project/reports/")
    assert (sweep / "comparison.html").exists()


def test_a_server_that_is_away_costs_one_line(sweep, monkeypatch, capsys):
    def away(**settings):
        raise wandb.errors.CommError("no route\nto host")

    monkeypatch.setattr(wandb, "init", away)
    monkeypatch.setattr("seven_exp.tracking.weights_and_biases.logged_in", lambda: True)
    assert main([str(sweep), "--wandb", "team/project", "--format", "html"]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1] == "error: W&B: no route to host"
    # the files on this machine are still written
    assert (sweep / "comparison.html").exists()


def test_without_the_extra_it_says_what_to_install(sweep, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main([str(sweep), "--wandb", "team/project"]) == 2
    assert capsys.readouterr().err == (
        "error: --wandb needs wandb-workspaces: uv sync --extra dashboard\n"
    )
    # nothing is done before
    assert not (sweep / "comparison.csv").exists()


def test_intervals_on_the_chart_end_at_the_metrics_bounds(tmp_path):
    for seed, accuracy in enumerate((0.80, 1.0, 0.99)):
        write(tmp_path, "magnitude", 0.9, seed, accuracy)
    rows, _ = summarize(read_records([tmp_path])[0], "accuracy", None)
    board = build_dashboard(rows, "accuracy", None, "team", "project")
    (((cells,),),) = [board.tables.values()]
    row = dict(zip(COLUMNS, cells, strict=True))
    assert row["high"] == 1.0
    assert row["low"] == pytest.approx(rows[0].result.mean - rows[0].result.half)
    (spec,) = board.charts.values()
    assert {layer["encoding"]["y"]["scale"]["nice"] for layer in spec["layer"]} == {False}


@pytest.mark.parametrize("place", ["project", "/project", "team/", "a/b/c"])
def test_places_that_are_none(place):
    with pytest.raises(ValueError, match="expected entity/project"):
        parse_place(place)
