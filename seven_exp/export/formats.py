"""What a format of export is, and which there are; naming them loads no library."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seven_exp.config import ConfigError
from seven_exp.registry import nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from seven_exp.runs.restore import Restored

FORMATS = {
    "dense": "as torchvision and transformers load it, pruned weights zero",
    "sparse": "kept weights and a bit for each place (sparse-bitmask)",
    "2:4": "two of four weights and their places, for sparse tensor cores",
    "onnx": "a graph for other runtimes (extra onnx)",
    "small": "without the rows and heads that are gone, outputs the same",
}
"""Name -> what it is."""

_MODULES = {"2:4": "semi_structured", "onnx": "onnx_graph"}

_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


class ExportError(ConfigError):
    """The run can't be had in this format, in one line."""


class Files(Protocol):
    """A format: a module of this package."""

    EXACT: bool
    """Whether what is read is what was written, to the bit; else to float32's rounding."""

    TAKES_EXPORTS: bool
    """Whether what was exported can be exported again."""

    def write(self, source: "Restored", folder: Path, dtype: "torch.dtype") -> dict[str, Any]:
        """Write the model into an empty folder.

        Args:
            source: A finished run's.
            folder: Where files go.
            dtype: Of floating-point weights.

        Returns:
            What is to be known of the export beside its size.

        Raises:
            ExportError: The format does not fit the run.
        """
        ...

    def read(
        self, folder: Path, facts: Mapping[str, Any], blank: "Callable[[], nn.Module]"
    ) -> "nn.Module":
        """The model that `write` wrote, float32, in evaluation mode, called like the run's own.

        Args:
            folder: The export's.
            facts: Its ``export.json``.
            blank: Makes the run's architecture.
        """
        ...


def check_format(name: str) -> None:
    """Look whether there is such a format and all that it needs, without loading anything.

    Raises:
        ExportError: There is not; the message says what to do.
    """
    if name not in FORMATS:
        raise ExportError(f"unknown format '{name}': {nearest(name, FORMATS)}")
    for package in _NEEDS.get(name, ()):
        if importlib.util.find_spec(package) is None:
            raise ExportError(f"format {name} needs {package}: uv sync --extra {name}")


def files_of(name: str) -> Files:
    """The module of a format's name; see `check_format`."""
    module: Files = importlib.import_module(f"seven_exp.export.{_MODULES.get(name, name)}")
    return module
