"""The export formats; naming them imports no library."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from seven_exp.config import ConfigError
from seven_exp.messages import nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

    from seven_exp.runs.restore import Restored

FORMATS = {
    "dense": "for torchvision and transformers, pruned weights zero",
    "sparse": "kept weights and one bit per weight (sparse-bitmask)",
    "2:4": "two of four weights and their positions, for sparse tensor cores",
    "onnx": "a graph for other runtimes (extra onnx)",
    "small": "without the pruned rows, heads and blocks, outputs the same",
}
"""Name -> description."""

_MODULES = {"2:4": "semi_structured", "onnx": "onnx_graph"}

_NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime")}


class ExportError(ConfigError):
    """The run can't be exported in this format; one line."""


class Files(Protocol):
    """A format: a module of this package."""

    EXACT: bool
    """Whether the file reproduces the model to the bit; otherwise up to float32 rounding."""

    TAKES_EXPORTS: bool
    """Whether an export can be the source."""

    def write(self, source: "Restored", folder: Path, dtype: "torch.dtype") -> dict[str, Any]:
        """Write the model into an empty folder.

        Args:
            source: A finished run.
            folder: Folder of the files.
            dtype: Dtype of floating-point weights.

        Returns:
            The export's facts besides its size.

        Raises:
            ExportError: The format does not fit the run.
        """
        ...

    def read(
        self, folder: Path, facts: Mapping[str, Any], blank: "Callable[[], nn.Module]"
    ) -> "nn.Module":
        """The model that `write` wrote, float32, in evaluation mode, called like the run's own.

        Args:
            folder: The export's folder.
            facts: Its ``export.json``.
            blank: Makes the run's architecture.
        """
        ...


def check_format(name: str) -> None:
    """Check that a format exists and its packages are installed, without importing them.

    Raises:
        ExportError: It does not, or they are not; the message says what to do.
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
