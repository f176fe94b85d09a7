"""Exporting: writes a file, reads it again and compares; only then the folder gets its name."""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seven_exp.config import faults_of_the_user
from seven_exp.export.comparison import Comparison, compare
from seven_exp.export.formats import ExportError, check_format, files_of
from seven_exp.export.tensors import state_of
from seven_exp.files.atomic import replacing_folder
from seven_exp.runs.build import blank_model
from seven_exp.runs.provenance import versions
from seven_exp.runs.restore import Restored, reopened, restore

SCHEMA = 1
"""Version of the schema of export.json."""

NAME = "export.json"

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_WEIGHTS = (".safetensors", ".onnx", ".bin")


@dataclass(frozen=True)
class Exported(Restored):
    """A loaded export: as a restored run, without masks; its model is called like the run's own.

    Attributes:
        facts: As in ``export.json``.
    """

    facts: Mapping[str, Any]


def is_export(folder: Path) -> bool:
    """Whether a folder holds an export instead of a run."""
    return (folder / NAME).is_file()


def export(
    folder: Path,
    format: str,
    *,
    dtype: str = "float32",
    output: Path | None = None,
    batches: int | None = None,
    trust_plugins: bool = False,
) -> tuple[dict[str, Any], Path]:
    """Write a finished run's model in a format, read it again and compare it on the test split.

    Args:
        folder: Folder of a run, or of an export if the format accepts one.
        format: One of `FORMATS`.
        dtype: Dtype of floating-point weights, one of `DTYPES`; they are rounded before the
            comparison.
        output: The export's folder; None: ``exports/FORMAT`` in ``folder``.
        batches: Number of batches to compare on; None: the whole split.
        trust_plugins: Whether to run the plugins that the run's record names.

    Returns:
        The content of ``export.json``, and the export's folder.

    Raises:
        ConfigError: The run can't be restored.
        ExportError: The format does not fit it, the file differs from the model, or
            the run's model is not as good as its record says.
    """
    check_format(format)
    files = files_of(format)
    output = output or folder / "exports" / format.replace(":", "_")
    if output.exists() and any(output.iterdir()) and not is_export(output):
        raise ExportError(f"--output is '{output}': it holds something else; choose a new folder")
    if is_export(folder):
        if not files.TAKES_EXPORTS:
            raise ExportError(f"'{folder}' is an export: format {format} is made from a run")
        source: Restored = load(folder, trust_plugins=trust_plugins)
    else:
        source = restore(folder, trust_plugins=trust_plugins)
    # Formats are compared in float32, whatever the run's dtype.
    _round(source.model.float(), DTYPES[dtype])
    with faults_of_the_user(), replacing_folder(output) as partial:
        facts = _facts(source, folder, format, dtype) | files.write(source, partial, DTYPES[dtype])
        sizes = {p.name: p.stat().st_size for p in partial.iterdir() if p.suffix in _WEIGHTS}
        facts |= {"files": sizes, "bytes": sum(sizes.values())}
        facts["ratio"] = facts["bytes"] / facts["bytes_dense"]
        model, data = source.config.model, source.data
        again = files.read(partial, facts, lambda: blank_model(model, data).float())
        found = compare(source.model, again, data.test, data.task, batches)
        if files.EXACT:
            _check_bits(source.model, again)
        if not (found.difference == 0 if files.EXACT else found.same):
            raise ExportError(
                f"format {format}: read again, logits differ by up to {found.difference:.3g} and "
                f"{found.metric} is {found.other:.6g}, not {found.value:.6g}; nothing is exported"
            )
        recorded = source.record["metrics"].get(found.metric)
        if dtype == "float32" and batches is None and recorded is not None:
            _check_recorded(found, recorded, _precise(source))
        facts["comparison"] = {**vars(found), "recorded": recorded}
        (partial / NAME).write_text(json.dumps(facts, indent=1) + "\n")
    return facts, output


def load(folder: Path, *, trust_plugins: bool = False) -> Exported:
    """An export's model with its data.

    Args:
        folder: Folder of an export.
        trust_plugins: Whether to run the plugins that it names.

    Raises:
        ConfigError: It is broken, its data can't be loaded, or its plugins are not trusted.
        ExportError: A package that its format needs is not installed.
    """
    with faults_of_the_user():
        facts = json.loads((folder / NAME).read_text())
        check_format(facts["format"])
        config, data = reopened(
            facts["config"], facts.get("directory"), trust_plugins=trust_plugins
        )
        model = files_of(facts["format"]).read(
            folder, facts, lambda: blank_model(config.model, data).float()
        )
        of_run = {key: facts.get(key) for key in ("config", "directory")}
        record = {**facts["record"], **of_run}
        return Exported(record, config, data, model, {}, facts["bytes_dense"], facts)


def _facts(source: Restored, folder: Path, format: str, dtype: str) -> dict[str, Any]:
    kept = (
        *("run_hash", "pruner", "pattern", "model", "dataset", "seed", "sparsity"),
        *("metrics", "metric", "flops_dense", "flops_sparse", "params_total"),
    )
    halved = sum(
        (2 if t.is_floating_point() else t.element_size()) * t.numel()
        for t in state_of(source.model, torch.float32).values()
    )
    return {
        "schema": SCHEMA,
        "format": format,
        "dtype": dtype,
        "source": str(folder),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "bytes_dense": source.dense_bytes,
        "bytes_dense_half": halved,
        "record": {key: source.record.get(key) for key in kept},
        "versions": versions(),
        "config": source.record["config"],
        "directory": source.record.get("directory"),
    }


@torch.no_grad()
def _round(model: nn.Module, dtype: torch.dtype) -> None:
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(dtype))
            if not math.isfinite(tensor.abs().max().item() if tensor.numel() else 0.0):
                raise ExportError(f"weights are too large for {dtype}: choose bfloat16")


def _precise(source: Restored) -> bool:
    """Whether the run itself was evaluated in float32."""
    weights = source.config.model.arguments.get("dtype", "float32")
    return source.config.trainer.precision == "fp32" and weights == "float32"


def _check_recorded(found: Comparison, recorded: float, precise: bool) -> None:
    """Compare the run's model with its record, up to rounding on other machines.

    Raises:
        ExportError: The model or the data have changed.
    """
    slack = max(1e-3 if precise else 1e-2, 2 / found.examples)
    if not math.isclose(found.value, recorded, rel_tol=slack, abs_tol=slack):
        raise ExportError(
            f"the run's record says {found.metric} {recorded:.6g}, and its model has "
            f"{found.value:.6g} on the test split: weights or data have changed; nothing is "
            "exported"
        )


def _check_bits(model: nn.Module, again: nn.Module) -> None:
    ours, theirs = model.state_dict(), again.state_dict()
    for name, tensor in ours.items():
        if not torch.equal(tensor, theirs[name]):
            raise ExportError(f"read again, {name} is not what was written; nothing is exported")
