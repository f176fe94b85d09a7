"""A forked Python answers as a started one does."""

import os
import signal
import subprocess
import sys
import time

import pytest
from preloaded import python

CALLS = {
    "output": "import sys; print('out'); print('err', file=sys.stderr)",
    "arguments": "import sys; print(sys.argv, __name__)",
    "input": "import sys; print(sys.stdin.read()[::-1])",
    "environment": "import os; print(os.environ['OWN'], os.getcwd(), os.environ.get('HOME'))",
    "code": "import sys; sys.exit(75)",
    "message": "import sys; sys.exit('error: no')",
    "end": "import atexit; atexit.register(print, 'last'); print('first')",
    "thread": "import threading, time; threading.Timer(0.1, print, ['late']).start()",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "terminated": "import os; os.kill(os.getpid(), 15)",
    "folder": "import tempfile; print(tempfile.gettempdir())",
}


@pytest.mark.parametrize("call", CALLS)
def test_it_does_as_python_does(tmp_path, call):
    found = [
        subprocess.run(
            [executable, "-c", CALLS[call], "one", "-m", ""],
            input="abc", cwd=tmp_path, env={**os.environ, "OWN": "1"},
            capture_output=True, text=True,
        )
        for executable in (sys.executable, python())
    ]  # fmt: skip
    real, forked = [(done.returncode, done.stdout, done.stderr) for done in found]
    assert real == forked


def test_an_error_has_its_traceback():
    done = subprocess.run([python(), "-c", "1 / 0"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_signals_arrive_and_no_process_outlives_its_caller(tmp_path):
    own = tmp_path / "pid"
    code = (
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('heard', flush=True))\n"
        "pathlib.Path(sys.argv[1] + '.new').write_text(str(os.getpid()))\n"
        "os.rename(sys.argv[1] + '.new', sys.argv[1])\n"
        "while True: time.sleep(1)"
    )
    process = subprocess.Popen([python(), "-c", code, str(own)], stdout=subprocess.PIPE, text=True)
    while not own.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "heard\n"
    process.kill()
    # whoever holds the pipe's other end is gone
    assert process.communicate() == ("", None)
    assert process.returncode == -signal.SIGKILL
