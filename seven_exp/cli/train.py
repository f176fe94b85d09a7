"""``seven-exp train``: Hydra composes, the config is checked, the run starts."""

import atexit
import gc
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.cli.deferred_compiler import defer_compiler
from seven_exp.cli.faults import explain, rank, stop, stop_if_explained, stop_if_not_begun
from seven_exp.cli.overrides import for_hydra, options_first, prefer_own_presets
from seven_exp.cli.sweep_compare import compare_begun, left_elsewhere
from seven_exp.cli.tuned import with_tuned
from seven_exp.config import ConfigError, RunConfig, parse
from seven_exp.runs.known import known_hash, remember
from seven_exp.runs.ledger import Ledger, record_of

log = logging.getLogger(__name__)

SKIPPED = "already done, in %s: skipped (run.force=true repeats it)"

# Both here and not in main, because a launcher's processes import only this module.
defer_compiler()
# conf/ uses it. Without a path the check of the config says so.
OmegaConf.register_new_resolver("expanduser", lambda path: str(Path(path or ".").expanduser()))


def main(config_dir: Path, act: Callable[[DictConfig], float | None] | None = None) -> None:
    """Compose from ``config_dir`` and the command line, act on it, and exit; default: `run`."""
    act = act or run
    collect_again()  # train.py and seven-exp have disabled it before the first import
    wants_trace = "HYDRA_FULL_ERROR" in os.environ
    # Hydra would print its own error pages and exit with 1; this makes it raise.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    started = False
    if rank() > 0:
        _keep_silent()

    def task(values: DictConfig) -> float | None:
        nonlocal started
        started = True
        try:
            return act(values)
        except Exception as error:
            # A failed job must not end the others: Hydra continues and fails at the end.
            if not wants_trace and HydraConfig.get().mode == RunMode.RUN:
                if isinstance(error, ConfigError):
                    _remove_if_bare(Path(HydraConfig.get().runtime.output_dir))
                stop_if_explained(error)
            raise

    program, *arguments = sys.argv
    sys.argv = [program, *(for_hydra(each, config_dir) for each in options_first(arguments))]
    prefer_own_presets(config_dir)
    try:
        hydra.main(version_base="1.3", config_path=str(config_dir), config_name="config")(task)()
        left = left_elsewhere()
    except KeyboardInterrupt:
        stop("interrupted; the same command continues from the last checkpoint", 1)
    except Exception as error:
        compare_begun()
        if (left := left_elsewhere()) is not None:
            print(left, file=sys.stderr)
        if not wants_trace:
            (stop_if_explained if started else stop_if_not_begun)(error)
        raise
    if left is not None:
        print(left, file=sys.stderr)
        sys.exit(75)


def _keep_silent() -> None:
    """Let only the main process write folders and messages."""
    nowhere = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, nowhere, ignore_errors=True)
    sys.argv += [f"hydra.run.dir={nowhere}", f"hydra.sweep.dir={nowhere}"]
    sys.argv += ["hydra/job_logging=none", "~hydra.callbacks.compare"]
    logging.disable()


