"""The page over HTTP: fresh at each reload, and nothing but the records within reach."""

import http.client
import json
import re
import signal
import socket
import subprocess
import threading
from pathlib import Path

import pytest
from preloaded import python

from seven_exp.compare.serve import Server

ROOT = Path(__file__).parent.parent


@pytest.fixture
def served(tmp_path):
    """(server, folder): a folder with a run, and a link to a secret outside the folder."""
    folder = tmp_path / "runs"
    run = folder / "0 a"
    run.mkdir(parents=True)
    (run / "results.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    (run / "page.html").write_text("<script>1</script>")
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "runs_too").mkdir()
    (tmp_path / "runs_too" / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    server = Server([folder], lambda: "<p>page</p>", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server, folder
    server.shutdown()
    server.server_close()
    thread.join()


def get(server, path, method="GET", host=None, token=None):
    path = f"/{server.token if token is None else token}{path}"
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host or f"127.0.0.1:{server.server_port}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    connection.close()
    return answer, body


def test_the_page_and_the_records_are_served(served):
    server, folder = served
    answer, body = get(server, "/")
    assert (answer.status, body) == (200, "<p>page</p>")
    assert answer.headers["Cache-Control"] == "no-cache"
    answer, body = get(server, "/records/0/0%20a/results.json")
    assert (answer.status, body) == (200, "{}")
    answer, body = get(server, "/records/0/0%20a/metrics.jsonl")
    assert answer.headers.get_content_type() == "text/plain"
    answer, body = get(server, "/records/0/0%20a/")
    assert "results.json" in body
    assert (
        server.link(folder / "0 a" / "results.json")
        == f"/{server.token}/records/0/0 a/results.json"
    )
    with pytest.raises(ValueError, match="not below"):
        server.link(folder.parent / "secret")


@pytest.mark.parametrize(
    "path",
    [
        "/records/0/../secret",
        "/records/0/../../../../../../etc/passwd",
        "/records/0/%2e%2e/secret",
        "/records/0/..%2fsecret",
        "/records/0/../runs_too/secret",
        "/records/0//etc/passwd",
        "/records/0/%2fetc%2fpasswd",
        "/records/0/link",
        "/records/0/%00",
        "/records/-2/secret",
        "/records/1/secret",
        "/records/x/secret",
        "/records",
        "/etc/passwd",
        "/../secret",
        "//etc/passwd",
    ],
)
def test_nothing_else_is_in_reach(served, path):
    answer, body = get(served[0], path)
    assert answer.status == 404
    assert "secret" not in body.replace(path, "")
    assert "root:" not in body


@pytest.mark.parametrize("token", ["", "x", "records/0", "%00"])
@pytest.mark.parametrize("path", ["/", "/records/0/0%20a/results.json"])
def test_nothing_is_served_without_the_token(served, path, token):
    answer, body = get(served[0], path, token=token)
    assert answer.status == 404
    assert "page" not in body
    assert served[0].token not in body
    assert len(served[0].token) >= 32


def test_records_are_read_only(served):
    server, folder = served
    for method in ("POST", "PUT", "DELETE"):
        assert get(server, "/records/0/0%20a/results.json", method)[0].status == 501
    assert (folder / "0 a" / "results.json").read_text() == "{}"


def test_a_page_elsewhere_can_not_read_under_its_own_name(served):
    assert get(served[0], "/", host="elsewhere.example")[0].status == 403
    assert (
        get(served[0], "/records/0/0%20a/results.json", host="elsewhere.example")[0].status == 403
    )
    assert get(served[0], "/", host=f"localhost:{served[0].server_port}")[0].status == 200


def test_a_page_among_the_records_has_no_access_to_them(served):
    answer, _ = get(served[0], "/records/0/0%20a/page.html")
    assert answer.headers["Content-Security-Policy"] == "sandbox allow-scripts"
    assert "Content-Security-Policy" not in get(served[0], "/")[0].headers


def test_it_listens_on_this_machine_alone(served):
    assert served[0].socket.getsockname()[0] == "127.0.0.1"


def record(folder, seed, accuracy=0.5):
    run = folder / str(seed)
    run.mkdir()
    (run / "results.json").write_text(
        json.dumps({
            "run_hash": str(seed), "status": "finished", "pruner": "magnitude", "model": "mlp",
            "dataset": "digits", "seed": seed, "sparsity_target": 0.9, "params_nonzero": 1,
            "metrics": {"accuracy": accuracy}, "seconds": 1.0, "config": {"seed": seed},
        })
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_serves_anew_until_it_is_interrupted(tmp_path):
    record(tmp_path, 0)
    command = [python(), "-m", "seven_exp", "compare", str(tmp_path), "--serve", "--port", "0"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A shell's background jobs are born deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        line = process.stdout.readline()
        address = r"http://127\.0\.0\.1:(\d+)(/[\w-]{43}/) \(stop with Ctrl-C\)\n"
        port, start = re.fullmatch(address, line).groups()
        port = int(port)

        def seeds():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", start)
            page = connection.getresponse().read().decode()
            found = re.findall(r'id="data">(.*?)</script>', page)
            return json.loads(*found)["shared"]["runs"]

        assert seeds()["seed"] == [0]
        record(tmp_path, 1)
        (found,) = (seeds(),)
        assert found["seed"] == [0, 1]
        assert found["link"] == [f"{start}records/0/{seed}/results.json" for seed in (0, 1)]
        taken = subprocess.run([*command[:-1], str(port)], capture_output=True, text=True, cwd=ROOT)
        assert taken.returncode == 2
        assert re.fullmatch(rf"error: --port is {port}: .*in use.*\n", taken.stderr)
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, error, out.strip()) == (0, "", "")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0
    assert not (tmp_path / "comparison.html").exists()
