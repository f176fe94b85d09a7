"""SEVEN's step on a GPU: one fused Triton kernel for all layers, which reads each tensor once.

It rounds after every operation, like PyTorch's separate operations, and so gives the same bits. It
is imported only if there is a GPU: torch's GPU builds include Triton.
"""

import contextlib
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from seven_exp.pruning.kernels.addresses import address
from seven_exp.pruning.kernels.seven_step import SevenStep

_BLOCK = 1024
_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


# Triton has no types: neither its decorator, nor a kernel's arguments.
@triton.jit  # type: ignore[untyped-decorator]
def _pointer(places, index, kind: tl.constexpr, aligned: tl.constexpr):  # type: ignore[no-untyped-def]
    pointer = tl.load(places + index).to(tl.pointer_type(kind))
    return tl.multiple_of(pointer, 16) if aligned else pointer


@triton.jit  # type: ignore[untyped-decorator]
def _step(  # type: ignore[no-untyped-def]  # noqa: PLR0913  a kernel takes no structures
    places,
    layer_of,
    part_of,
    sizes,
    layers,
    per_unit,
    alpha_1,
    beta_1,
    alpha_2,
    beta_2,
    unbias_root,
    unbias,
    weight_type: tl.constexpr,
    grad_type: tl.constexpr,
    moment_type: tl.constexpr,
    aligned: tl.constexpr,
    block: tl.constexpr,
):
    layer = tl.load(layer_of + tl.program_id(0))
    size = tl.load(sizes + layer)
    if aligned:
        size = tl.multiple_of(size, 16)
    i = tl.load(part_of + tl.program_id(0)) * block + tl.arange(0, block)
    inside = i < size
    w = tl.load(_pointer(places, layer, weight_type, aligned) + i, inside).to(tl.float32)
    g = tl.load(_pointer(places, layers + layer, grad_type, aligned) + i, inside).to(tl.float32)
    to_m = _pointer(places, 2 * layers + layer, moment_type, aligned) + i
    to_v = _pointer(places, 3 * layers + layer, moment_type, aligned) + i
    to_s = _pointer(places, 4 * layers + layer, tl.float32, aligned) + i

    a = tl.abs(g)
    # NaN compares false.
    a = tl.where(a <= 3.402823466e38, a, 0.0) * per_unit
    m = tl.load(to_m, inside).to(tl.float32) * alpha_1 + a * beta_1
    v = tl.load(to_v, inside).to(tl.float32) * alpha_2 + a * a * beta_2
    noise = tl.sqrt_rn(v) * unbias_root + 1e-9
    s = tl.load(to_s, inside) + tl.abs(tl.div_rn(a * w * m, noise)) * unbias
    tl.store(to_m, m.to(moment_type), inside)
    tl.store(to_v, v.to(moment_type), inside)
    tl.store(to_s, s, inside)


def takes(step: SevenStep) -> bool:
    """Whether the kernel supports these dtypes, and each tensor is plain memory on the GPU."""
    dtypes = [{tensor.dtype for tensor in column} for column in step.tensors]
    known = all(len(column) == 1 and column <= _TYPES.keys() for column in dtypes)
    devices = {tensor.device for column in step.tensors for tensor in column}
    *_, m, v, score = dtypes
    return known and m == v and score == {torch.float32} and len(devices) == 1


def seven(step: SevenStep) -> None:
    """`fused.seven` for tensors that `takes` accepts, without gaps and in one memory order."""
    device = step.weights[0].device
    sizes = tuple(weight.numel() for weight in step.weights)
    addresses = [
        [
            address(tensor, column[0].dtype, size, device.type).value or 0
            for tensor, size in zip(column, sizes, strict=True)
        ]
        for column in step.tensors
    ]
    weight, grad, moment = (_TYPES[column[0].dtype] for column in step.tensors[:3])
    aligned = all(number % 16 == 0 for numbers in (*addresses, sizes) for number in numbers)
    layer_of, part_of, size_of = _blocks(sizes, device)
    places = torch.tensor(addresses, dtype=torch.int64, device=device)
    on = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with on:
        _step[(len(layer_of),)](
            *(places, layer_of, part_of, size_of, len(sizes), *step.factors()),
            weight_type=weight,
            grad_type=grad,
            moment_type=moment,
            aligned=aligned,
            block=_BLOCK,
            enable_fp_fusion=False,
        )


@lru_cache(maxsize=8)
def _blocks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each block of elements its layer and its index within it; and the layers' sizes."""
    numbers = torch.tensor(sizes, dtype=torch.int64, device="cpu")
    parts = (numbers + _BLOCK - 1) // _BLOCK
    layer_of = torch.arange(len(sizes), device="cpu").repeat_interleave(parts)
    part_of = torch.arange(len(layer_of), device="cpu") - (parts.cumsum(0) - parts)[layer_of]
    return layer_of.to(device), part_of.to(device), numbers.to(device)
