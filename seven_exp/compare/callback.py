"""A comparison at the end of every sweep, without being asked."""

from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CompareAfterMultirun(Callback):
    """Hydra's callback: once all jobs of a multirun are done, compare their records."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the pictures into the sweep's folder."""
        from seven_exp.compare.__main__ import main

        main([str(config.hydra.sweep.dir)])
