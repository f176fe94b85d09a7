"""Passes over many weights, whose cost is that of reading and writing their memory.

On a CPU they are single passes in C (fused.c) if there is a compiler and the tensors are float32
and of one dense layout. Otherwise they are the same arithmetic in PyTorch, on a CPU in
pieces that fit its cache. Both round after every operation and so give the same bits.
"""

import ctypes
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from seven_exp.pruning.kernels.addresses import Column, address, alike, layers_of, plain
from seven_exp.pruning.kernels.compiled import Kernels, library
from seven_exp.pruning.kernels.seven_step import SevenStep

_IN_CACHE = 1 << 18
_ZEROED = (torch.float32, torch.bfloat16, torch.float16)
_MOMENTS = (torch.float32, torch.bfloat16)
_NOTED = 256
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Partition(NamedTuple):
    """The position of scores relative to a bracket.

    Attributes:
        candidates: Number of scores that take part.
        above: Number of these above the bracket's upper end.
        at_high: Number equal to its upper end.
        at_low: Number equal to its lower end.
        between: The scores strictly inside, flat, in any order; None if there are too many.
    """

    candidates: int
    above: int
    at_high: int
    at_low: int
    between: Tensor | None


def compiled_seven(step: SevenStep) -> Kernels | None:
    """The compiled kernels for a step's tensors; see `compiled_for`."""
    single, moment = torch.float32, step.m[0].dtype
    if moment not in _MOMENTS:
        return None
    dtypes = (single, single, moment, moment, single)
    return compiled_for(*zip(step.tensors, dtypes, strict=True))


def seven(step: SevenStep) -> None:
    """Take the step: update ``m``, ``v`` and ``score`` in place."""
    if compiled := compiled_seven(step):
        compiled.run(f"seven_{step.kind}", step.factors())
        return
    if kernel := _gpu_kernel(step):
        kernel(step)
        return
    _seven_in_pieces(step)


Kernel = Callable[[SevenStep], None]


def _gpu_kernel(step: SevenStep) -> Kernel | None:
    """The Triton kernel, if it supports these tensors and is verified on their device."""
    device = step.weights[0].device
    gpu_pass = _gpu_pass() if device.type == "cuda" else None
    if gpu_pass is None:
        return None
    takes, kernel = gpu_pass
    layers = zip(*step.tensors, strict=True)
    fit = all(alike(layer) and all(plain(t, "cuda") for t in layer) for layer in layers)
    dtypes = tuple(column[0].dtype for column in step.tensors)
    if fit and takes(step) and _proven(kernel, device, dtypes):
        return kernel
    return None


@cache
def _gpu_pass() -> tuple[Callable[[SevenStep], bool], Kernel] | None:
    """`takes` and `seven` of `gpu_pass`; None without Triton, which some builds of torch lack."""
    try:
        from seven_exp.pruning.kernels import gpu_pass
    except ImportError:
        return None
    return gpu_pass.takes, gpu_pass.seven


@cache
def _proven(kernel: Kernel, device: torch.device, dtypes: tuple[torch.dtype, ...]) -> bool:
    """Whether a kernel runs on a device and gives the bits of PyTorch's operations; tried once."""
    # Sizes that allow 16-byte loads, and others.
    for sizes in ((4096, 1024, 16), (4096, 1023, 7)):
        found, expected = (_trial(sizes, device, dtypes) for _ in range(2))
        if fault := _fault(kernel, found, expected):
            warnings.warn(
                f"SEVEN's kernel {fault} on {device}: using PyTorch's operations", stacklevel=2
            )
            return False
    return True


def _fault(kernel: Kernel, found: SevenStep, expected: SevenStep) -> str | None:
    """The fault of a kernel, given two copies of the same step; None if it has none."""
    _seven_in_pieces(expected)
    try:
        kernel(found)
    except Exception as error:
        return f"does not run ({type(error).__name__}: {error})"
    same = all(map(torch.equal, chain(*found.tensors), chain(*expected.tensors)))
    return None if same else "gives other bits"


def _trial(sizes: Sequence[int], device: torch.device, dtypes: Sequence[torch.dtype]) -> SevenStep:
    """A step on random tensors, the same in each call."""
    draw = torch.Generator().manual_seed(0)
    values = [
        torch.randn(5, n, generator=draw, dtype=torch.float32, device="cpu").abs() for n in sizes
    ]
    weights, grads, m, v, score = (
        [layer[i].to(device, dtype, copy=True) for layer in values]
        for i, dtype in enumerate(dtypes)
    )
    return SevenStep(weights, grads, m, v, score, 2.0**-8, (0.8, 0.9), 3)


def _seven_in_pieces(step: SevenStep) -> None:
    factors = list(step.factors())
    for columns in _bundles(*step.tensors):
        _seven_in_torch(columns, factors)


