"""Imports are acyclic, and start-up imports only what it needs."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "seven_exp"

# Room -> the rooms of this package it may import from.
ARROWS = {
    "messages": set(),
    "registry": {"messages"},
    "files": set(),
    "console": set(),
    "config": {"messages", "registry"},
    "pruning": {"messages", "registry"},
    "shrink": {"pruning"},
    "tasks": {"pruning", "registry"},
    "models": {"messages", "registry", "tasks"},
    "datasets": {"messages", "registry", "files", "tasks", "models"},
    "tracking": {"config", "files", "messages", "registry"},
    "analysis": {"pruning", "tracking"},
    "training": {
        *("config", "files", "messages", "registry"),
        *("analysis", "datasets", "pruning", "tasks"),
    },
    "runs": {
        *("config", "console", "files", "messages", "registry"),
        *("analysis", "datasets", "models", "pruning", "shrink", "tasks", "tracking", "training"),
    },
    "compare": {"config", "console", "files", "messages", "registry", "runs", "tracking"},
    "export": {
        *("config", "console", "files", "messages", "registry"),
        *("datasets", "models", "pruning", "runs", "shrink", "tasks"),
    },
    "measure": {
        *("config", "console"),
        *("datasets", "export", "runs", "shrink", "tasks", "tracking", "training"),
    },
    "cli": {
        *("config", "console", "files", "messages", "registry"),
        *("compare", "datasets", "export", "measure", "runs", "tracking", "training"),
    },
    "__main__": {"cli"},
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


def test_the_arrows_have_an_order():
    # Raises CycleError where they go round in a circle.
    order = list(TopologicalSorter(ARROWS).static_order())
    assert order.index("config") < order.index("training") < order.index("cli")


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_file_imports_itself_by_way_of_others():
    files = {module(path): path for path in FILES}
    imports = {}
    for name, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        imports[name] = (found & files.keys()) - {name}
    assert len(list(TopologicalSorter(imports).static_order())) == len(files)


def test_the_core_needs_torch_alone():
    # torch's GPU builds include Triton.
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
    "lm_eval",
}


def test_the_command_line_starts_without_heavy_libraries():
    assert not loaded_by("import seven_exp.cli.main, seven_exp.cli.train") & HEAVY


def test_asking_for_help_loads_nothing_heavy():
    for command in ("export", "measure", "plan"):
        assert not loaded_by(f"import seven_exp.cli.{command}") & HEAVY


@pytest.mark.slow
def test_comparing_needs_no_torch():
    assert "torch" not in loaded_by("import seven_exp.cli.compare")
    assert "torch" not in loaded_by("import seven_exp.cli.sweep_compare")


def test_train_is_a_thin_shell():
    assert len((ROOT / "train.py").read_text().splitlines()) < 40
