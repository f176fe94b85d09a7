"""The user's own files and modules, which register things: imported, and hashed by content."""

import hashlib
import importlib
import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Collection, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from seven_exp.config import ConfigError
from seven_exp.files.hashing import hash_of
from seven_exp.registry import ADDED_BY, adding


def load_plugins(plugins: Sequence[str]) -> None:
    """Import Python files or modules, each once; what they register is attributed to them.

    Raises:
        ConfigError: A plugin can't be found or imported.
    """
    for plugin in plugins:
        try:
            with adding(_key(plugin)):
                if plugin.endswith(".py"):
                    _import_file(_path(plugin))
                else:
                    importlib.import_module(plugin)
        except Exception as error:
            where = f"'{plugin}'{_line(plugin, error)}"
            raise ConfigError(f"plugins: can't import {where}: {error}") from error


def _line(plugin: str, error: Exception) -> str:
    """The line of a plugin's file that fails; a syntax error says it itself."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).name == Path(plugin).name]
    return f", line {lines[-1]}" if lines else ""


def matters(plugin: str, used: Collection[tuple[str, str]]) -> bool:
    """Whether an imported plugin contributes to a run that uses these things.

    A plugin that has registered nothing always counts, because its effect is unknown.

    Args:
        plugin: As for `load_plugins`.
        used: Kind and name of each thing.
    """
    key = _key(plugin)
    return key not in ADDED_BY.values() or any(ADDED_BY.get(thing) == key for thing in used)


def content_of(plugin: str) -> str:
    """SHA-256 of a plugin's source; for a package, of all its Python files.

    A plugin without source, such as a C module, is identified by its name.

    Raises:
        OSError: A file can't be read.
    """
    if plugin.endswith(".py"):
        return hash_of(_path(plugin))
    spec = importlib.util.find_spec(plugin)
    return plugin if spec is None else _content(spec) or plugin


def described(plugin: str, directory: str | None) -> str:
    """A plugin's location and the hash of its content, without running its code.

    Args:
        plugin: As for `load_plugins`.
        directory: Last folder to search for modules.
    """
    try:
        if plugin.endswith(".py"):
            return f"{_path(plugin)} (SHA-256 {hash_of(_path(plugin))})"
        places: Sequence[str] | None = [*sys.path, *([] if directory is None else [directory])]
        spec, name = None, ""
        for part in plugin.split("."):
            # `importlib.util.find_spec` would import the packages that contain a module.
            name = f"{name}.{part}" if name else part
            spec = PathFinder.find_spec(name, places)
            if spec is None:
                return f"{plugin} (not found)"
            places = spec.submodule_search_locations
        assert spec is not None
        return f"{spec.origin or plugin} (SHA-256 {_content(spec) or 'unknown'})"
    except OSError as error:
        return f"{plugin} ({error.strerror})"


def _content(spec: ModuleSpec) -> str | None:
    """SHA-256 of a module's source; None if it has none."""
    if spec.submodule_search_locations is not None:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        files = {
            path.relative_to(folder).as_posix(): hash_of(path)
            for folder in folders
            for path in folder.rglob("*.py")
        }
        return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
    if spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return hash_of(Path(spec.origin))


def _key(plugin: str) -> str:
    return str(_path(plugin)) if plugin.endswith(".py") else plugin


def _path(plugin: str) -> Path:
    return Path(plugin).expanduser().resolve()


def _import_file(path: Path) -> None:
    """Run a file as a module, once: registering twice is a mistake."""
    name = re.sub(r"\W", "_", f"seven_exp_plugin{path.with_suffix('')}")
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
