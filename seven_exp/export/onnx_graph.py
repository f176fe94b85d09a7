"""ONNX: a graph that other runtimes read."""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.export.formats import ExportError
from seven_exp.runs.build import first_example
from seven_exp.runs.restore import Restored
from seven_exp.tasks import forward

EXACT, TAKES_EXPORTS = False, True

NAME = "model.onnx"


def write(source: Restored, folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """``model.onnx``: the model's own inputs, one output "logits"; batch and length are free.

    Raises:
        ExportError: The dtype is not float32.
    """
    if dtype != torch.float32:
        raise ExportError("format onnx is written as float32: choose --dtype float32")
    example = first_example(source.data.test, torch.device("cpu"))
    # A single example would fix the graph's batch size.
    if isinstance(example, Tensor):
        names = ["images"]
        arguments: tuple[Tensor, ...] = (example.repeat(2, *[1] * (example.dim() - 1)),)
        shapes: tuple[dict[int, str], ...] = ({0: "batch"},)
    else:
        names = list(example)
        arguments = tuple(value.repeat(2, 1) for value in example.values())
        shapes = tuple({0: "batch", 1: "length"} for _ in names)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Logits(source.model, names if isinstance(example, Mapping) else None).eval(),
            arguments,
            str(folder / NAME),
            dynamo=True,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(shapes,),
            external_data=False,
            verbose=False,
        )
    _forget_the_source(folder / NAME)
    return {"inputs": names}


def read(folder: Path, facts: Mapping[str, Any], blank: Callable[[], nn.Module]) -> nn.Module:
    """Load the graph into ONNX Runtime, called like a model, on the CPU."""
    return Session(folder / NAME)


def _forget_the_source(path: Path) -> None:
    """Remove what torch records at every node: lines of code and paths of this machine."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    for part in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
        part.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


class _Logits(nn.Module):
    """A model with its inputs in order, and its logits as the only output."""

    def __init__(self, model: nn.Module, names: list[str] | None) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logits."""
        if self.names is None:
            return forward(self.model, inputs[0])
        return forward(self.model, dict(zip(self.names, inputs, strict=True)))


class Session(nn.Module):
    """A graph computed by ONNX Runtime, called like the original model."""

    def __init__(self, path: Path) -> None:
        """Load the graph, with as many threads as torch uses."""
        super().__init__()
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.names = [given.name for given in self.session.get_inputs()]

    def forward(self, *images: Tensor, **inputs: Tensor) -> Tensor:
        """The logits of images, or of text by keyword."""
        given = inputs or dict(zip(self.names, images, strict=True))
        arrays = {name: given[name].cpu().numpy() for name in self.names}
        return torch.from_numpy(self.session.run(["logits"], arrays)[0])
