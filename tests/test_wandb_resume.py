"""A run that goes on is the same run at W&B, and has each of its steps once."""

import json
import subprocess
from typing import Any

import pytest
from preloaded import python
from test_cli import ROOT
from wandb_server import WandbServer

pytestmark = pytest.mark.slow

RECORD = {
    "status": "finished", "run_hash": "x", "metrics": {"accuracy": 0.5}, "validation": {},
    "best": {},
    "sparsity": 0.5, "params_nonzero": 1, "flops_dense": 1, "flops_sparse": 1, "seconds": 1.0,
    "seconds_pruning": 0.0, "config": {},
}  # fmt: skip

CODE = """
import json, os, sys
from pathlib import Path
from seven_exp.config import Tracker
from seven_exp.tracking import RunInfo, WandbTracker
folder, resumed, steps, ending = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), sys.argv[4]
tracker = WandbTracker("online", Tracker(artifacts="none"))
tracker.start(RunInfo("a", "g", [], {"seed": 1}, Path(folder), id="abcd1234", resumed=resumed))
for step in steps:
    tracker.log(step, {"loss": step / 10})
tracker.finish(json.loads(ending))
"""


class Remembering(WandbServer):
    """Also tells a client that continues a run which rows it has."""

    def _RunResumeStatus(self, variables: Any) -> dict[str, Any]:  # noqa: N802
        run = self.runs[variables["name"]]
        rows = run.streams["wandb-history.jsonl"]
        bucket = {
            "name": run.name, "displayName": "a", "historyLineCount": len(rows),
            "logLineCount": 0, "eventsLineCount": len(run.streams["wandb-events.jsonl"]),
            "historyTail": json.dumps([rows[max(rows)]]), "eventsTail": "[]",
            "summaryMetrics": "{}", "config": "{}", "tags": [], "wandbConfig": '{"t": 1}',
        }  # fmt: skip
        return {"model": {**self._project(), "bucket": bucket}}


def test_steps_that_come_again_are_not_sent_again(tmp_path, monkeypatch):
    with Remembering() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for resumed, steps, status in (0, [10, 20, 30], "interrupted"), (20, [30, 40], "finished"):
            ending = json.dumps({**RECORD, "status": status})
            arguments = [str(tmp_path), str(resumed), json.dumps(steps), ending]
            subprocess.run(
                [python(), "-c", CODE, *arguments],
                cwd=ROOT, check=True, capture_output=True, timeout=300,
            )  # fmt: skip
        (run,) = server.runs.values()
        assert run.name == "abcd1234"
        assert [(row["step"], row["loss"]) for row in run.history] == [
            (step, step / 10) for step in (10, 20, 30, 40)
        ]
        assert run.summary["status"] == "finished"
        assert (run.complete, run.exit_code) == (True, 0)
