"""A sweep's mistakes, said before its first job runs."""

import sys
from contextlib import suppress
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.command import checked
from seven_exp.config import ConfigError


class CheckBeforeMultirun(Callback):
    """Hydra's callback: composes and checks points that have every value of every axis.

    The jobs that are valid run all the same, and the sweep fails in the end.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """One line on stderr for each value that is not valid."""
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            return  # others choose their points as they go
        # Hydra itself tells of values that do not compose.
        with suppress(HydraException, OmegaConfBaseException):
            _check(config)


def _check(config: DictConfig) -> None:
    loader = GlobalHydra.instance().config_loader()
    params = config.hydra.sweeper.params or {}
    overrides = OverridesParser.create(loader).parse_overrides(
        [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    )
    valid: set[str] = set()
    said: set[str] = set()
    for point in BasicSweeper.split_arguments(overrides, None)[0]:
        if valid.issuperset(point):
            continue
        values = loader.load_sweep_config(config, point)
        keys = [str(key) for key in values if key != "hydra"]
        try:
            checked(OmegaConf.masked_copy(values, keys))
        except ConfigError as error:
            if str(error) not in said:
                print(f"error: {error} (jobs that are valid will run)", file=sys.stderr)
            said.add(str(error))
        else:
            valid.update(point)
