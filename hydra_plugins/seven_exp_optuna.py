"""Optuna as a Hydra sweeper: the results so far determine the next values.

The public plugin, hydra-optuna-sweeper 1.3, requires Optuna 2, whose storage does not work with
the present SQLAlchemy, so its studies can't be continued. Here a study is a journal on disk, and
the same command continues it.
"""

import logging
import math
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
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
        for key, number in (("trials", trials), ("jobs", jobs)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"hydra.sweeper.{key} is {number}: choose 1 or more")
        self.direction, self.trials, self.jobs, self.seed = direction, trials, jobs, seed
        self.folder, self.study, self.params = Path(folder), study, params or {}
        self._launches = 0

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
        last = self.overrides(arguments)
        space = {key: distribution(o) for key, o in last.items() if o.is_sweep_override()}
        fixed = [assignment(o) for key, o in last.items() if key not in space]
        if not space:
            raise ConfigError(
                "hydra.sweeper.params: nothing to search; "
                "give a range such as 'pruner.alpha_1=interval(0.5,0.95)'"
            )
        self._conclude(self.optimized(space, [fixed]))

    def overrides(self, arguments: Sequence[str]) -> dict[str, Override]:
        """Key -> value, where the command line replaces a preset's line, as in Hydra's sweeper.

        Raises:
            ConfigError: Optuna is not installed.
        """
        if find_spec("optuna") is None:
            raise ConfigError("hydra/sweeper=optuna needs Optuna: uv sync --extra optuna")
        given = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        parsed = OverridesParser.create().parse_overrides(given)
        return {override.get_key_element(): override for override in parsed}

    def optimized(
        self,
        space: Mapping[str, "optuna.distributions.BaseDistribution"],
        points: Sequence[list[str]],
        first: Mapping[str, Any] | None = None,
    ) -> "optuna.Study":
        """The study of a search space, continued up to its trials.

        Args:
            space: What is searched.
            points: The fixed values of each of a trial's runs; the trial's value is their mean.
            first: Values of the first trial.

        Raises:
            ConfigError: Another process runs the study, or no trial is valid.
        """
        import optuna

        runs = [self.run(point) for point in points]
        with faults_of_the_user():
            name = self.study or _hash_of(runs, space)
        self.folder.mkdir(parents=True, exist_ok=True)
        with held(FileLock(self.folder / f"{name}.lock"), wait=0) as mine:
            if not mine:
                raise ConfigError(f"hydra.sweeper.study: another process is running '{name}'")
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            study = optuna.create_study(
                study_name=name,
                storage=_journal(self.folder / f"{name}.journal"),
                direction=self.direction or _direction(runs[0]),
                load_if_exists=True,
            )
            if first and not study.trials:
                study.enqueue_trial(dict(first))
            self._optimize(study, space, points)
        return study

    def _optimize(
        self, study: "optuna.Study", space: Mapping[str, Any], points: Sequence[list[str]]
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
            for trial, outcome in zip(batch, self._launched(batch, points), strict=True):
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

    def _launched(
        self, batch: Sequence["optuna.Trial"], points: Sequence[list[str]]
    ) -> list[float | ConfigError]:
        """The outcome of each trial: its value, NaN if it diverged, or why it is not valid."""
        outcomes: dict[int, float | ConfigError] = {}
        jobs: dict[int, list[list[str]]] = {}
        for i, trial in enumerate(batch):
            own = [[*point, *assignments(trial.params)] for point in points]
            try:
                self.validate_batch_is_legal(own)
            except (HydraException, OmegaConfBaseException) as error:
                outcomes[i] = ConfigError(explain(error))
            else:
                jobs[i] = own
        if jobs:
            assert self.launcher is not None
            every = [job for own in jobs.values() for job in own]
            returns = iter(self.launcher.launch(every, initial_job_idx=self._launches))
            self._launches += len(every)
            outcomes |= {
                i: _mean([_value_of(next(returns)) for _ in own]) for i, own in jobs.items()
            }
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

    def run(self, fixed: list[str]) -> RunConfig:
        """The run without the searched values; registers what its plugins define.

        Raises:
            ConfigError: It is not valid, or has no validation split.
        """
        assert self.hydra_context is not None
        assert self.config is not None
        job = self.hydra_context.config_loader.load_sweep_config(self.config, fixed)
        plain = OmegaConf.to_container(
            OmegaConf.masked_copy(job, [str(key) for key in job if key != "hydra"]), resolve=True
        )
        assert isinstance(plain, dict)
        run = parse({str(key): value for key, value in plain.items()})
        if run.dataset.validation == 0:
            raise ConfigError(
                "dataset.validation is 0.0: trials are compared on the validation split; choose a "
                "fraction of the training data, such as 0.1"
            )
        load_plugins(run.plugins)
        return run


def assignment(override: Override) -> str:
    """A fixed value in the syntax of the command line."""
    return f"{override.get_key_element()}={override.get_value_element_as_str()}"


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
    """That of the data set's headline metric."""
    from seven_exp.datasets import lower_is_better
    from seven_exp.registry import ADDED_BY

    lower = lower_is_better(run.dataset.name)
    if ("dataset", run.dataset.name) in ADDED_BY:
        from seven_exp.runs.build import data_of

        # Only the data of a plugin tell their task.
        with faults_of_the_user():
            data = data_of(run.dataset, run.trainer.batch_size, run.seed)
        lower = data.task.lower_is_better
    return "minimize" if lower else "maximize"


def _hash_of(runs: Sequence[RunConfig], space: Mapping[str, Any]) -> str:
    from seven_exp.runs.identity import digest, run_hash

    searched = {key: repr(values) for key, values in space.items()}
    return digest({"runs": [run_hash(run) for run in runs], "searched": searched})


def _mean(values: Sequence[float | ConfigError]) -> float | ConfigError:
    """The mean of a trial's runs; the first fault, if one of them is not valid."""
    faults = [value for value in values if isinstance(value, ConfigError)]
    numbers = [value for value in values if not isinstance(value, ConfigError)]
    return faults[0] if faults else sum(numbers) / len(numbers)


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
        raise InterruptedRun(
            "a trial has no result: another process is executing its run, or its data set has no "
            "validation split"
        )
    return float(value)
