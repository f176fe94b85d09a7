"""Equal tuning as a Hydra sweeper: the same number of trials for each method, on validation.

`seven-exp tune` selects it. A method's search space is what it is registered with; the study of
each is Optuna's.
"""

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import Override

from hydra_plugins.seven_exp_optuna import OptunaSweeper, assignment, distribution
from seven_exp.config import ConfigError, RunConfig
from seven_exp.messages import one_line
from seven_exp.training.interruption import InterruptedRun

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

AVERAGED = ("seed", "sparsity")
"""Keys whose lists are not searched: a trial's value is the mean over all of them."""


class TuneSweeper(OptunaSweeper):
    """Tunes each of the values of ``pruner``, one after the other.

    Args:
        output: The file of tuned values.
        **settings: See `OptunaSweeper`.
    """

    def __init__(self, output: str, **settings: Any) -> None:
        super().__init__(**settings)
        if self.study is not None:
            raise ConfigError(
                f"tune.study is '{self.study}': each method has its own; leave it out"
            )
        self.output = Path(output)

    def sweep(self, arguments: list[str]) -> None:
        """Tune the methods; the file is written after each, and shown as a table at the end.

        Raises:
            HydraException: A config does not compose; nothing is tuned.
            ConfigError, Exception: A method can't be tuned; the others are.
        """
        from seven_exp.cli.tuned import Tuned, show_tuned, write_tuned

        last = self.overrides(arguments)
        pruner = last.pop("pruner", None)
        axes = [_values(last.pop(key)) for key in AVERAGED if key in last]
        shared = {key: distribution(o) for key, o in last.items() if o.is_sweep_override()}
        fixed = [assignment(o) for key, o in last.items() if key not in shared]
        points = [[*fixed, *point] for point in itertools.product(*axes)]
        assert self.config is not None
        chosen = f"pruner={self.config.hydra.runtime.choices['pruner']}"
        wanted = [chosen] if pruner is None else _values(pruner)
        composed = {method: self._runs([[*point, method] for point in points]) for method in wanted}
        methods: dict[str, Tuned] = {}
        failures: list[Exception] = []
        for method, runs in composed.items():
            try:
                if isinstance(runs, ConfigError):
                    raise runs
                if runs[0].pruner.name in methods:
                    raise ConfigError(f"two of the choices are {runs[0].pruner.name}")
                space = {**_space(runs[0], last), **shared}
                tuned = self._tuned(runs[0], space, [[*point, method] for point in points])
            except InterruptedRun:
                raise
            except Exception as error:
                log.warning("%s can't be tuned: %s", method, one_line(error))
                failures.append(error)
                continue
            methods[runs[0].pruner.name] = tuned
            write_tuned(self.output, methods, runs, self.trials)
        show_tuned(methods)
        if methods:
            log.info("written: %s (use it with tuned=%s)", self.output, self.output)
        if failures:
            raise failures[0]

    def _runs(self, points: Sequence[list[str]]) -> list[RunConfig] | ConfigError:
        """The runs of a trial, without the searched values; or why they are not valid."""
        from seven_exp.runs.check import check

        try:
            runs = [self.run(point) for point in points]
            check(runs[0])
        except ConfigError as error:
            return error
        return runs

    def _tuned(self, run: RunConfig, space: Mapping[str, Any], points: Sequence[list[str]]) -> Any:
        from optuna.trial import TrialState

        from seven_exp.cli.tuned import Tuned

        if not space:
            log.info("%s has no search space: its defaults are used", run.pruner.name)
            return Tuned({}, "no search space: the defaults")
        usual = _usual(run, space)
        log.info("%s: searching %s", run.pruner.name, ", ".join(space))
        study = self.optimized(space, points, usual)
        done = study.get_trials(states=[TrialState.COMPLETE])
        if not done:
            return Tuned({}, "no trial finished: the defaults")
        best = study.best_trial
        return Tuned(
            best.params,
            f"best of {len(done)} finished trials, {study.direction.name.lower()}d",
            best.value,
            next((trial.value for trial in done if usual and trial.params == usual), None),
            self._metric(study),
            study.study_name,
        )

    def _metric(self, study: "optuna.Study") -> str | None:
        """Name of the metric, as the study's runs have recorded it."""
        assert self.config is not None
        for path in Path(self.config.hydra.sweep.dir).rglob("results.json"):
            study.set_user_attr("metric", json.loads(path.read_bytes())["metric"])
            break
        metric: str | None = study.user_attrs.get("metric")
        return metric


def _values(override: Override) -> list[str]:
    """Each value of a key, as a fixed override."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [assignment(override)]
    return [f"{key}={value}" for value in override.sweep_string_iterator()]


def _space(
    run: RunConfig, given: Mapping[str, Override]
) -> "dict[str, optuna.distributions.BaseDistribution]":
    """The space that the run's method declares, without keys that the command line gives."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from seven_exp.pruning import PRUNERS

    declared = PRUNERS[run.pruner.name].space.items()
    parsed = OverridesParser.create().parse_overrides([f"pruner.{k}={v}" for k, v in declared])
    spaces = {override.get_key_element(): override for override in parsed}
    return {key: distribution(o) for key, o in spaces.items() if key not in given}


def _usual(run: RunConfig, space: Mapping[str, Any]) -> dict[str, Any] | None:
    """The config's own values of the searched keys; None if one of them is outside its space."""
    from optuna.distributions import CategoricalDistribution

    found: dict[str, Any] = {}
    for key, searched in space.items():
        value: Any = run.model_dump()
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        inside = (
            value in searched.choices
            if isinstance(searched, CategoricalDistribution)
            else isinstance(value, int | float) and searched.low <= value <= searched.high
        )
        if not inside:
            return None
        found[key] = value
    return found
