"""A comparison at the end of every sweep, without being asked."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

_begun: list[Path] = []
"""Folders of multiruns that were not compared yet."""


class CompareAfterMultirun(Callback):
    """Hydra's callback: once all jobs of a multirun are done, compare their records."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Remember the folder: Hydra calls nobody at the end of a sweep with a failed job."""
        _begun.append(Path(config.hydra.sweep.dir))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the table and write the pictures into the sweep's folder."""
        from seven_exp.compare.__main__ import main

        _begun.clear()
        main([str(config.hydra.sweep.dir)])


def compare_begun() -> None:
    """Compare what there is of a multirun that some job of has failed."""
    from seven_exp.compare.__main__ import compare

    while _begun:
        with suppress(ValueError):
            compare([_begun.pop()])
