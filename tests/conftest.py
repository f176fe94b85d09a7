"""Settings for all tests."""

import atexit
import gc
import itertools
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import preloaded
import pytest
from hypothesis import settings
from wandb_server import WandbServer

from seven_exp.cli.deferred_compiler import defer_compiler

defer_compiler()  # whose import takes longer than torch's
gc.disable()  # until the tests are collected: their imports make a million objects

settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
settings.register_profile("thorough", deadline=None, max_examples=300)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch  # not in the process that only hands out the tests

    # Test processes run side by side, one for each core.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


OF_THE_USER = re.compile(
    "(WANDB|SEVEN_EXP|SLURM|SUBMITIT|HYDRA|ACCELERATE|TORCHELASTIC|HF|TRANSFORMERS|TTY)_.*"
    "|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)"
    "|PYTHON(DONTWRITEBYTECODE|IOENCODING|UTF8|WARNINGS)|NO_COLOR|FORCE_COLOR|COLUMNS|LINES"
)
"""Environment variables that would change the tests' results, or their time."""

sys.dont_write_bytecode = False  # torch's import takes three times as long without bytecode

for _name in [name for name in os.environ if OF_THE_USER.fullmatch(name)]:
    # Now: some are read when a package is imported.
    del os.environ[_name]

# Read as torch is imported: threads that wait leave the processor to the tests beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if "PRELOADED_PYTHON" not in os.environ:  # the processes that run the tests share it
    _shared = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, _shared, ignore_errors=True)
    os.environ["MPLCONFIGDIR"] = f"{_shared}/matplotlib"  # the list of fonts is made once
    os.environ["XDG_CACHE_HOME"] = f"{_shared}/cache"  # the kernels are compiled once
    preloaded.start(_shared)


@pytest.fixture(scope="session")
def _homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, _homes: Iterator[Path]) -> None:
    """Tests start without these variables, logins or the user's own files."""
    for name in [name for name in os.environ if OF_THE_USER.fullmatch(name)]:
        # Left by the test before: trackers and launchers set some.
        monkeypatch.delenv(name)
    home = next(_homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


@pytest.fixture(autouse=True)
def _what_tests_register_is_gone_after_them(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plugins register things when they are imported: each test imports them anew."""
    from seven_exp.datasets.registry import DATASETS
    from seven_exp.datasets.transforms import TRANSFORMS
    from seven_exp.models.registry import MODELS
    from seven_exp.pruning.allocation import SCOPES
    from seven_exp.pruning.registry import PRUNERS
    from seven_exp.pruning.schedules import SCHEDULES
    from seven_exp.registry import ADDED_BY
    from seven_exp.tasks.metrics import METRICS
    from seven_exp.tracking.registry import TRACKERS
    from seven_exp.training.lr_schedules import LR_SCHEDULES
    from seven_exp.training.optimizers import OPTIMIZERS

    for registry in (
        *(DATASETS, LR_SCHEDULES, METRICS, MODELS, OPTIMIZERS),
        *(PRUNERS, SCHEDULES, SCOPES, TRACKERS, TRANSFORMS),
    ):
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    modules, added = set(sys.modules), dict(ADDED_BY)
    yield
    ADDED_BY.clear()
    ADDED_BY.update(added)
    for name in sys.modules.keys() - modules:
        if name.startswith(("seven_exp_plugin", "own", "spread")):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _logs_go_nowhere_else_after_a_test() -> Iterator[None]:
    """Libraries and Hydra add handlers, which would write to the streams of the test before."""
    loggers = [logging.getLogger(name) for name in (None, "seven_exp")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before, strict=True):
        logger.handlers = [handler for handler in logger.handlers if handler in handlers]


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: tests of trackers and launchers mostly wait."""
    return min(8, 1 + (os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow tests begin first, so that no worker is left with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Leave what is imported out of the garbage collections during the tests."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Else Triton's bindings print at exit which of their objects are left."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Pattern -> the folder of a tiny run with it, made once."""
    from test_conf import composed

    from seven_exp.runs.run import run_experiment
    from seven_exp.tracking import LocalRecord

    folders: dict[str, Path] = {}

    def get(pattern: str) -> Path:
        if pattern not in folders:
            folder = tmp_path_factory.mktemp("runs") / pattern.replace(":", "_")
            include = {"heads": "[*attention*]", "rows": "['*mlp*']"}.get(pattern, "null")
            config = composed(
                *("model.depth=2", "model.width=16", "model.mlp_width=16", "model.heads=2"),
                *("trainer.max_steps=12", "trainer.eval_interval=12", "tracker.mode=disabled"),
                *("pruner=magnitude_dyn", "sparsity=0.5", f"pruner.pattern={pattern}"),
                *(f"pruner.include={include}", f"cache_dir={folder / 'cache'}", "threads=1"),
            )
            run_experiment(config, folder, LocalRecord())
            folders[pattern] = folder
        return folders[pattern]

    return get


@pytest.fixture
def server() -> Iterator[WandbServer]:
    """A W&B server that knows all that its clients ask."""
    with WandbServer() as server:
        yield server
    assert server.unknown == []


@pytest.fixture
def client(server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """This process as a client of the server: W&B reads its environment when it starts."""
    from seven_exp.tracking.weights_and_biases import leave

    leave(60)
    for key, value in server.environment.items():
        monkeypatch.setenv(key, value)
    yield server
    leave(60)
