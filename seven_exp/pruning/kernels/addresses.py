"""Addresses of tensors, for the kernels in fused.c and Triton, which access memory directly.

Kernels can't check their arguments. So a tensor's address is only available together with the
dtype, size and device that the kernel expects, and the functions of fused.c accept no pointer from
another source.
"""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

Column = tuple[Sequence[Tensor] | None, torch.dtype]
"""One tensor per layer, and their common dtype; None stands for a null pointer."""

_PLAIN = (Tensor, torch.nn.Parameter)


class Address(ctypes.c_void_p):
    """Where a tensor's elements begin; made by `address` and `Layers` only."""

    @classmethod
    def from_param(cls, value: Any) -> Any:
        """Called by ctypes for an argument of this type; the base class accepts any integer."""
        if not isinstance(value, cls):
            raise TypeError(f"{type(value).__name__} is not an Address: call address()")
        return value


Addresses = ctypes.Array[Address] | None


def address(tensor: Tensor, dtype: torch.dtype, size: int, device_type: str = "cpu") -> Address:
    """The address of a tensor's first element.

    Args:
        tensor: Must outlive the address.
        dtype: The dtype that the kernel expects.
        size: Number of elements that the kernel may read or write.
        device_type: The device that the kernel runs on.

    Raises:
        TypeError: The tensor does not match exactly, or its elements are not contiguous in memory.
    """
    fits = tensor.dtype == dtype and tensor.numel() == size
    if not fits or not plain(tensor, device_type) or not alike([tensor]):
        raise TypeError(
            f"the kernel needs {size} x {dtype} without gaps on {device_type}, not a "
            f"{type(tensor).__name__} of {tensor.dtype}, shape {tuple(tensor.shape)}, "
            f"{tensor.layout} on {tensor.device.type}"
        )
    return Address(tensor.data_ptr())


def plain(tensor: Tensor, device_type: str) -> bool:
    """Whether a tensor is plain memory on such a device: no subclass, not sparse, not negated."""
    return (
        type(tensor) in _PLAIN
        and tensor.device.type == device_type
        and tensor.layout == torch.strided
        and not tensor.is_neg()
    )


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether corresponding elements have the same offset in memory, without gaps."""
    if all(tensor.is_contiguous() for tensor in tensors):
        return True
    shape, strides = tensors[0].shape, tensors[0].stride()
    reach = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if stride != reach:
            return False
        reach *= size
    return all(tensor.stride() == strides for tensor in tensors)


class Layers(NamedTuple):
    """The arguments that every function of fused.c begins with; see `layers_of`.

    Attributes:
        first: The first column's tensors.
        sizes: Number of elements of each layer.
        columns: Addresses of each column's tensors.
    """

    first: Sequence[Tensor]
    sizes: "ctypes.Array[ctypes.c_int64]"
    columns: list[Addresses]

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Number of layers, their sizes, the columns."""
        return len(self.first), self.sizes, *self.columns

    def alike(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> Addresses:
        """One more column with the same layout as the first.

        Raises:
            TypeError: A tensor is of another dtype, size, device or layout.
        """
        for layer in zip(self.first, tensors, strict=True):
            if not alike(layer):
                raise TypeError("the kernel needs all tensors of a layer in one memory order")
        return _addresses([address(t, dtype, n) for t, n in zip(tensors, self.sizes, strict=True)])

    def bits(self, tensors: Sequence[Tensor]) -> Addresses:
        """A column of masks as bits, uint8 of shape (ceil(n / 8),) for each layer.

        Raises:
            TypeError: A tensor is of another dtype, size, device or layout.
        """
        sizes = [(n + 7) // 8 for n in self.sizes]
        pairs = zip(tensors, sizes, strict=True)
        return _addresses([address(part, torch.uint8, size) for part, size in pairs])

    def totals(self) -> "ctypes.Array[ctypes.c_int64]":
        """One number per layer, initially 0."""
        return (ctypes.c_int64 * len(self.first))()


def layers_of(*columns: Column) -> Layers | None:
    """Columns of tensors that a C kernel can read together.

    Returns:
        None if it can't: dtypes or sizes differ, a tensor is not on the CPU, corresponding elements
        have different offsets, or two tensors share memory, so that one thread could write what
        another one reads.
    """
    given = [(tensors, dtype) for tensors, dtype in columns if tensors is not None]
    dtypes = [dtype for _, dtype in given]
    for layer in zip(*(tensors for tensors, _ in given), strict=True):
        size = layer[0].numel()
        for tensor, dtype in zip(layer, dtypes, strict=True):
            if tensor.dtype != dtype or tensor.numel() != size or not plain(tensor, "cpu"):
                return None
        if not alike(layer):
            return None
    if _overlap([tensor for tensors, _ in given for tensor in tensors]):
        return None
    first = given[0][0]
    places = [
        None if tensors is None else _addresses([Address(t.data_ptr()) for t in tensors])
        for tensors, _ in columns
    ]
    return Layers(first, (ctypes.c_int64 * len(first))(*(t.numel() for t in first)), places)


def _overlap(tensors: Sequence[Tensor]) -> bool:
    """Whether any two of some contiguous tensors share memory."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    return any(end > start for (_, end), (start, _) in pairwise(spans))


def _addresses(places: Sequence[Address]) -> Addresses:
    return (Address * len(places))(*places)
