"""Configs that Hydra has stored as YAML beside a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_yaml(path: Path) -> Mapping[str, Any]:
    """A file's mapping; empty if it can't be read or holds something else."""
    import yaml

    try:
        found = yaml.load(path.read_text("utf-8"), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}
