"""The command line: Hydra composes, the config is checked, the run starts. Errors are for people.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 75 stopped or left to another process
(the same command goes on), 1 anything else.
"""

import atexit
import errno
import logging
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.compare.callback import compare_begun, left_elsewhere
from seven_exp.config import ConfigError, RunConfig, check, parse
from seven_exp.ledger import Ledger, record_of
from seven_exp.registry import nearest

log = logging.getLogger(__name__)

EXTRAS = {"hydra_joblib_launcher": "joblib", "hydra_submitit_launcher": "slurm"}
"""Hydra's plugins, and the extra that brings each."""

# For conf/; here, and not in main, because a launcher's processes import this module only.
OmegaConf.register_new_resolver("expanduser", lambda path: str(Path(path).expanduser()))

NO_NAME = re.compile(r"(?i:true|false|nan|[-+]?(inf|\.?\d[\d_]*(\.[\d_]*)?(e[-+]?\d+)?))")
"""What Hydra's grammar takes for a number or a truth value."""

DEAD = {"TerminatedWorkerError", "UncompletedJobError", "RayError"}
"""What joblib, submitit and Ray raise where a job's process is gone."""


PASSING = {errno.ENOSPC, errno.EDQUOT}
"""What the system says of a full disk; with some launchers a sweep learns of it from its jobs."""

FULL = PASSING | {errno.EROFS}
"""What the system says of a disk on which nothing can be written any more."""

MENDED = "once that is mended, the same command goes on from the last checkpoint"


def main(config_dir: Path) -> None:
    """Compose from ``config_dir`` and the command line, run, and exit."""
    wants_trace = "HYDRA_FULL_ERROR" in os.environ
    # Hydra would print its own pages of explanation and exit with 1; this makes it raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    started = False
    if _rank() > 0:
        # Of several processes one has a folder and a voice.
        nowhere = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, nowhere, ignore_errors=True)
        sys.argv += [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
        sys.argv += ["hydra/job_logging=none", "~hydra.callbacks.compare"]
        logging.disable()

    def task(values: DictConfig) -> float | None:
        nonlocal started
        started = True
        try:
            return run(values)
        except Exception as error:
            # One job of a sweep must not take the others with it: Hydra goes on and fails last.
            if not wants_trace and HydraConfig.get().mode == RunMode.RUN:
                if isinstance(error, ConfigError):
                    _remove_if_bare(Path(HydraConfig.get().runtime.output_dir))
                _stop_if_explained(error)
            raise

    sys.argv = [_named(_expanded(argument), config_dir) for argument in sys.argv]
    _prefer_own_presets(config_dir)
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name="config")(task)()
        left = left_elsewhere()
    except KeyboardInterrupt:
        _stop("interrupted; the same command goes on from the last checkpoint", 1)
    except Exception as error:
        compare_begun()
        if (left := left_elsewhere()) is not None:
            print(left, file=sys.stderr)
        if not wants_trace:
            # A name that Hydra does not find is an OSError, too, without a number of the system's.
            number = error.errno if isinstance(error, OSError) else None
            if number is not None and not started and number not in PASSING:
                _stop(f"output_root: can't write the run's folder: {error}", 2)
            _stop_if_explained(error)
            if isinstance(error, ValueError) and not started:
                _stop(explain(error), 2)  # Hydra's, of a value that it can't take
        raise
    if left is not None:
        print(left, file=sys.stderr)
        sys.exit(75)


def _prefer_own_presets(config_dir: Path) -> None:
    """Let a file below ``conf/hydra`` take the place of what a plugin has under the same name.

    Hydra would mix the two, with a warning, or refuse to.
    """
    Plugins.instance()  # imports them all
    for path in (config_dir / "hydra").glob("*/*.yaml"):
        group = ConfigStore.instance().repo["hydra"].get(path.parent.name, {})
        group.pop(path.name, None)


def _expanded(argument: str) -> str:
    """``key=~/path`` as some shells would have passed it: Hydra's grammar has no ``~``."""
    match = re.fullmatch(r"([^-=][^=]*)=~(/[^,']*)?", argument)
    return f"{match[1]}='{Path.home()}{match[2] or ''}'" if match else argument


def _named(argument: str, config_dir: Path) -> str:
    """A group's value as a name: ``tracker=null`` is ``tracker=none``, ``pruner=0`` no number.

    Hydra ends in a traceback where a group's value is no string.
    """
    group, equals, value = argument.partition("=")
    folder = config_dir / group.lstrip("+").partition("@")[0]
    if not folder.is_dir() and not group.lstrip("+").startswith("hydra/"):
        return argument
    none = "none" if (folder / "none.yaml").exists() else "'null'"
    words = (
        none if word == "null" else f"'{word}'" if NO_NAME.fullmatch(word) else word
        for word in re.split(r"([][(), ])", value)
    )
    return group + equals + "".join(words)