def _seven_in_torch(columns: Sequence[list[Tensor]], factors: Sequence[float]) -> None:
    w, g, mean, square, s = columns
    per_unit, alpha_1, beta_1, alpha_2, beta_2, unbias_root, unbias = factors
    a = [
        torch.nan_to_num(x.to(like.dtype), nan=0.0, posinf=0.0, neginf=0.0)
        for x, like in zip(g, s, strict=True)
    ]
    m, v = (
        [x.to(like.dtype) for x, like in zip(moments, s, strict=True)] for moments in (mean, square)
    )
    torch._foreach_abs_(a)
    torch._foreach_mul_(a, per_unit)
    torch._foreach_mul_(m, alpha_1)
    torch._foreach_add_(m, torch._foreach_mul(a, beta_1))
    squares = torch._foreach_mul(a, a)
    torch._foreach_mul_(squares, beta_2)
    torch._foreach_mul_(v, alpha_2)
    torch._foreach_add_(v, squares)
    noise = _roots(v)
    torch._foreach_mul_(noise, unbias_root)
    torch._foreach_add_(noise, 1e-9)
    torch._foreach_mul_(a, w)
    torch._foreach_mul_(a, m)
    torch._foreach_div_(a, noise)
    torch._foreach_abs_(a)
    torch._foreach_mul_(a, unbias)
    torch._foreach_add_(s, a)
    if mean[0].dtype != m[0].dtype:
        torch._foreach_copy_(mean, m)
        torch._foreach_copy_(square, v)


def _roots(squares: list[Tensor]) -> list[Tensor]:
    """Correctly rounded square roots; a CPU's math library need not round correctly."""
    if squares[0].device.type != "cpu" or squares[0].dtype == torch.float64:
        return list(torch._foreach_sqrt(squares))
    # No root of a float32 is so close to the middle of two floats that float64 rounds it wrong.
    return [square.double().sqrt_().float() for square in squares]


def partition(
    scores: Sequence[Tensor],
    candidates: Sequence[Tensor] | None,
    low: float,
    high: float,
    room: int,
) -> Partition:
    """Count scores relative to a bracket and gather those strictly inside.

    Args:
        scores: Real tensors of one dtype. NaN counts in no range.
        candidates: Bool tensors of the same shapes: which scores take part; None: all.
        low: The bracket's lower end.
        high: Its upper end.
        room: Largest number of scores to gather.
    """
    columns = (scores,) if candidates is None else (scores, candidates)
    if compiled := compiled_for((scores, torch.float32), (candidates, torch.bool)):
        between = torch.empty(room, dtype=torch.float32, device="cpu")
        totals = (ctypes.c_int64 * 5)()
        found = address(between, torch.float32, room)
        compiled.run("partition", low, high, found, room, totals)
        taking, above, at_high, at_low, taken = totals
        inside = between[:taken] if taken <= room else None
        return Partition(taking, above, at_high, at_low, inside)

    numbers, gathered, device = [], [], scores[0].device
    for bundle in _bundles(*columns):
        for score, *given in zip(*bundle, strict=True):
            (part,) = given or [torch.ones_like(score, dtype=torch.bool)]
            strictly = part & (score > low) & (score < high)
            marks = (part, part & (score > high), part & (score == high), part & (score == low))
            own = torch.stack([torch.count_nonzero(mark) for mark in [*marks, strictly]])
            numbers.append(own.to(device))
            gathered.append(score[strictly].to(device))
    taking, above, at_high, at_low, taken = torch.stack(numbers).sum(0).tolist()
    inside = torch.cat(gathered) if taken <= room else None
    return Partition(taking, above, at_high, at_low, inside)


def best(
    scores: Sequence[Tensor],
    candidates: Sequence[Tensor] | None,
    threshold: float,
    ties: int,
) -> list[Tensor]:
    """Bool tensors: the candidates above a threshold, and the first few that equal it.

    Args:
        scores: Real tensors of one dtype.
        candidates: Bool tensors of the same shapes; None: all.
        threshold: The threshold of the scores.
        ties: Number of scores equal to it to include: earlier tensors first, then the lower flat
            index.
    """
    columns = (scores,) if candidates is None else (scores, candidates)
    noted: list[list[int] | None] = [None] * len(scores)
    if compiled := compiled_for((scores, torch.float32), (candidates, torch.bool)):
        masks = [torch.empty_like(score, dtype=torch.bool) for score in scores]
        found, places = compiled.layers.totals(), (ctypes.c_int64 * (_NOTED * len(scores)))()
        into = compiled.layers.alike(masks, torch.bool)
        compiled.run("best", threshold, into, places, _NOTED, found)
        noted = [
            sorted(places[i * _NOTED : i * _NOTED + number])
            if number <= _NOTED and mask.is_contiguous()
            else None
            for i, (number, mask) in enumerate(zip(found, masks, strict=True))
        ]
    else:
        masks = [score > threshold for score in scores]
        for mask, part in zip(masks, candidates or (), strict=False):
            mask.logical_and_(part)
    for mask, known, score, *given in zip(masks, noted, *columns, strict=True):
        if ties == 0:
            break
        if known is not None:
            mask.view(-1)[known[:ties]] = True
            ties -= min(ties, len(known))
            continue
        equal = score == threshold
        for part in given:
            equal.logical_and_(part)
        index = equal.nonzero()[:ties]
        mask[tuple(index.unbind(1))] = True
        ties -= len(index)
    return masks


