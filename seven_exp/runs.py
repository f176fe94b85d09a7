"""A run's identity, and the record that it leaves."""

import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import reduce
from importlib import metadata
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seven_exp import __version__
from seven_exp.atomic import disk_errors, replacing
from seven_exp.config import RunConfig, load_plugins
from seven_exp.plugins import content_of, hash_of, matters
from seven_exp.reads import Method, unread

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
"""Version of results.json's layout."""

RESULTS = 1
"""Raised when the same config comes to other results than before; every run is then done again."""

START = ("model", "dataset", "optimizer")
"""Kinds of registered things that decide what dense training ends in."""

MASKS, FINAL = "masks.safetensors", "checkpoints/final.safetensors"
"""Files of a run whose SHA-256 its record holds."""

_SECRET = re.compile(
    r"((?:key|token|secret|password|credentials?)=).+|(\w+://[^/@:]*:)[^/@]+(?=@)", re.IGNORECASE
)
"""A key with its secret, and the password in an address."""

PLACES = {"data_dir", "cache_dir", "download", "workers"}
"""Keys of a data set that say where it lies or how it is read, not what it is."""


def run_hash(config: RunConfig, *, prunes: bool | None = None) -> str:
    """Twelve hex digits of `run_identity`."""
    return digest(run_identity(config, prunes=prunes))


def run_identity(config: RunConfig, *, prunes: bool | None = None) -> dict[str, Any]:
    """All that decides a run's result.

    That is the config less where things lie, where figures go, what is looked at on the way, on
    what device, whether at all, and what the run never reads (`seven_exp.reads`); the content of
    files of the user's own that it names; and `RESULTS`. For the dense reference, less everything
    that only pruning reads.

    Args:
        config: Checked already.
        prunes: Whether anything is pruned; None: as the config says.

    Raises:
        ConfigError: A plugin can't be imported.
        OSError: A file that the config names can't be read.
    """
    load_plugins(config.plugins)
    method = Method.of(config, prunes=prunes)
    identity = config.model_dump(
        exclude={
            **dict.fromkeys(
                (
                    *("output_root", "cache_dir", "device", "threads", "plugins"),
                    *("tracker", "analysis", "run"),
                ),
                True,
            ),
            "trainer": {"log_interval", "save_model"},
        }
    )
    identity["version"] = [RESULTS, SCHEMA]
    identity["model"], identity["dataset"] = model_identity(config), data_identity(config)
    identity["pruner"] |= method.chosen
    identity["sparsity"] = config.sparsity if method.prunes else 0.0
    ignored = unread(method)
    for key in ignored:
        *path, last = key.split(".")
        reduce(getitem, path, identity).pop(last, None)
    of_pruning = ["pruner"]
    if method.prunes:
        of_pruning += ["scope"] if "schedule.name" in ignored else ["scope", "schedule"]
    identity["plugins"] = plugins_identity(config, *START, *of_pruning)
    return identity


def model_identity(config: RunConfig) -> dict[str, Any]:
    """The model's config, files named by their content: a path may hold another tomorrow."""
    identity = config.model.model_dump()
    if config.model.checkpoint is not None:
        identity["checkpoint"] = hash_of(Path(config.model.checkpoint).expanduser())
    if "/" in config.model.name and Path(config.model.name).expanduser().is_dir():
        identity["name"] = fingerprint(Path(config.model.name))
    return identity


def data_identity(config: RunConfig) -> dict[str, Any]:
    """The data set's config less where it lies, and what its files are known by.

    A published data set is known by its name.
    """
    from seven_exp.datasets import KNOWN_BY

    identity = config.dataset.model_dump(exclude=PLACES)
    known_by, data_dir = KNOWN_BY[config.dataset.name], config.dataset.arguments.get("data_dir")
    if known_by != "name" and data_dir is not None:
        place = Path(str(data_dir)).expanduser()
        identity["files"] = fingerprint(place)
        if known_by == "place":
            # Arrays of one shape are files of one size.
            content = hash_of(place) if place.is_file() else identity["files"]
            identity["files"] = digest({"place": str(place.resolve()), "files": content})
    return identity


