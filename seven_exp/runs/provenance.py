"""Provenance of a run: host, processor, code, libraries, and the command."""

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from seven_exp import __version__

_SECRET = re.compile(
    r"((?:key|token|secret|password|credentials?)=).+|(\w+://[^/@:]*:)[^/@]+(?=@)", re.IGNORECASE
)
"""A key with its secret, and the password in an address."""


def versions() -> dict[str, str]:
    """Versions of the software that results depend on."""
    used = "transformers" in sys.modules
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "hydra-core", "wandb")
    return {
        "seven_exp": __version__,
        "python": platform.python_version(),
        **{package: metadata.version(package) for package in packages},
        **({"transformers": metadata.version("transformers")} if used else {}),
    }


def installed(package: str) -> str | None:
    """Version of a package; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def provenance(device: str) -> dict[str, Any]:
    """Provenance of a run: host, processor, device, code, libraries, and the command.

    Args:
        device: Name of the computing device.
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
    """The date and time in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command(arguments: Sequence[str]) -> str:
    """A command line for a shell, with stars in place of anything that looks like a secret."""
    return shlex.join(_SECRET.sub(r"\1\2***", argument) for argument in arguments)


def processor() -> str:
    """Name of this machine's CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(x.partition(":")[2].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_state(folder: Path) -> str | None:
    """Commit of the source tree, "+dirty" if files differ from it; None outside a checkout."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit + ("+dirty" if _git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10
    ).stdout.strip()
