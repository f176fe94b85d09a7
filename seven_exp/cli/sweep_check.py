"""Reports a sweep's mistakes before its first job runs."""

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

from seven_exp.cli.train import checked
from seven_exp.config import ConfigError


class CheckBeforeMultirun(Callback):
    """Hydra callback: composes and checks points that cover every value of every axis.

    The valid jobs still run, and the sweep fails at the end. If a point does not compose, for
    example because of a misspelt name, Hydra reports it and no job runs.
    """

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Print one line on stderr for each value that is not valid."""
        if not config.hydra.sweeper._target_.endswith("BasicSweeper"):
            return  # other sweepers choose their points during the sweep
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            _check(config)


def _check(config: DictConfig) -> None:
    loader = GlobalHydra.instance().config_loader()
    params = config.hydra.sweeper.params or {}
    overrides = OverridesParser.create(loader).parse_overrides(
        [*(f"{key}={value}" for key, value in params.items()), *config.hydra.overrides.task]
    )
    points = BasicSweeper.split_arguments(overrides, None)[0]

    def composed(point: list[str]) -> DictConfig | None:
        with suppress(HydraException, OmegaConfBaseException, ValueError):
            return loader.load_sweep_config(config, point)
        return None

    valid: set[str] = set()
    faults: dict[str, None] = {}
    for point in points:
        if valid.issuperset(point) or (values := composed(point)) is None:
            continue
        keys = [str(key) for key in values if key != "hydra"]
        try:
            checked(OmegaConf.masked_copy(values, keys), values.hydra.overrides.task)
        except ConfigError as error:
            faults |= dict.fromkeys(error.args)
        else:
            valid.update(point)
    # Composing all points takes time, and Hydra will do it again: so do it last.
    starts = bool(faults) and all(composed(point) is not None for point in points)
    for fault in faults:
        print(f"error: {fault}{' (jobs that are valid will run)' * starts}", file=sys.stderr)
