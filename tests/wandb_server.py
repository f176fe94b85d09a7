"""A W&B server on the loopback interface that keeps what a real client sends it.

It speaks as much of W&B's protocol as `wandb.init`, `log` and `finish` need, artifacts, alerts,
saved views and reports, `wandb sweep` and `wandb agent`: GraphQL at ``/graphql``, the stream of
rows at ``/files/.../file_stream``, and uploads to addresses that it gives out itself. It can also
fail, in the ways that servers do.
"""

import gzip
import itertools
import json
import re
import threading
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import unquote

import yaml

ENTITY, PROJECT = "tester", "seven_exp"

Fault = Literal["refuse", "deny", "miss", "hang", "drop"]
"""HTTP 500; 403; 404; no answer; a connection closed without one."""

STATUS = {"refuse": 500, "deny": 403, "miss": 404}


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
class Artifact:
    """A version of a collection: its files, the runs that use it and the one that made it."""

    id: str
    collection: str
    type: str
    digest: str
    client: str
    metadata: dict[str, Any]
    maker: str | None = None
    users: list[str] = field(default_factory=list)
    manifest: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False


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
    about: str = ""
    begun: bool = False

    def concerns(self, request: bytes, runs: list[str]) -> bool:
        """Whether it strikes this request, the server knowing these runs."""
        if self.about.encode() not in request:
            return False
        if self.run is not None:
            if self.run >= len(runs) or runs[self.run].encode() not in request:
                return False
            self.begun |= b"wandb-history.jsonl" in request
        return self.times > 0 and (self.begun or self.run is None)


class RefusedError(Exception):
    """What a query gets for an answer."""


