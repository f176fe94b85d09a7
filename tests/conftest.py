"""Settings for all tests."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("default")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # Test processes run side by side, one for each core.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"


OF_THE_USER = re.compile(
    "(WANDB|SEVEN_EXP|SLURM|SUBMITIT|HYDRA|ACCELERATE|TORCHELASTIC|HF|TRANSFORMERS|TTY)_.*"
    "|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_(ADDR|PORT)"
    "|PYTHONIOENCODING|PYTHONUTF8|PYTHONWARNINGS|NO_COLOR|FORCE_COLOR|COLUMNS|LINES"
)
"""Environment variables that change what a test of ours would see."""

for _name in [name for name in os.environ if OF_THE_USER.fullmatch(name)]:
    # Now: some are read when a package is imported.
    del os.environ[_name]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each test says what it needs; none logs in anywhere or touches the user's own files."""
    for name in [name for name in os.environ if OF_THE_USER.fullmatch(name)]:
        # Left by the test before: trackers and launchers set some.
        monkeypatch.delenv(name)
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))


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