def checked(values: DictConfig) -> RunConfig:
    """The config as typed values, if it is valid.

    Raises:
        ConfigError: It is not.
    """
    try:
        plain = OmegaConf.to_container(values, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(plain, dict)
    config = parse({str(key): value for key, value in plain.items()})
    check(config)
    return config


def run(values: DictConfig) -> float | None:
    """One job of Hydra's: check the config, then do the run, unless that is done already.

    Returns:
        The final value of the task's headline metric, for Hydra's sweepers; None where another
        process is at it.

    Raises:
        ConfigError: The config is not valid.
        InterruptedRun: It was stopped by a signal, or outside a multirun another process is at it.
    """
    config = checked(values)

    from seven_exp.console import show_record, write_what_can_be_encoded
    from seven_exp.experiment import run_experiment
    from seven_exp.runs import run_hash
    from seven_exp.tracking import Trackers, build_tracker
    from seven_exp.training.interruption import InterruptedRun
    from seven_exp.training.world import join

    write_what_can_be_encoded()
    # The core warns in its own words; where in its code is of no use here.
    warnings.formatwarning = lambda message, *_, **__: str(message)
    logging.captureWarnings(True)
    place = join(config.device)
    world, _ = place
    if not world.main:
        # The main process looks after folders, and says where the run is done, if it is.
        home = world.told(None)
        if home is not None:
            run_experiment(config, home, Trackers([]), place)
        return None
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode == RunMode.MULTIRUN
    if multirun:
        os.environ.pop("WANDB_RUN_ID", None)  # it would make one run of them all
    job = Path(hydra_config.runtime.output_dir)
    root = Path(hydra_config.runtime.cwd, Path(config.output_root).expanduser())
    skip = multirun if config.run.skip_finished is None else config.run.skip_finished
    identity, ledger = run_hash(config), Ledger(root)
    with ledger.claimed(identity, config.run.wait) as mine:
        if not mine:
            line = f"{ledger.where(identity)} is being done by another process: left to it"
            log.warning("%s (run.wait=SECONDS waits for it)", line)
            world.told(None)
            if multirun:
                ledger.leave(identity, job)
                return None
            raise InterruptedRun(line)
        found = None if config.run.force else ledger.finished(identity)
        record = None if found is None or not skip else record_of(found, identity)
        if found is not None and record is not None:
            log.info("done already, in %s: skipped (run.force=true does it again)", found)
            home = found
            world.told(None)
        else:
            home = ledger.home(identity, job, afresh=config.run.force or found is not None)
            world.told(home)
            record = run_experiment(config, home, build_tracker(config.tracker), place)
        ledger.share(identity, home, job)
    if home != found or not multirun:
        show_record(record, home)
    value: float = record["metrics"][record["metric"]]
    return value


def explain(error: BaseException) -> str:
    """An error of the config's composition in one line, with the nearest valid choice."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    for cause in causes:
        if isinstance(cause, ConfigError):
            return str(cause)
        if isinstance(cause, MissingConfigException) and cause.options and cause.missing_cfg_file:
            group, _, name = cause.missing_cfg_file.rpartition("/")
            if group.startswith("dataset/"):
                from seven_exp.datasets import DATASETS

                name = f"{group.removeprefix('dataset/')}/{name}"
                return f"unknown dataset '{name}': {nearest(name, DATASETS)}"
            return f"unknown {group or 'config'} '{name}': {nearest(name, cause.options)}"
        if "not in struct" in str(cause) and isinstance(cause, OmegaConfBaseException):
            siblings = cause.parent_node if isinstance(cause.parent_node, DictConfig) else {}
            hint = nearest(str(cause.key), map(str, siblings))
            return f"{cause.full_key}: no such key: {hint}"
    words = [" ".join(str(cause).split()) for cause in causes]
    return next(filter(None, words), type(error).__name__)


def _stop_if_explained(error: Exception) -> None:
    """Exit with one line if the error needs no traceback."""
    for cause in (error, error.__cause__):
        if isinstance(cause, OSError) and cause.errno in FULL:
            known = isinstance(error, ConfigError)
            where = str(error) if known else f"output_root: can't write there: {cause.strerror}"
            _stop(f"{where}; {MENDED}", 1)
    if isinstance(error, HydraException | OmegaConfBaseException | ConfigError):
        _stop(explain(error), 2)
    for plugin, extra in EXTRAS.items():
        if str(error).startswith(f"Unknown plugin class : 'hydra_plugins.{plugin}."):
            _stop(f"hydra/launcher needs {plugin}: uv sync --extra {extra}", 2)
    if str(error).startswith('Could not detect "srun"'):
        local = "hydra/launcher=submitit_local does the same on this machine"
        _stop(f"hydra/launcher=submitit_slurm needs Slurm, and there is no srun here: {local}", 2)
    if DEAD & {kind.__name__ for kind in type(error).__mro__}:
        reason = next(filter(None, str(error).splitlines()), type(error).__name__)
        _stop(f"a job's process died ({reason}); the same command goes on with what is left", 1)
    training = sys.modules.get("seven_exp.training.loop")
    if training is not None and isinstance(error, training.DivergedError):
        _stop(str(error), 1)
    tracking = sys.modules.get("seven_exp.tracking")
    if tracking is not None and isinstance(error, tracking.RecordError):
        _stop(f"{error}; {MENDED}", 1)


def _remove_if_bare(job: Path) -> None:
    """Remove the folder that Hydra made for a job which then did nothing."""
    if {path.name for path in job.iterdir()} <= {".hydra", ".run_hash"} and job != Path.cwd():
        shutil.rmtree(job, ignore_errors=True)


def _rank() -> int:
    """Which of several processes this is; torchrun and the like number them."""
    return int(os.environ.get("RANK", 0))


def _stop(line: str, code: int) -> NoReturn:
    if _rank() == 0:
        print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(code)
