"""Errors for people: one line on stderr and an exit code.

Exit codes: 0 finished, 2 the user's mistake, 75 stopped or left to another process (the same
command continues), 1 anything else.
"""

import errno
import os
import sys
from typing import NoReturn

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from seven_exp.config import ConfigError
from seven_exp.messages import nearest, one_line

EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm"}
"""Hydra's plugins, and the extra that installs each."""

DEAD = {"TerminatedWorkerError", "UncompletedJobError", "RayError"}
"""What joblib, submitit and Ray raise if a job's process has died."""


PASSING = {errno.ENOSPC, errno.EDQUOT}
"""The system's message for a full disk; with some launchers a sweep gets it from its jobs."""

FULL = PASSING | {errno.EROFS}
"""The system's error numbers for a disk that can't be written any more."""

MENDED = "after fixing this, the same command continues from the last checkpoint"


def explain(error: BaseException) -> str:
    """An error in the config's composition as one line, with the nearest valid choice."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, ConfigError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.options and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.partition("/")
            if group == "model" and "/" in name:
                return f"unknown model '{name}': did you mean model=hf model.name={name}?"
            if group == "dataset":
                from seven_exp.datasets import DATASETS

                return f"unknown dataset '{name}': {nearest(name, DATASETS)}"
            if group == "hydra":
                group, _, name = cause.missing_cfg_file.rpartition("/")
            return (
                f"unknown {group or 'config'} '{name}': {nearest(name, cause.options)}{_own(group)}"
            )
        if "not in struct" in str(cause) and isinstance(cause, OmegaConfBaseException):
            siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
            hint = nearest(str(cause.key), map(str, siblings))
            return f"{cause.full_key}: no such key: {hint}"
    return one_line(next((cause for cause in causes if str(cause).strip()), error))


def _own(group: str) -> str:
    """What a plugin's name still needs, if there are plugins."""
    if any(argument.startswith("plugins=") for argument in sys.argv):
        return f" (a plugin's name also needs {group}/NAME.yaml in the folder of --config-dir)"
    return ""


def stop_if_explained(error: Exception) -> None:
    """Exit with one line if the error needs no traceback."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno in FULL:
            known = isinstance(error, ConfigError)
            where = str(error) if known else f"output_root: can't write there: {cause.strerror}"
            stop(f"{where}; {MENDED}", 1)
    if isinstance(error, HydraException | OmegaConfBaseException | ConfigError):
        stop(explain(error), 2)
    for plugin, extra in EXTRAS.items():
        if str(error).startswith(f"Unknown plugin class : 'hydra_plugins.{plugin}."):
            stop(f"hydra/launcher needs {plugin}: uv sync --extra {extra}", 2)
    if str(error).startswith('Could not detect "srun"'):
        local = "hydra/launcher=submitit_local does the same on this machine"
        stop(f"hydra/launcher=submitit_slurm needs Slurm, but there is no srun here: {local}", 2)
    if DEAD & {kind.__name__ for kind in type(error).__mro__}:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        stop(f"a job's process died ({reason}); the same command continues with the rest", 1)
    training = sys.modules.get("seven_exp.training.loop")
    if training is not None and isinstance(error, training.DivergedError):
        stop(str(error), 1)
    tracking = sys.modules.get("seven_exp.tracking")
    if tracking is not None and isinstance(error, tracking.RecordError):
        stop(f"{error}; {MENDED}", 1)


def stop_if_not_begun(error: Exception) -> None:
    """Exit with one line if the run's folder or a config value kept Hydra from starting."""
    # A name that Hydra does not find is also an OSError, but without an error number.
    number = error.errno if isinstance(error, OSError) else None
    if number is not None and number not in PASSING:
        stop(f"output_root: can't write the run's folder: {error}", 2)
    stop_if_explained(error)
    if isinstance(error, ValueError):
        stop(explain(error), 2)  # Hydra's error about an invalid value


def rank() -> int:
    """This process's rank, as torchrun and similar launchers number it."""
    return int(os.environ.get("RANK", 0))


def stop(line: str, code: int) -> NoReturn:
    """Print the line on the main rank's stderr, and exit."""
    if rank() == 0:
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
