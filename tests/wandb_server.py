"""A W&B server on the loopback interface that keeps what a real client sends it.

It speaks as much of W&B's protocol as `wandb.init`, `log` and `finish` need, and `wandb sweep` and
`wandb agent`: GraphQL at ``/graphql``, the stream of rows at ``/files/.../file_stream``, and
uploads to addresses that it gives out itself. It can also fail, in the ways that servers do.
"""

import gzip
import itertools
import json
import re
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import yaml

ENTITY, PROJECT = "tester", "seven_exp"

Fault = Literal["refuse", "hang", "drop"]
"""HTTP 500; no answer; a connection closed without one."""


@dataclass
class Run:
    """What the server has received about one run."""

    name: str
    about: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False
    exit_code: int | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        """Rows in their order, without gaps."""
        lines = self.streams["wandb-history.jsonl"]
        assert sorted(lines) == list(range(len(lines)))
        return [json.loads(lines[n]) for n in range(len(lines))]

    @property
    def summary(self) -> dict[str, Any]:
        """The latest value."""
        lines = self.streams["wandb-summary.json"]
        return json.loads(lines[max(lines)]) if lines else {}


@dataclass
class Sweep:
    """A grid, handed out point by point."""

    name: str
    config: dict[str, Any]
    program: str
    points: list[dict[str, Any]]
    handed_out: int = 0

    @classmethod
    def of(cls, name: str, text: str) -> "Sweep":
        config = yaml.safe_load(text)
        choices = {
            key: p["values"] if "values" in p else [p["value"]]
            for key, p in config["parameters"].items()
        }
        points = [dict(zip(choices, p, strict=True)) for p in itertools.product(*choices.values())]
        return cls(name, config, config["program"], points)


@dataclass
class Trouble:
    """A fault that is to come, or is there."""

    fault: Fault
    times: int
    run: int | None
    begun: bool = False

    def concerns(self, request: bytes, runs: list[str]) -> bool:
        """Whether it strikes this request, the server knowing these runs."""
        if self.run is not None:
            if self.run >= len(runs) or runs[self.run].encode() not in request:
                return False
            self.begun |= b"wandb-history.jsonl" in request
        return self.times > 0 and (self.begun or self.run is None)


