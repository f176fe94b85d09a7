"""A run's identity, and the record that it leaves."""

import hashlib
import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seven_exp import __version__
from seven_exp.atomic import replacing
from seven_exp.config import RunConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

SCHEMA = 1
"""Version of results.json's layout."""

PLACES = {"data_dir", "cache_dir", "download", "workers"}
"""Keys of a data set that say where it lies or how it is read, not what it is."""


def run_hash(config: RunConfig, *, prunes: bool = True) -> str:
    """Twelve hex digits of all that decides a run's result.

    That is the config less where things lie, where figures go and on what device; for the dense
    reference, less everything that only pruning reads.
    """
    identity = config.model_dump(
        exclude={
            **dict.fromkeys(
                ("output_root", "cache_dir", "device", "threads", "plugins", "tracker"), True
            ),
            "dataset": PLACES,
            "trainer": {"log_interval", "save_model"},
        }
    )
    identity["model"] = model_identity(config)
    if not prunes:
        identity.update(sparsity=0.0, schedule=None, pruner=config.pruner.name)
    return digest(identity)


def model_identity(config: RunConfig) -> dict[str, Any]:
    """The model's config, a checkpoint named by its content: the path may hold another tomorrow."""
    identity = config.model.model_dump()
    if config.model.checkpoint is not None:
        with Path(config.model.checkpoint).expanduser().open("rb") as file:
            identity["checkpoint"] = hashlib.file_digest(file, "sha256").hexdigest()
    return identity


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
    """Write masks packed to bits, eight a byte, with each shape in the file's metadata."""
    from safetensors.torch import save_file

    from seven_exp.pruning import pack_bits

    packed = {name: pack_bits(mask.cpu()) for name, mask in masks.items()}
    shapes = {name: json.dumps(list(mask.shape)) for name, mask in masks.items()}
    with replacing(path) as partial:
        save_file(packed, partial, metadata=shapes)


def load_masks(path: Path) -> "dict[str, Tensor]":
    """Read what `save_masks` wrote: parameter name -> bool tensor on the CPU."""
    from safetensors import safe_open

    from seven_exp.pruning import unpack_bits

    with safe_open(path, framework="pt") as file:
        shapes = file.metadata() or {}
        return {
            name: unpack_bits(file.get_tensor(name), json.loads(shape))
            for name, shape in shapes.items()
        }


def save_model(path: Path, model: "nn.Module") -> None:
    """Write the state dict as safetensors, pruned weights zero, shared tensors once."""
    from safetensors.torch import save_model as save

    with replacing(path) as partial:
        save(model, str(partial))
