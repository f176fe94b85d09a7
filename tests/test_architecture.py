"""Imports run downwards only, and starting up does not wait for what it does not need."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "seven_exp"

# Room -> the rooms of this package it may import from.
ARROWS = {
    "__main__": {"command", "registry"},
    "registry": set(),
    "atomic": set(),
    "pruning": {"registry"},
    "hub": set(),
    "tasks": {"pruning"},
    "models": {"registry", "hub", "tasks"},
    "datasets": {"registry", "atomic", "hub", "locks", "tasks"},
    "tracking": {"registry", "atomic", "config"},
    "analysis": {"pruning", "tracking"},
    "plugins": {"registry"},
    "config": {"plugins", "registry", "pruning", "models", "datasets", "training"},
    "reads": {"config", "pruning"},
    "training": {
        *("registry", "analysis", "atomic", "config", "pruning", "datasets", "tasks"),
        *("locks", "reads"),
    },
    "runs": {"atomic", "config", "datasets", "plugins", "pruning", "reads"},
    "locks": set(),
    "ledger": {"atomic", "config", "locks", "plugins", "runs"},
    "console": set(),
    "arguments": set(),
    "compare": {
        *("arguments", "registry", "atomic", "config", "console", "ledger", "runs", "tracking"),
    },
    "build": {"config", "datasets", "models", "tasks"},
    "experiment": {
        *("analysis", "build", "config", "console", "runs", "tracking", "training"),
        *("datasets", "pruning", "reads", "tasks"),
    },
    "restore": {"build", "config", "datasets", "models", "plugins", "pruning", "runs"},
    "shrink": {"pruning"},
    "export": {
        *("arguments", "build", "config", "restore", "runs", "shrink"),
        *("atomic", "console", "datasets", "models", "pruning", "registry", "tasks"),
    },
    "measure": {
        *("arguments", "build", "config", "export", "restore", "runs", "shrink", "training"),
        *("atomic", "console", "datasets", "tasks"),
    },
    "command": {
        *("compare", "config", "console", "datasets", "experiment", "ledger", "registry", "runs"),
        *("tracking", "training"),
    },
    "sweep_check": {"command", "config"},
}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module]
            if node.module == "seven_exp":
                modules = [f"seven_exp.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        for module in modules:
            parts = module.split(".")
            if parts[0] == "seven_exp" and len(parts) > 1 and not parts[1].startswith("__"):
                yield parts[1]


FILES = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.name != "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    here = room(path)
    assert set(imported_rooms(path)) <= ARROWS[here] | {here}


def test_the_core_needs_torch_alone():
    # Triton comes with torch where it is of use.
    allowed = {*sys.stdlib_module_names, "torch", "triton", "seven_exp"}
    for path in (PACKAGE / "pruning").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert {name.split(".")[0] for name in names} <= allowed, path


def loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport sys; print(' '.join(m for m in sys.modules if '.' not in m))"
    return set(
        subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()
    )


HEAVY = {
    "torch",
    "transformers",
    "torchvision",
    "sklearn",
    "wandb",
    "pandas",
    "matplotlib",
    "scipy",
}


def test_the_command_line_starts_without_heavy_libraries():
    assert not loaded_by("import seven_exp.command") & HEAVY


def test_asking_for_help_loads_nothing_heavy():
    for command in ("export", "measure"):
        assert not loaded_by(f"import seven_exp.{command}.__main__") & HEAVY


def test_comparing_needs_no_torch():
    assert "torch" not in loaded_by("import seven_exp.compare.__main__")
    assert "torch" not in loaded_by("import seven_exp.compare.callback")


def test_train_is_a_thin_shell():
    assert len((ROOT / "train.py").read_text().splitlines()) < 40