class WandbServer:
    """``with WandbServer() as server: ...``; clients find it by `environment`."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.sweeps: dict[str, Sweep] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: dict[str, dict[str, Any]] = {}
        self.charts: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []
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

    def fail(
        self, fault: Fault, *, times: int = 10**9, run: int | None = None, about: str = ""
    ) -> None:
        """Fail the next ``times`` requests, then be well again.

        Args:
            fault: How.
            times: How many.
            run: Only those about the run of this number, from its first rows of history on; None
                for all, at once.
            about: Only those with this text, such as a query's name.
        """
        self._troubles.append(Trouble(fault, times, run, about))

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
        operation = found[1][0].upper() + found[1][1:] if found else query[:40]
        answer: Callable[[Mapping[str, Any]], dict[str, Any]] | None
        answer = getattr(self, f"_{operation}", None)
        with self._lock:
            if answer is None:
                self.unknown.append(operation)
                return {"errors": [{"message": f"unknown operation {operation}"}]}
            try:
                return {"data": answer(variables)}
            except RefusedError as error:
                return {"errors": [{"message": str(error)}]}

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
            owner = self.artifacts.get(name) or self.runs[name]
            owner.files[file] = content

    def _Viewer(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        viewer = {"id": "1", "entity": ENTITY, "username": ENTITY, "email": None, "flags": "{}"}
        return {"viewer": {**viewer, "name": ENTITY, "admin": False, "teams": {"edges": []}}}

    _GetViewer = _GetDefaultEntity = _Viewer

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
            "tags": run.about.get("tags", []),
            "notes": None,
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"model": {**self._project(), "bucket": {**about, **counts, **tails}}}

    def _NotifyScriptableRunAlert(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        self.alerts.append(dict(variables))
        return {"notifyScriptableRunAlert": {"success": True}}

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

    def _ArtifactType(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        found = self._artifact(variables["name"])
        kind = None if found is None else {"artifactType": {"name": found.type}}
        return {"project": {"artifact": kind}}

    def _CreateArtifact(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        told = variables["input"]
        collection, digest = told["artifactCollectionName"], told["digest"]
        alike = (
            a for a in self.artifacts.values() if (a.collection, a.digest) == (collection, digest)
        )
        artifact = next(alike, None)
        if artifact is None:
            artifact = Artifact(
                *(f"artifact{len(self.artifacts)}", collection, told["artifactTypeName"], digest),
                *(told["clientID"], json.loads(told["metadata"] or "{}"), told["runName"]),
            )
            self.artifacts[artifact.id] = artifact
        about = {"id": artifact.id, "state": "COMMITTED" if artifact.complete else "PENDING"}
        sequence = {"latestArtifact": None}
        return {"createArtifact": {"artifact": {**about, "artifactSequence": sequence}}}

    def _CreateArtifactManifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"createArtifactManifest": {"artifactManifest": self._manifest(variables)}}

    def _UpdateArtifactManifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(variables)}}

    def _manifest(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        artifact = variables.get("artifactID") or variables["artifactManifestID"]
        address = f"{self.url}/upload/{artifact}/wandb_manifest.json"
        file = {"id": "1", "name": "wandb_manifest.json", "displayName": None}
        return {"id": artifact, "file": {**file, "uploadUrl": address, "uploadHeaders": []}}

    def _CreateArtifactFiles(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        def node(spec: Mapping[str, Any]) -> dict[str, Any]:
            name, artifact = spec["name"], spec["artifactID"]
            return {
                "id": name, "name": name, "displayName": name, "uploadHeaders": [],
                "uploadUrl": f"{self.url}/upload/{artifact}/{name}", "uploadMultipartUrls": None,
                "storagePath": f"{artifact}/{name}", "artifact": {"id": artifact},
            }  # fmt: skip

        files = variables["input"] if "input" in variables else variables["artifactFiles"]
        specs = files["artifactFiles"] if isinstance(files, Mapping) else files
        return {"createArtifactFiles": {"files": {"edges": [{"node": node(s)} for s in specs]}}}

    def _CommitArtifact(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self.artifacts[variables["artifactID"]]
        artifact.complete = True
        return {"commitArtifact": {"artifact": {"id": artifact.id, "digest": artifact.digest}}}

    def _UseArtifact(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        told = variables.get("input", variables)
        self.artifacts[told["artifactID"]].users.append(told["runName"])
        return {"useArtifact": {"artifact": {"id": told["artifactID"]}}}

    def _CreateCustomChart(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        name = variables["chartName"]
        if name in self.charts:
            raise RefusedError("it exists")
        self.charts[name] = json.loads(variables["spec"])
        return {"createCustomChart": {"chart": {"id": f"{ENTITY}/{name}"}}}

    def _View(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = [
            {"node": view}
            for view in self.views.values()
            if view["type"] == variables["viewType"] and view["name"] == variables["viewName"]
        ]
        return {"project": {"allViews": {"edges": edges}}}

    def _UpsertView2(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        key = variables.get("id") or b64encode(b"View:%d" % len(self.views)).decode()
        inserted = key not in self.views
        project = {"name": PROJECT, "entityName": ENTITY}
        about = {"id": key, "project": project, "updatedAt": None, "createdAt": None}
        self.views[key] = {**variables, **about}
        return {"upsertView": {"view": self.views[key], "inserted": inserted}}

    _UpsertView = _UpsertView2

    def _GetProjects(self, _: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        about = {"entityName": ENTITY, "createdAt": "2026-01-01T00:00:00", "isBenchmark": False}
        node = {"__typename": "Project", **self._project(), **about, "user": None}
        page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
        edges = [{"cursor": "1", "node": node}]
        return {"models": {"edges": edges, "pageInfo": page}}

    def _ProjectViews(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        edges = [
            {"node": {**view, "user": None}, "cursor": key}
            for key, view in self.views.items()
            if view["type"] == variables.get("viewType", "runs")
        ]
        page = {"endCursor": None, "hasNextPage": False}
        return {"project": {"allViews": {"edges": edges, "pageInfo": page}}}

    def _SpecificReport(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"view": next(v for k, v in self.views.items() if k in variables["reportId"])}

    def _ArtifactByID(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        return {"artifact": self._told(self.artifacts[variables["id"]])}

    def _ArtifactMembershipByName(self, variables: Mapping[str, Any]) -> dict[str, Any]:  # noqa: N802
        artifact = self._artifact(variables["name"])
        if artifact is None:
            return {"project": {"artifactCollectionMembership": None}}
        told = self._told(artifact)
        membership = {
            "__typename": "ArtifactCollectionMembership", "id": artifact.id, "versionIndex": 0,
            "createdAt": told["createdAt"], "aliases": [],
            "artifactCollection": told["artifactSequence"], "artifact": told,
        }  # fmt: skip
        return {"project": {"artifactCollectionMembership": membership}}

    def _told(self, artifact: Artifact) -> dict[str, Any]:
        collection = {"name": artifact.collection, "project": self._project()}
        sequence = {"__typename": "ArtifactSequence", **collection}
        alias = {"__typename": "ArtifactAlias", "id": "1", "alias": "latest"}
        return {
            "__typename": "Artifact", "id": artifact.id, "artifactSequence": sequence,
            "versionIndex": 0, "artifactType": {"name": artifact.type}, "description": None,
            "metadata": json.dumps(artifact.metadata), "ttlDurationSeconds": -2,
            "ttlIsInherited": True, "tags": [], "historyStep": None, "state": "COMMITTED",
            "size": sum(map(len, artifact.files.values())), "digest": artifact.digest,
            "digestAlgorithm": "MANIFEST_MD5", "commitHash": None,
            "fileCount": len(artifact.files), "updatedAt": None,
            "createdAt": "2026-01-01T00:00:00",
            "aliases": [{**alias, "artifactCollection": sequence}],
        }  # fmt: skip

    def _artifact(self, name: str) -> Artifact | None:
        """The latest version of a collection."""
        collection = name.rpartition("/")[2].partition(":")[0]
        found = [a for a in self.artifacts.values() if a.collection == collection]
        return found[-1] if found else None

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
        return {"id": "1", "internalId": "1", "name": PROJECT, "entity": entity}


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
            if fault in STATUS:
                self._answer({"errors": [{"message": "permission denied"}]}, STATUS[fault])
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