class WandbServer:
    """``with WandbServer() as server: ...``; clients find it by `environment`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.unknown: list[str] = []
        self._troubles: list[Trouble] = []
        self._lock = threading.RLock()
        self._closing = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> "WandbServer":
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    @property
    def environment(self) -> dict[str, str]:
        """Of a client that is logged in here and does not wait long for anything."""
        return {
            "WANDB_BASE_URL": self.url,
            "WANDB_API_KEY": "0" * 40,
            # In whole seconds: less means as long as ever.
            "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1",
            "WANDB_X_FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "1",
            "WANDB_X_GRAPHQL_RETRY_WAIT_MIN_SECONDS": "1",
        }

    def fail(self, fault: Fault, *, times: int = 10**9, run: int | None = None) -> None:
        """Fail the next ``times`` requests, then be well again.

        Args:
            fault: How.
            times: How many.
            run: Only those about the run of this number, from its first rows of history on; None
                for all, at once.
        """
        self._troubles.append(Trouble(fault, times, run))

    def fault_of(self, path: str, body: bytes) -> Fault | None:
        """Whether to fail this request, and how."""
        with self._lock:
            for trouble in self._troubles:
                if trouble.concerns(path.encode() + body, list(self.runs)):
                    trouble.times -= 1
                    return trouble.fault
        return None

    def hang(self) -> None:
        """Wait until the server goes."""
        self._closing.wait()

    def graphql(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a query."""
        found = re.search(r"(?:query|mutation)\s+(\w+)", query)
        operation = found[1] if found else query[:40]
        answer: Callable[[Mapping[str, Any]], dict[str, Any]] | None
        answer = getattr(self, f"_{operation}", None)
        with self._lock:
            if answer is None:
                self.unknown.append(operation)
                return {"errors": [{"message": f"unknown operation {operation}"}]}
            return {"data": answer(variables)}

    def stream(self, name: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Take in rows; a row sent twice lands in the same place."""
        with self._lock:
            run = self.runs.setdefault(name, Run(name))
            for file, lines in body.get("files", {}).items():
                run.streams[file].update(enumerate(lines["content"], lines["offset"]))
            if body.get("complete"):
                run.complete, run.exit_code = True, body["exitcode"]
        return {"limits": {}}

    def upload(self, name: str, file: str, content: bytes) -> None:
        """Take in a file."""
        with self._lock:
            self.runs[name].files[file] = content

    def _Viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}"}
        return {"viewer": {**viewer, "name": ENTITY, "admin": False, "teams": {"edges": []}}}

    _GetViewer = _Viewer

    def _ServerInfo(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        versions = {"max_cli_version": "99.0.0", "min_cli_version": "0.0.1"}
        return {"serverInfo": {"cliVersionInfo": versions, "latestLocalVersionInfo": None}}

    def _ServerFeaturesQuery(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"serverInfo": {"features": []}}

    def _OrgFeatureFlags(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"organization": None}

    def _OrganizationCoreWeaveOrganizationID(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"entity": None}

    def _RunResumeStatus(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {**self._project(), "bucket": None}}
        counts = {
            f"{kind}LineCount": len(run.streams[file])
            for kind, file in [
                *(("history", "wandb-history.jsonl"), ("events", "wandb-events.jsonl")),
                ("log", "output.log"),
            ]
        }
        tails = {
            "historyTail": json.dumps([json.dumps(row) for row in run.history[-1:]]),
            "eventsTail": "[]",
        }
        about = {
            "id": f"bucket-{run.name}",
            "name": run.name,
            "displayName": run.about["displayName"],
            "summaryMetrics": json.dumps(run.summary),
            "config": json.dumps({key: {"value": value} for key, value in run.config.items()}),
            "tags": run.about["tags"],
            "notes": None,
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"model": {**self._project(), "bucket": {**about, **counts, **tails}}}

    def _RunStoppedStatus(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"project": {"run": {"stopped": False}}}

    def _UpsertBucket(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = variables.get("name") or variables["id"].removeprefix("bucket-")
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name))
        told = {key: value for key, value in variables.items() if value is not None}
        if "config" in told:
            run.config |= {k: v["value"] for k, v in json.loads(told.pop("config")).items()}
        run.about |= told
        bucket = {
            "id": f"bucket-{name}",
            "name": name,
            "displayName": run.about.get("displayName", name),
            "description": None,
            "config": "{}",
            "sweepName": run.about.get("sweep"),
            "project": self._project(),
            "historyLineCount": len(run.streams["wandb-history.jsonl"]),
        }
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _CreateRunFiles(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        run = variables["run"]
        files = [
            {"name": name, "uploadUrl": f"{self.url}/upload/{run}/{name}"}
            for name in variables["files"]
        ]
        return {"createRunFiles": {"runID": run, "uploadHeaders": [], "files": files}}

    def _UpsertSweep(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = f"sweep{len(self.sweeps)}"
        self.sweeps[name] = Sweep.of(name, variables["config"])
        sweep = {"name": name, "project": self._project()}
        return {"upsertSweep": {"sweep": sweep, "configValidationWarnings": []}}

    def _SweepWithRuns(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep = self.sweeps[variables["sweep"]]
        known = {"id": sweep.name, "name": sweep.name, "config": yaml.safe_dump(sweep.config)}
        return {"project": {"sweep": {**known, "state": "RUNNING", "runs": {"edges": []}}}}

    def _CreateAgent(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createAgent": {"agent": {"id": variables["sweep"]}}}

    def _Heartbeat(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        sweep, commands = self.sweeps[variables["id"]], []
        if not json.loads(variables["runState"]):  # the agent has nothing to do
            if sweep.handed_out < len(sweep.points):
                point = sweep.points[sweep.handed_out]
                run = {
                    "type": "run",
                    "run_id": f"{sweep.name}-run{sweep.handed_out}",
                    "program": sweep.program,
                    "args": {key: {"value": value} for key, value in point.items()},
                }
                sweep.handed_out += 1
                commands = [run]
            else:
                commands = [{"type": "exit"}]
        agent = {"id": variables["id"]}
        return {"agentHeartbeat": {"agent": agent, "commands": json.dumps(commands)}}

    def _project(self) -> dict[str, Any]:
        entity = {"id": "1", "name": ENTITY}
        return {"id": "1", "name": PROJECT, "entity": entity}


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that leaves in the middle of a sentence is none."""


def _handler(server: WandbServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self._body()
            if self._failed(body):
                return
            if self.path == "/graphql":
                request = json.loads(body)
                self._answer(server.graphql(request["query"], request.get("variables") or {}))
            elif found := re.fullmatch(r"/files/[^/]+/[^/]+/([^/]+)/file_stream", self.path):
                self._answer(server.stream(found[1], json.loads(body)))
            else:
                self._answer({}, 404)

        def do_PUT(self) -> None:
            body = self._body()
            if self._failed(body):
                return
            _, _, run, name = unquote(self.path).split("/", 3)
            server.upload(run, name, body)
            self._answer({})

        def _body(self) -> bytes:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            return body

        def _failed(self, body: bytes) -> bool:
            fault = server.fault_of(self.path, body)
            if fault == "refuse":
                self._answer({"error": "out of order"}, 500)
            elif fault is not None:
                if fault == "hang":
                    server.hang()
                self.close_connection = True
            return fault is not None

        def _answer(self, value: Mapping[str, Any], status: int = 200) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing on the terminal."""

    return Handler
