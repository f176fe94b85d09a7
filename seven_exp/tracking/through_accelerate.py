"""TensorBoard, MLflow, Trackio and others, through accelerate's trackers."""

import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from seven_exp.config import ConfigError
from seven_exp.config import Tracker as TrackerConfig
from seven_exp.tracking.interface import Histogram, RunInfo, Value
from seven_exp.tracking.registry import TRACKERS
from seven_exp.tracking.weights_and_biases import PROJECT

ARGUMENTS: Mapping[str, Callable[[str, RunInfo], dict[str, Any]]] = {
    "tensorboard": lambda _, run: {"run_name": "", "logging_dir": run.folder / "tensorboard"},
    "aim": lambda _, run: {"run_name": run.name, "logging_dir": "."},
    "mlflow": lambda project, run: {"experiment_name": project, "run_name": run.name},
    "trackio": lambda project, run: {"run_name": project, "name": run.name, "group": run.group},
    "swanlab": lambda project, run: {"run_name": project, "experiment_name": run.name},
    "comet_ml": lambda project, _: {"run_name": project},
    "clearml": lambda project, run: {"run_name": project, "task_name": run.name},
    "dvclive": lambda _, run: {"dir": str(run.folder / "dvclive")},
}
"""accelerate's name of a tracker, also its package's -> arguments for a project and a run."""


class AccelerateTracker:
    """Logs a run's config, curves and final metrics with one of accelerate's trackers.

    Addresses and accounts come from that tracker's own settings, such as ``MLFLOW_TRACKING_URI``.

    Args:
        name: A key of `ARGUMENTS`.
        config: The section ``tracker`` of the config.

    Raises:
        ConfigError: accelerate or the tracker's package is not installed.
    """

    def __init__(self, name: str, config: TrackerConfig) -> None:
        missing = [p for p in ("accelerate", name) if importlib.util.find_spec(p) is None]
        if missing:
            raise ConfigError(
                f"tracker.also holds '{name}': not installed: pip install {' '.join(missing)}"
            )
        self._name, self._project = name, config.project or PROJECT

    def start(self, run: RunInfo) -> None:
        """Open the run and log its config, with the keys of the command line."""
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        kind = LOGGER_TYPE_TO_CLASS[self._name]
        self._tracker = kind(**ARGUMENTS[self._name](self._project, run))
        self._tracker.start()
        self._tracker.store_init_configuration({k: _simple(v) for k, v in run.settings.items()})
        self._step = run.resumed

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Log numbers; histograms are in ``analysis.json``."""
        self._step = step
        numbers = {key: v for key, v in values.items() if not isinstance(v, Histogram)}
        self._tracker.log(numbers, step=step)

    def finish(self, record: Mapping[str, Any]) -> None:
        """Log the final metrics under ``final/`` and close the run."""
        final = {**record["metrics"], "sparsity": record["sparsity"], "seconds": record["seconds"]}
        self._tracker.log({f"final/{key}": v for key, v in final.items()}, step=self._step)
        self._tracker.finish()


def _simple(value: Any) -> Any:
    """A hyper-parameter: accelerate takes no None and no containers."""
    return value if isinstance(value, bool | int | float | str) else json.dumps(value)


for _name in ARGUMENTS:
    TRACKERS.add(_name, partial(AccelerateTracker, _name))