def plugins_identity(config: RunConfig, *kinds: str) -> list[str]:
    """The content of each plugin that has a part in what the config names of these kinds.

    Raises:
        ConfigError: One can't be imported.
        OSError: One can't be read.
    """
    from seven_exp.pruning import PRUNERS

    load_plugins(config.plugins)
    names = {
        "model": config.model.name,
        "dataset": config.dataset.name,
        "optimizer": config.optimizer.name,
        "pruner": config.pruner.name,
        "schedule": config.schedule.name,
        "scope": config.pruner.scope or PRUNERS[config.pruner.name].scope,
    }
    used = [(kind, names[kind]) for kind in kinds]
    return [content_of(plugin) for plugin in config.plugins if matters(plugin, used)]


def fingerprint(folder: Path) -> str:
    """Twelve hex digits of the names and sizes of all files below a folder.

    Their content is not read, which would take longer than many a run. A file that is replaced by
    another of its size is not noticed.
    """
    folder = folder.expanduser()
    sizes: dict[str, int] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        # Strings: a path object a file takes longer than all else that is done here.
        inside = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in names:
            sizes[prefix + name] = os.stat(f"{parent}/{name}").st_size  # noqa: PTH116
    return digest(sizes)


def digest(identity: Mapping[str, Any]) -> str:
    """Twelve hex digits of a JSON-like mapping, whatever the order of its keys."""
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Versions of what figures depend on."""
    used = "transformers" in sys.modules
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core", "wandb")
    return {
        "seven_exp": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        **({"transformers": metadata.version("transformers")} if used else {}),
    }


def provenance(device: str) -> dict[str, Any]:
    """Who made a run: host, processor, device, code, libraries, and the command.

    Args:
        device: Name of what computes.
    """
    return {
        "versions": versions(),
        "device": device,
        "host": platform.node(),
        "processor": processor(),
        "git": git_state(Path(__file__).parent),
        "directory": str(Path.cwd()),
        "command": command(sys.argv),
    }


def now() -> str:
    """The date and time, UTC, to the second, as ISO 8601 writes it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(arguments: Sequence[str]) -> str:
    """A command line as a shell takes it, with stars in place of what looks like a secret."""
    return shlex.join(_SECRET.sub(r"\1\2***", argument) for argument in arguments)


def processor() -> str:
    """What this machine's CPU is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state(folder: Path) -> str | None:
    """Commit of the source tree, "+dirty" where files differ from it; None outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()


def save_masks(path: Path, masks: Mapping[str, "Tensor"]) -> None:
    """Write masks packed to bits, eight a byte, with each shape in the file's metadata.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_file

    from seven_exp.pruning import pack_bits

    packed = {name: pack_bits(mask.cpu()) for name, mask in masks.items()}
    shapes = {name: json.dumps(list(mask.shape)) for name, mask in masks.items()}
    with replacing(path) as partial, disk_errors():
        save_file(packed, partial, metadata=shapes)


def load_masks(path: Path) -> "dict[str, Tensor]":
    """Read what `save_masks` wrote: parameter name -> bool tensor on the CPU.

    Raises:
        ValueError: The file is missing or broken.
    """
    from safetensors import SafetensorError, safe_open

    from seven_exp.pruning import unpack_bits

    try:
        with safe_open(path, framework="pt") as file:
            shapes = file.metadata() or {}
            return {
                name: unpack_bits(file.get_tensor(name), json.loads(shape))
                for name, shape in shapes.items()
            }
    except (OSError, SafetensorError) as error:
        raise ValueError(f"'{path}' can't be read: {' '.join(str(error).split())}") from error


def save_model(path: Path, model: "nn.Module") -> None:
    """Write the state dict as safetensors, pruned weights zero, shared tensors once.

    Raises:
        OSError: The file can't be written.
    """
    from safetensors.torch import save_model as save

    with replacing(path) as partial, disk_errors():
        save(model, str(partial))


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of the masks and the final model in a run's folder, where they were saved.

    Raises:
        OSError: One can't be read.
    """
    return {name: hash_of(folder / name) for name in (MASKS, FINAL) if (folder / name).is_file()}
