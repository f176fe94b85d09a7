"""Finds the folders of runs by hash, and lets one process at a time execute a run."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from seven_exp.config import ConfigError
from seven_exp.files.atomic import clear_partial, replacing
from seven_exp.files.hashing import hash_of
from seven_exp.files.locks import acquired
from seven_exp.runs.artifacts import FOLDER, MASKS, UNFINISHED

log = logging.getLogger(__name__)

RECORD = ("results.json", "metrics.jsonl", MASKS)
"""Files of a run that a comparison reads; the first one marks the others as complete."""

_BEGUN = ("checkpoints/step-*", UNFINISHED, FOLDER)
"""Files in the folder of a run that can be continued."""

_OWNER = ".run_hash"
"""File in a run's folder: the hash of the run that owns it."""

_LEFT = ".left"
"""File in a job's folder: the hash of its run, if another process was executing it."""


class Ledger:
    """``ROOT/.runs``: for each run's hash a lock, and the folders of the run.

    Only the folders themselves hold a run's results. If a ledger is lost, or its folders are moved
    away, the runs are repeated and nothing else is lost.

    Args:
        root: The folder of all runs.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._folder = root, root / ".runs"

    @contextmanager
    def claimed(self, run_hash: str, wait: float) -> Iterator[bool]:
        """Whether this process may execute the run; no other process may within the context.

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
            mine = acquired(lock, 0)
            if not mine and wait:
                log.info("%s is being done by another process: waiting", self.where(run_hash))
                mine = acquired(lock, wait)
        try:
            yield mine
        finally:
            lock.release()

    def where(self, run_hash: str) -> str:
        """The run's latest folder, for messages."""
        folders = self._folders(run_hash)
        return str(folders[0]) if folders else f"run {run_hash}"

    def finished(self, run_hash: str) -> Path | None:
        """A folder with the run's record, if the run is finished and the record complete."""
        return next((f for f in self._folders(run_hash) if record_of(f, run_hash)), None)

    def leave(self, run_hash: str, job: Path) -> None:
        """Record in the job's folder that another process is executing its run.

        Raises:
            ConfigError: It can't be written.
        """
        with self._writing():
            job.mkdir(parents=True, exist_ok=True)
            (job / _LEFT).write_text(run_hash, "utf-8")

    def gather(self, sweep: Path) -> int:
        """Link records of finished runs that were left to others into a sweep's folder.

        Returns:
            How many are not finished.

        Raises:
            ConfigError: It can't be written.
        """
        left = 0
        for note in sorted(sweep.rglob(_LEFT)):
            run_hash = note.read_text("utf-8")
            home = self.finished(run_hash)
            if home is None:
                left += 1
            else:
                self.share(run_hash, home, note.parent)
        return left

    def home(self, run_hash: str, job: Path, *, afresh: bool) -> Path:
        """The folder to execute the run in: where it was interrupted, else the job's.

        If another run owns the job's folder, a subfolder is used instead.

        Args:
            run_hash: The run's identity.
            job: The folder that the launcher made for this job.
            afresh: Ignore earlier folders, and remove the run's files from the job's folder.

        Raises:
            ConfigError: It can't be written.
        """
        if not afresh:
            for folder in self._folders(run_hash):
                begun = any(any(folder.glob(kind)) for kind in _BEGUN)
                if _owner(folder) == run_hash and begun:
                    return folder
        with self._writing():
            (job / _LEFT).unlink(missing_ok=True)
            home = _own(job, run_hash)
            clear_partial(home)
            if afresh:
                for name in RECORD:
                    (home / name).unlink(missing_ok=True)
                for name in ("checkpoints", FOLDER, UNFINISHED):
                    shutil.rmtree(home / name, ignore_errors=True)
            self._note(run_hash, home)
        return home

    def share(self, run_hash: str, home: Path, job: Path) -> None:
        """Link the record of a run from its own folder into the job's folder.

        The files are hard links, which take no space and survive the other folder; or copies, if
        links are impossible. Checkpoints that a finished run left behind are removed.

        Raises:
            ConfigError: It can't be written.
        """
        with self._writing():
            (job / _LEFT).unlink(missing_ok=True)
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
        """Names the config key of a folder that can't be written."""
        try:
            yield
        except OSError as error:
            where = f"output_root is '{self._root}'"
            raise ConfigError(f"{where}: can't write there: {error.strerror or error}") from error

    def _folders(self, run_hash: str) -> list[Path]:
        """Newest first."""
        return [self._root / line for line in reversed(self._lines(run_hash))]

    def _lines(self, run_hash: str) -> list[str]:
        """The lines about a run; none, with a warning, if they can't be read."""
        path = self._folder / f"{run_hash}.txt"
        try:
            return path.read_text("utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no text"
            log.warning("%s can't be read (%s): it counts as empty", path, reason)
            return []

    def _note(self, run_hash: str, folder: Path) -> None:
        """Record a folder, relative to the root, so that both can be moved together."""
        root = self._root.resolve()
        place = folder.resolve()
        line = str(place.relative_to(root) if place.is_relative_to(root) else place)
        path = self._folder / f"{run_hash}.txt"
        if path.is_dir():
            log.warning("%s is a folder: the run is not recorded and can't be found again", path)
            return
        lines = self._lines(run_hash)
        with replacing(path) as partial:
            kept = [other for other in lines if other != line and (self._root / other).is_dir()]
            partial.write_text("\n".join([*kept, line]) + "\n", "utf-8")


def record_of(folder: Path, run_hash: str) -> dict[str, Any] | None:
    """The record of a finished run with this hash; None if there is none, or its masks are broken.

    In older records, masks have no checksum; they are accepted if the file has the right length.
    """
    try:
        record = json.loads((folder / RECORD[0]).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    if record.get("status") != "finished" or record.get("run_hash") != run_hash:
        return None
    sha256 = record.get("sha256")
    masks = folder / MASKS
    if _whole(masks, sha256.get(MASKS) if isinstance(sha256, dict) else None):
        return record
    log.warning("%s is missing or broken: its run does not count as done", masks)
    return None


def _whole(masks: Path, sha256: str | None) -> bool:
    from safetensors import SafetensorError, safe_open

    try:
        if sha256 is not None:
            return hash_of(masks) == sha256
        with safe_open(masks, framework="np"):
            return True
    except (OSError, SafetensorError):
        return False


def _own(folder: Path, run_hash: str) -> Path:
    """The folder, or a subfolder of it if it belongs to another run."""
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
    except (OSError, UnicodeDecodeError):
        return None
