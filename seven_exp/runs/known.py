"""Hashes of runs that were computed before: a finished run is found without importing torch."""

import os
from pathlib import Path

from seven_exp.config import RunConfig
from seven_exp.files.atomic import replacing
from seven_exp.runs.identity import digest

PACKAGE = Path(__file__).parent.parent


def known_hash(config: RunConfig) -> str | None:
    """The run's hash, if this code has checked and hashed exactly this config before."""
    try:
        return _place(config).read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def remember(config: RunConfig, run_hash: str) -> None:
    """Store the hash of a checked config, unless it depends on files that may change.

    These are plugins, checkpoints and data in the user's folders.
    """
    from seven_exp.datasets import DATASETS

    reads_folder = (
        DATASETS[config.dataset.name].known_by != "name" and "data_dir" in config.dataset.arguments
    )
    reads_files = config.plugins or config.model.checkpoint or config.evaluation.include_path
    if reads_files or "/" in config.model.name or reads_folder:
        return
    place = _place(config)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with replacing(place) as partial:
            partial.write_text(run_hash, "utf-8")
    except OSError:
        return  # only time is lost


def _place(config: RunConfig) -> Path:
    code = {
        f"{parent}/{name}": [(found := os.stat(f"{parent}/{name}")).st_size, found.st_mtime_ns]  # noqa: PTH116
        for parent, _, names in os.walk(PACKAGE)
        for name in names
        if name.endswith(".py")
    }
    key = digest({"config": config.model_dump(), "code": code})
    return Path(config.output_root).expanduser() / ".runs" / "hashes" / key
