"""The ways to run one pruned model."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from seven_exp.datasets import Data
from seven_exp.export.exporting import is_export, load
from seven_exp.export.semi_structured import accelerate, two_of_four
from seven_exp.measure.csr import bytes_of, to_csr
from seven_exp.runs.build import blank_model, first_example, first_inputs
from seven_exp.runs.restore import restore
from seven_exp.shrink import shrink
from seven_exp.tasks import Inputs
from seven_exp.training.flops import forward_flops


@dataclass(frozen=True)
class Variant:
    """One way to run a model.

    Attributes:
        name: For people.
        model: In evaluation mode.
        bytes: Of the weights: on disk, or in memory if they are in no file.
        flops: Operations of one example, in theory, if every known zero were skipped.
        skips: Whether its kernels skip zeros, or there are none.
    """

    name: str
    model: nn.Module
    bytes: int
    flops: int | None
    skips: bool


@dataclass(frozen=True)
class Subject:
    """What is measured: the dense model first, then the others.

    Attributes:
        variants: At least two.
        data: Data of the run.
    """

    variants: list[Variant]
    data: Data


def subject_of(
    folder: Path, device: torch.device, dtype: torch.dtype, *, trust_plugins: bool = False
) -> Subject:
    """The variants of a run, or an export and the dense model of its run.

    Args:
        folder: Folder of a run or an export.
        device: Device to run on.
        dtype: Dtype of the weights.
        trust_plugins: Whether to run the plugins that the folder's record names.

    Raises:
        ConfigError: The folder holds neither, or its data can't be loaded.
    """
    if is_export(folder):
        exported = load(folder, trust_plugins=trust_plugins)
        record, facts = exported.record, exported.facts
        is_small, flops = facts["format"] == "small", record["flops_sparse"]
        if is_small:
            flops = _counted(exported.model, exported.data)
        dense = blank_model(exported.config.model, exported.data)
        variants = [
            Variant("dense", dense, exported.dense_bytes, record["flops_dense"], True),
            Variant(facts["format"], exported.model, facts["bytes"], flops, is_small),
        ]
        return Subject([_on(v, device, dtype) for v in variants], exported.data)
    source = restore(folder, trust_plugins=trust_plugins)
    flops = source.record["flops_sparse"]
    dense = copy.deepcopy(source.model)
    fill(dense, source.masks)
    variants = [
        Variant("dense", dense, source.dense_bytes, source.record["flops_dense"], True),
        Variant("zeros in place", source.model, source.dense_bytes, flops, False),
    ]
    example = first_example(source.data.test, torch.device("cpu"))
    variants += _sparse(source.model, example, source.masks, flops, device, dtype)
    small = copy.deepcopy(source.model)
    try:
        shrunk = shrink(small, first_inputs(source.data.test))
    except ValueError:
        shrunk = []
    if shrunk:
        flops = _counted(small, source.data)
        variants.append(Variant("small", small, bytes_of(small), flops, True))
    return Subject([_on(v, device, dtype) for v in variants], source.data)


def _sparse(
    model: nn.Module,
    example: Inputs,
    masks: Mapping[str, Tensor],
    flops: int | None,
    device: torch.device,
    dtype: torch.dtype,
) -> Iterator[Variant]:
    """The variant with torch's kernels for sparse matrices, if it has any."""
    if device.type == "cpu" and dtype == torch.float32:
        sparse = copy.deepcopy(model)
        pruned = {name for name, mask in masks.items() if not bool(mask.all())}
        if to_csr(sparse, pruned, example):
            yield Variant("CSR", sparse, bytes_of(sparse), flops, True)
    if device.type == "cuda" and dtype != torch.float32:
        try:
            for name, mask in masks.items():
                two_of_four(name, mask)
        except ValueError:
            return
        sparse = copy.deepcopy(model).to(device, dtype)
        if accelerate(sparse, masks):
            yield Variant("2:4", sparse, bytes_of(sparse), flops, True)


@torch.no_grad()
def fill(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Replace zeros by numbers of typical size, to get a dense model of this shape."""
    generator = torch.Generator().manual_seed(0)
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        level = weight.std() if weight.numel() > 1 else 1.0
        noise = torch.randn(weight.shape, generator=generator) * level
        weight.copy_(torch.where(mask, weight, noise))


def _counted(model: nn.Module, data: Data) -> int:
    example = first_example(data.test, torch.device("cpu"))
    return forward_flops(model, example, [], {})[0]


def _on(variant: Variant, device: torch.device, dtype: torch.dtype) -> Variant:
    model = variant.model
    if next(model.parameters(), None) is not None and variant.name != "2:4":
        model = model.to(device, dtype) if dtype != torch.float32 else model.to(device)
    return replace(variant, model=model)
