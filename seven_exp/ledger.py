"""Which run lies where: found by its hash, done by one process at a time."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from seven_exp.atomic import clear_partial, replacing
from seven_exp.config import ConfigError

log = logging.getLogger(__name__)

RECORD = ("results.json", "metrics.jsonl", "masks.safetensors")
"""What a comparison may read of a run; the first says that the rest is whole."""

_OWNER = ".run_hash"
"""File in a run's folder: whose it is."""


class Ledger:
    """``ROOT/.runs``: for each run's hash a lock, and the folders that it has lain in.

    Only the folders themselves say what became of a run, so a ledger that is lost, or whose
    folders are moved away, costs no more than running them again.

    Args:
        root: Below which runs are kept.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / ".runs"

    @contextmanager
    def claimed(self, run_hash: str, wait: float) -> Iterator[bool]:
        """Whether this process is the one to do the run; nobody else is while it lasts.

        The system frees the lock of a process that dies.

        Args:
            run_hash: The run's identity.
            wait: Seconds to wait for another process.

        Raises:
            ConfigError: The ledger can't be written.
        """
        with self._writing():
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / f"{run_hash}.lock")
            mine = _acquired(lock, 0)
            if not mine and wait:
                log.info("%s is being done by another process: waiting", self.where(run_hash))
                mine = _acquired(lock, wait)
        try:
            yield mine
        finally:
            lock.release()

    def where(self, run_hash: str) -> str:
        """The run's last folder, for people."""
        folders = self._folders(run_hash)
        return str(folders[0]) if folders else f"run {run_hash}"

    def finished(self, run_hash: str) -> Path | None:
        """A folder that holds the run's record, if it is done."""
        return next((f for f in self._folders(run_hash) if record_of(f, run_hash)), None)

    def home(self, run_hash: str, job: Path, *, afresh: bool) -> Path:
        """The folder to do the run in: where it was interrupted, else the job's.

        A job's folder that another run has is left as it is; a folder below it is taken then.

        Args:
            run_hash: The run's identity.
            job: The folder that the launcher made for this job.
            afresh: Forget what there is of this run in the job's folder, and look nowhere else.

        Raises:
            ConfigError: It can't be written.
        """
        if not afresh:
            for folder in self._folders(run_hash):
                if _owner(folder) == run_hash and any(folder.glob("checkpoints/step-*")):
                    return folder
        with self._writing():
            home = _own(job, run_hash)
            clear_partial(home)
            if afresh:
                for name in RECORD:
                    (home / name).unlink(missing_ok=True)
                shutil.rmtree(home / "checkpoints", ignore_errors=True)
            self._note(run_hash, home)
        return home

    def share(self, run_hash: str, home: Path, job: Path) -> None:
        """Let the job's folder hold the record of a run that was done elsewhere.

        Its files are hard links, which cost nothing and outlive the other folder; copies, where
        there can be none. Checkpoints that are left behind of a finished run are removed.

        Raises:
            ConfigError: It can't be written.
        """
        with self._writing():
            for leftover in home.glob("checkpoints/step-*"):
                leftover.unlink(missing_ok=True)
            if job.resolve() == home.resolve() or (folder := _own(job, run_hash)) == home:
                return
            for name in reversed(RECORD):
                if (home / name).is_file():
                    with replacing(folder / name) as partial:
                        try:
                            os.link(home / name, partial)
                        except OSError:
                            shutil.copy2(home / name, partial)
            self._note(run_hash, folder)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Names the key behind a folder that can't be written."""
        try:
            yield
        except OSError as error:
            where = f"output_root is '{self._root}'"
            raise ConfigError(f"{where}: can't write there: {error.strerror or error}") from error

    def _folders(self, run_hash: str) -> list[Path]:
        """Newest first."""
        try:
            lines = (self._folder / f"{run_hash}.txt").read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [self._root / line for line in reversed(lines)]

    def _note(self, run_hash: str, folder: Path) -> None:
        """Remember a folder; relative to the root, so that both can be moved together."""
        root = self._root.resolve()
        place = folder.resolve()
        line = str(place.relative_to(root) if place.is_relative_to(root) else place)
        path = self._folder / f"{run_hash}.txt"
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        with replacing(path) as partial:
            kept = [other for other in lines if other != line and (self._root / other).is_dir()]
            partial.write_text("\n".join([*kept, line]) + "\n", "utf-8")


def record_of(folder: Path, run_hash: str) -> dict[str, Any] | None:
    """The record of a finished run of this hash; None where there is none."""
    try:
        record = json.loads((folder / RECORD[0]).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    whole = record.get("status") == "finished" and record.get("run_hash") == run_hash
    return record if whole else None


def _acquired(lock: FileLock, wait: float) -> bool:
    try:
        lock.acquire(timeout=wait)
    except Timeout:
        return False
    return True


def _own(folder: Path, run_hash: str) -> Path:
    """The folder, or one below it if it is another run's."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (folder / _OWNER).open("x", encoding="utf-8") as file:
            file.write(run_hash)
    except FileExistsError:
        if _owner(folder) != run_hash:
            return _own(folder / run_hash, run_hash)
    return folder


def _owner(folder: Path) -> str | None:
    try:
        return (folder / _OWNER).read_text("utf-8")
    except OSError:
        return None
