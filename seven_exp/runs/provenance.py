"""Who made a run: host, processor, code, libraries, and the command."""

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
