"""A ``python`` that starts with torch and the rest imported: a server forks each process.

The imports of a run take longer than a tiny run. ``python()`` is an executable that takes a script,
``-m module`` or ``-c code`` as Python does. The process has the environment, folder, streams,
signals and exit code of the call. Tests of how Python itself starts (``PYTHONPATH``, variables that
are read while a package is imported, process groups) take ``sys.executable``.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
import types
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

IMPORTS = (
    *("torch", "torch._dynamo", "torchvision.datasets", "torchvision.models", "sklearn.datasets"),
    *("matplotlib.pyplot", "wandb", "scipy.stats", "hydra", "seven_exp.cli.train"),
    *("seven_exp.runs.run", "seven_exp.console", "seven_exp.cli.compare"),
    *("seven_exp.cli.export", "seven_exp.cli.sweep_check"),
    *("hydra_plugins.hydra_joblib_launcher.joblib_launcher", "hydra_plugins.seven_exp_optuna"),
    *("hydra_plugins.hydra_submitit_launcher.submitit_launcher", "hydra_plugins.seven_exp_ray"),
)
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def python() -> str:
    """The executable."""
    return os.environ["PRELOADED_PYTHON"]


def start(folder: str) -> None:
    """Start the server, which ends with this process; it imports when it is first needed."""
    import subprocess

    address, python = Path(folder, "socket"), Path(folder, "python")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(64)
    root = Path(__file__).parent.parent
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(listening.fileno())],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
        pass_fds=[listening.fileno()], cwd=root,
        env={
            **os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1",
            "TMPDIR": folder,
        },
    )  # fmt: skip
    listening.close()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {address} "$@"\n')
    python.chmod(0o755)
    os.environ["PRELOADED_PYTHON"] = str(python)
    atexit.register(server.wait)
    atexit.register(server.stdin.close)


def serve(listening: socket.socket) -> None:
    """Fork a process for each call; returns in those processes only."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nothing is left of those that ended
    loaded = False
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            os._exit(0)
        call, _ = listening.accept()
        if not loaded:
            import importlib

            for name in IMPORTS:
                with suppress(ImportError):
                    importlib.import_module(name)
            for made in list(weakref.finalize._registry):
                # No process removes the files that they all have, such as W&B's folder.
                made.atexit = False
                if isinstance(folder := made.peek()[0], tempfile.TemporaryDirectory):
                    atexit.unregister(folder.cleanup)
            gc.freeze()  # a collection would copy every page that holds an object
            loaded = True
        if os.fork() == 0:
            listening.close()
            break
        call.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, streams, _, _ = socket.recv_fds(call, 8, 3)
    request = json.loads(call.recv(int(size), socket.MSG_WAITALL))
    process = os.fork()
    if process:
        watch(call, process)
    call.close()
    for place, stream in enumerate(streams):
        os.dup2(stream, place)
        os.close(stream)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    tempfile.tempdir = None  # the server's
    sys.argv = request["arguments"]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def watch(call: socket.socket, process: int) -> None:
    """Send back the process's id and how it ended; it does not outlive its caller."""

    def end_with_the_caller() -> None:
        call.recv(1)
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    call.send(b"%8d" % process)
    threading.Thread(target=end_with_the_caller, daemon=True).start()
    _, status = os.waitpid(process, 0)
    with suppress(BrokenPipeError):
        call.send(b"%8d" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def run() -> None:
    """What Python does with its arguments."""
    import runpy

    first = sys.argv.pop(0)
    if first == "-c":
        code, sys.argv[0], sys.path[0] = sys.argv[0], "-c", ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.path[0] = str(Path.cwd())
        for name in (sys.argv[0], f"{sys.argv[0]}.__main__"):
            sys.modules.pop(name, None)
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv.insert(0, first)
        sys.path[0] = str(Path(first).absolute().parent)
        runpy.run_path(first, run_name="__main__")


def end(work: Callable[[], None]) -> NoReturn:
    """Do it and end as Python does, but for freeing each object, which takes seconds."""
    code = 0
    try:
        work()
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        code = 1
        sys.excepthook(*sys.exc_info())
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(code)


def call(address: str, arguments: list[str]) -> None:
    """Have the server run it, forward signals to it, and end as it does."""
    if arguments[0] == "-u":
        arguments = arguments[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED)
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    request = json.dumps(
        {
            "arguments": arguments,
            "environment": dict(os.environ),
            "folder": str(Path.cwd()),
        }
    ).encode()
    socket.send_fds(server, [b"%8d" % len(request)], [0, 1, 2])
    server.sendall(request)
    process = int(server.recv(8, socket.MSG_WAITALL))
    for name in FORWARDED:
        signal.signal(name, lambda number, _: os.kill(process, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FORWARDED)
    code = int(server.recv(8, socket.MSG_WAITALL))
    if code < 0:
        with suppress(OSError):  # of SIGKILL
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(socket.socket(fileno=int(sys.argv[2])))
        end(run)
    else:
        call(sys.argv[1], sys.argv[2:])
