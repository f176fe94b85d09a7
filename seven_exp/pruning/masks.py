"""Masks: which weights are kept. They live beside the model, which stays an ordinary one."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning import sweeps


def apply_masks(weights: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
    """Set every pruned weight to exactly zero, in place.

    Args:
        weights: Tensors of any shapes.
        masks: Bool tensors of the same shapes; True = kept.
    """
    with torch.no_grad():
        sweeps.zero(weights, masks)


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as bytes, eight places each, first place in the lowest bit.

    Args:
        mask: Bool tensor with n elements, any shape.

    Returns:
        uint8 tensor of shape (ceil(n / 8),).
    """
    flat = mask.flatten()
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % 8)).view(-1, 8)
    return (padded.to(torch.uint8) << _places(mask.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The bool tensor of ``shape`` that `pack_bits` packed.

    Raises:
        ValueError: The number of bytes does not fit the shape.
    """
    n = math.prod(shape)
    if packed.numel() != (n + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes can't hold a mask of shape {tuple(shape)}")
    bits = (packed.unsqueeze(1) >> _places(packed.device)) & 1
    return bits.flatten()[:n].view(*shape).bool()


def _places(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