def checked(values: DictConfig, given: Sequence[str] = ()) -> RunConfig:
    """The config as typed values.

    Args:
        values: As Hydra composed it.
        given: The command line; its values precede those of the file ``tuned``.

    Raises:
        ConfigError: It is not valid.
    """
    try:
        tuned = with_tuned(values, given)
        plain = OmegaConf.to_container(tuned, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ConfigError(explain(error)) from error
    assert isinstance(plain, dict)
    config = parse({str(key): value for key, value in plain.items()})
    if known_hash(config) is None:
        with no_collection():
            from seven_exp.runs.check import check
        check(config)
    return config


@contextmanager
def no_collection() -> Iterator[None]:
    """Disable garbage collection during imports, unless torch is imported already.

    Imports make a million objects and hardly any garbage, and the collector looks through all
    objects again and again.
    """
    first = "torch" not in sys.modules and gc.isenabled()
    if first:
        gc.disable()
    try:
        yield
    finally:
        if first:
            collect_again()


def collect_again() -> None:
    """Enable garbage collection, of new objects only."""
    gc.freeze()
    gc.enable()
    # Else Triton's bindings print at exit which of their objects are left.
    atexit.unregister(gc.unfreeze)
    atexit.register(gc.unfreeze)


def run(values: DictConfig) -> float | None:
    """Run one Hydra job: check the config, then execute the run unless it is finished.

    Returns:
        The task's headline metric on the validation split at the end, for Hydra's sweepers; None
        without such a split, or if another process is executing the run.

    Raises:
        ConfigError: The config is not valid.
        InterruptedRun: A signal stopped it; or, outside a multirun, another process is executing
            it.
    """
    config = checked(values, HydraConfig.get().overrides.task)

    from seven_exp.console import write_what_can_be_encoded

    write_what_can_be_encoded()
    hydra_config = HydraConfig.get()
    multirun = hydra_config.mode == RunMode.MULTIRUN
    job = Path(hydra_config.runtime.output_dir)
    ledger = Ledger(Path(hydra_config.runtime.cwd, Path(config.output_root).expanduser()))
    skip = multirun if config.run.skip_finished is None else config.run.skip_finished
    skip = skip and not config.run.force
    if skip and (done := _known_and_finished(config, ledger, job)) is not None:
        return _result(*done, shown=not multirun)
    with no_collection():
        from seven_exp.runs.identity import run_hash
        from seven_exp.runs.run import run_experiment
        from seven_exp.tracking import Trackers, build_tracker
        from seven_exp.training.interruption import InterruptedRun
        from seven_exp.training.world import join
    # The core's warnings explain themselves; their place in its code does not help the user.
    warnings.formatwarning = lambda message, *_, **__: str(message)
    logging.captureWarnings(True)
    place = join(config.device)
    world, _ = place
    if not world.main:
        # The main process handles folders, and reports a run that is already finished.
        home = world.told(None)
        if home is not None:
            run_experiment(config, home, Trackers([]), place)
        return None
    if multirun:
        os.environ.pop("WANDB_RUN_ID", None)  # it would merge all runs into one
    else:
        _warn_of_unread(config, hydra_config.overrides.task)
    identity = run_hash(config)
    remember(config, identity)
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
            log.info(SKIPPED, found)
            home = found
            world.told(None)
        else:
            home = ledger.home(identity, job, afresh=config.run.force or found is not None)
            world.told(home)
            record = run_experiment(config, home, build_tracker(config.tracker), place)
        ledger.share(identity, home, job)
    return _result(record, home, shown=home != found or not multirun)


def _warn_of_unread(config: RunConfig, given: Sequence[str]) -> None:
    """Name the typed settings without an effect; in a sweep other methods may read them."""
    from seven_exp.runs.reads import Pruning, unread

    typed = {argument.partition("=")[0] for argument in given} - {"calibration"}  # prune adds it
    if ignored := sorted(typed.intersection(unread(Pruning.of(config)))):
        log.warning("this run of %s never reads %s", config.pruner.name, ", ".join(ignored))


def _known_and_finished(
    config: RunConfig, ledger: Ledger, job: Path
) -> tuple[dict[str, Any], Path] | None:
    """Skip a run that is finished, if that can be told without importing torch.

    Returns:
        Its record and its folder.
    """
    identity = known_hash(config)
    if identity is None or "WORLD_SIZE" in os.environ:
        return None
    with ledger.claimed(identity, 0) as mine:
        found = ledger.finished(identity) if mine else None
        record = None if found is None else record_of(found, identity)
        if found is None or record is None:
            return None
        log.info(SKIPPED, found)
        ledger.share(identity, found, job)
    return record, found


def _result(record: dict[str, Any], home: Path, *, shown: bool) -> float | None:
    """The headline metric on validation, if there is one; the record is shown on request."""
    from seven_exp.console import show_record

    if shown:
        show_record(record, home)
    value: float | None = record["validation"].get(record["metric"])
    return value


def _remove_if_bare(job: Path) -> None:
    """Remove the folder that Hydra made for a job that then did nothing."""
    if {path.name for path in job.iterdir()} <= {".hydra", ".run_hash"} and job != Path.cwd():
        shutil.rmtree(job, ignore_errors=True)