def counts(masks: Sequence[Tensor]) -> list[int]:
    """Number of True elements in each of some bool tensors."""
    if compiled := compiled_for((masks, torch.bool)):
        totals = compiled.layers.totals()
        compiled.run("count", totals)
        return list(totals)
    # Collected on one device, so that the host synchronises once.
    return torch.stack([torch.count_nonzero(m).to(masks[0].device) for m in masks]).tolist()


def pack(masks: Sequence[Tensor]) -> tuple[list[Tensor], list[int]]:
    """Masks as bits, and the number of True elements in each.

    Args:
        masks: Bool tensors of shape (n,).

    Returns:
        uint8 tensors of shape (ceil(n / 8),), element i being bit i % 8 of byte i // 8; the counts.
    """
    if compiled := compiled_for((masks, torch.bool)):
        bits = [mask.new_empty((mask.numel() + 7) // 8, dtype=torch.uint8) for mask in masks]
        totals = compiled.layers.totals()
        compiled.run("pack", compiled.layers.bits(bits), totals)
        return bits, list(totals)
    bits = []
    for mask in masks:
        eights = torch.nn.functional.pad(mask, (0, -mask.numel() % 8)).view(torch.int64)
        # Byte i moves to bit i of the topmost byte.
        bits.append((eights * 0x0102040810204080 >> 56).to(torch.uint8))
    return bits, counts(masks)


def unpack(bits: Sequence[Tensor], sizes: Sequence[int]) -> list[Tensor]:
    """The inverse of `pack`: bool tensors of shape (n,), given each n."""
    masks = [part.new_empty(size, dtype=torch.bool) for part, size in zip(bits, sizes, strict=True)]
    if compiled := compiled_for((masks, torch.bool)):
        compiled.run("unpack", compiled.layers.bits(bits))
        return masks
    return [
        _bytes_of(part.device)[part.int()].view(-1)[:size]
        for part, size in zip(bits, sizes, strict=True)
    ]


@cache
def _bytes_of(device: torch.device) -> Tensor:
    """Byte -> its bits, the lowest first, bool of shape (256, 8)."""
    places = torch.arange(8, device=device)
    return (torch.arange(256, device=device).unsqueeze(1) >> places & 1).bool()


def zero(weights: Sequence[Tensor], bits: Sequence[Tensor]) -> None:
    """Set weights to exactly 0.0 wherever their bit is 0, in place.

    Args:
        weights: Of shape (n,), with dtypes of 2, 4 or 8 bytes.
        bits: Their masks as `pack` returns them.
    """
    if not weights:
        return
    dtype = weights[0].dtype
    if dtype in _ZEROED and (compiled := compiled_for((weights, dtype))):
        compiled.run(f"zero_{dtype.itemsize}_bytes", compiled.layers.bits(bits))
        return
    for weight, packed in zip(weights, bits, strict=True):
        on_cpu = weight.device.type == "cpu"
        size = _IN_CACHE if on_cpu else max(1, weight.numel())
        pieces = zip(torch.split(weight, size), torch.split(packed, (size + 7) // 8), strict=True)
        for values, part in pieces:
            (mask,) = unpack([part], [values.numel()])
            # All bits stay, or none. A product would not do: inf * 0 is NaN, and -1 * 0 is -0.
            integer = _INTEGERS[values.itemsize]
            values.view(integer).bitwise_and_(mask.to(integer).neg_())


def compiled_for(*columns: Column) -> Kernels | None:
    """The compiled kernels, if the tensors are supported."""
    layers = layers_of(*columns)
    compiled = library() if layers else None
    return Kernels(compiled, layers) if compiled and layers else None


def _bundles(*columns: Sequence[Tensor]) -> Iterator[tuple[list[Tensor], ...]]:
    """Lists of tensors to process at once: on a CPU few enough to fit its cache, else all.

    Args:
        columns: Lists with one tensor per layer.

    Yields:
        As many lists as there are columns; on a CPU they hold flat views.
    """
    together = []
    for layer in zip(*columns, strict=True):
        if layer[0].device.type != "cpu" or not alike(layer):
            together.append(layer)
            continue
        flat = [tensor.as_strided((tensor.numel(),), (1,)) for tensor in layer]
        for pieces in zip(*(tensor.split(_IN_CACHE) for tensor in flat), strict=True):
            yield tuple([piece] for piece in pieces)
    if together:
        yield tuple(list(column) for column in zip(*together, strict=True))
