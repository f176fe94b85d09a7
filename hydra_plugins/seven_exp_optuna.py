"""Optuna as a Hydra sweeper: the results so far determine the next values.

The public plugin, hydra-optuna-sweeper 1.3, requires Optuna 2, whose storage does not work with
the present SQLAlchemy, so its studies can't be continued. Here a study is a journal on disk, and
the same command continues it.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.cli.faults import explain
from seven_exp.config import ConfigError, RunConfig, faults_of_the_user, parse
from seven_exp.files.locks import held
from seven_exp.runs.plugins import load_plugins
from seven_exp.training.interruption import InterruptedRun

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)


class OptunaSweeper(Sweeper):
    """Maximizes or minimizes the return value of the jobs.

    Args:
        direction: None for the better direction of the data set's headline metric.
        trials: Total number of trials, including those of earlier starts.
        jobs: Trials at a time.
        seed: Seed of the sampler, TPE.
        folder: Folder of the studies.
        study: The study's name; None for a hash of the run and of the search space.
        params: Key -> Hydra's sweep syntax: ``interval``, ``range``, ``choice``, ``tag(log, ...)``.
    """

    def __init__(
        self,
        direction: Literal["maximize", "minimize"] | None,
        trials: int,
        jobs: int,
        seed: int,
        folder: str,
        study: str | None,
        params: Mapping[str, Any] | None,
    ) -> None:
        if direction not in ("maximize", "minimize", None):
            raise ConfigError(
                f"hydra.sweeper.direction is '{direction}': choose maximize, minimize or null"
            )
        self.direction, self.trials, self.jobs, self.seed = direction, trials, jobs, seed
        self.folder, self.study, self.params = Path(folder), study, params or {}

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Hydra's."""
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Continue the study up to its trials; ``optimization_results.yaml`` has the best one.

        Raises:
            ConfigError: There is nothing to search, another process runs the study, or no trial is
                valid.
        """
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "hydra/sweeper=optuna needs Optuna: uv sync --extra optuna"
            ) from error
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create().parse_overrides(given)
        # As in Hydra's own sweeper, the command line replaces a preset's line.
        last = {override.get_key_element(): override for override in overrides}
        space = {key: distribution(o) for key, o in last.items() if o.is_sweep_override()}
        fixed = [f"{k}={o.get_value_element_as_str()}" for k, o in last.items() if k not in space]
        if not space:
            raise ConfigError(
                "hydra.sweeper.params: nothing to search; "
                "give a range such as 'pruner.alpha_1=interval(0.5,0.95)'"
            )
        run = self._run(fixed)
        with faults_of_the_user():
            name = self.study or _hash_of(run, space)
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(FileLock(self.folder / f"{name}.lock"), wait=0) as mine:
            if not mine:
                raise ConfigError(f"hydra.sweeper.study: another process is running '{name}'")
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.create_study(
                study_name=name,
                storage=_journal(self.folder / f"{name}.journal"),
                direction=self.direction or _direction(run),
                load_if_exists=True,
            )
            self._optimize(study, space, fixed)

    def _optimize(
        self, study: "optuna.Study", space: Mapping[str, Any], fixed: Sequence[str]
    ) -> None:
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        # A new sampler with the same seed would repeat its earlier draws.
        study.sampler = TPESampler(seed=self.seed + len(study.trials))
        for left in study.get_trials(states=[TrialState.RUNNING]):
            # A process died in these trials: their values are tried again, and first.
            study.tell(left.number, state=TrialState.FAIL)
            study.enqueue_trial(left.params)
        done = len(study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED]))
        log.info("study %s: %d of %d trials are finished", study.study_name, done, self.trials)
        started, faults = 0, []
        while done < self.trials:
            batch = [study.ask(dict(space)) for _ in range(min(self.jobs, self.trials - done))]
            for trial, outcome in zip(batch, self._launched(batch, fixed, started), strict=True):
                if isinstance(outcome, ConfigError):
                    # Not counted as finished: the fault may be fixed before the next start.
                    study.tell(trial, state=TrialState.FAIL)
                    log.warning("trial %d is not valid: %s", trial.number, outcome)
                    faults.append(outcome)
                elif math.isfinite(outcome):
                    study.tell(trial, outcome)
                else:  # "pruned": worse than all others, so that the sampler avoids this region
                    study.tell(trial, state=TrialState.PRUNED)
            started += len(batch)
            done += len(batch)
        if faults and len(faults) == started:
            raise faults[-1]
        self._conclude(study)

    def _launched(
        self, batch: Sequence["optuna.Trial"], fixed: Sequence[str], started: int
    ) -> list[float | ConfigError]:
        """The outcome of each trial: its value, NaN if it diverged, or why it is not valid."""
        outcomes: dict[int, float | ConfigError] = {}
        jobs: dict[int, list[str]] = {}
        for i, trial in enumerate(batch):
            job = [*fixed, *assignments(trial.params)]
            try:
                self.validate_batch_is_legal([job])
            except (HydraException, OmegaConfBaseException) as error:
                outcomes[i] = ConfigError(explain(error))
            else:
                jobs[i] = job
        if jobs:
            assert self.launcher is not None
            returns = self.launcher.launch(list(jobs.values()), initial_job_idx=started)
            outcomes |= {i: _value_of(job) for i, job in zip(jobs, returns, strict=True)}
        return [outcomes[i] for i in range(len(batch))]

    def _conclude(self, study: "optuna.Study") -> None:
        from optuna.trial import TrialState

        if not study.get_trials(states=[TrialState.COMPLETE]):
            log.warning("study %s: no trial finished", study.study_name)
            return
        best = study.best_trial
        values = " ".join(assignments(best.params))
        log.info("best of %d trials: %.6g with %s", self.trials, best.value, values)
        result = {"name": "optuna", "best_params": best.params, "best_value": best.value}
        assert self.config is not None
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "optimization_results.yaml").write_text(yaml.safe_dump(result))

    def _run(self, fixed: list[str]) -> RunConfig:
        """The run without the searched values; registers what its plugins define."""
        assert self.hydra_context is not None
        assert self.config is not None
        job = self.hydra_context.config_loader.load_sweep_config(self.config, fixed)
        plain = OmegaConf.to_container(
            OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]), resolve=True
        )
        assert isinstance(plain, dict)
        run = parse({str(key): value for key, value in plain.items()})
        load_plugins(run.plugins)
        return run


def assignments(params: Mapping[str, Any]) -> list[str]:
    """Values in the syntax of the command line."""
    return [f"{key}={value}" for key, value in params.items()]


def distribution(override: Override) -> "optuna.distributions.BaseDistribution":
    """Convert Hydra's sweep syntax to an Optuna distribution.

    Raises:
        ConfigError: An interval or range is empty.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value: Any = override.value()
    try:
        if override.is_interval_sweep():
            is_log = "log" in value.tags
            if isinstance(value.start, int) and isinstance(value.end, int):
                return IntDistribution(value.start, value.end, log=is_log)
            return FloatDistribution(value.start, value.end, log=is_log)
        choices: list[Any] = list(override.sweep_iterator(transformer=Transformer.encode))
        if isinstance(value, RangeSweep) and not value.shuffle:
            low, high, step = min(choices), max(choices), abs(value.step)
            if all(isinstance(choice, int) for choice in choices):
                return IntDistribution(low, high, step=int(step))
            return FloatDistribution(low, high, step=step)
        return CategoricalDistribution(choices)
    except ValueError as error:
        raise ConfigError(f"{override.get_key_element()}: {error}") from error


def _direction(run: RunConfig) -> Literal["maximize", "minimize"]:
    from seven_exp.datasets import lower_is_better

    return "minimize" if lower_is_better(run.dataset.name) else "maximize"


def _hash_of(run: RunConfig, space: Mapping[str, Any]) -> str:
    from seven_exp.runs.identity import digest, run_hash

    searched = {key: repr(values) for key, values in space.items()}
    return digest({"run": run_hash(run), "searched": searched})


def _journal(path: Path) -> "optuna.storages.BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalFileOpenLock(str(path))))


def _value_of(job: JobReturn) -> float | ConfigError:
    """What a job returned; NaN if its loss diverged, an error if its values are not valid.

    Raises:
        InterruptedRun: Another process is executing the trial's run.
        Exception: Any other failure of the job, which the other trials would share.
    """
    try:
        value = job.return_value
    except ConfigError as error:
        return error
    except Exception as error:
        training = sys.modules.get("seven_exp.training.loop")
        if training is not None and isinstance(error, training.DivergedError):
            return math.nan
        raise
    if value is None:
        raise InterruptedRun("another process is executing a trial's run")
    return float(value)
