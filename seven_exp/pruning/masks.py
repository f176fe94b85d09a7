"""Masks: which weights are kept. They are stored outside the model, which stays unmodified."""

import copy
import math
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from seven_exp.pruning.kernels import fused
from seven_exp.pruning.matrices import Layer
from seven_exp.pruning.replicas import Group
from seven_exp.pruning.shards import summed


class Masks:
    """The masks of some weights, one bit per weight.

    Attributes:
        bits: Each mask as `fused.pack` returns it, in the memory order of its weight.
        kept: Number of kept weights in each mask, over all ranks that share the weight.
    """

    bits: list[Tensor]
    kept: list[int]

    def __init__(
        self,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor] | None = None,
        shards: Group | None = None,
    ) -> None:
        """Create masks for weights; None: everything is kept.

        Args:
            weights: All rows of each, or those that this rank holds.
            masks: Bool tensors of the same shapes.
            shards: Ranks that hold the other rows.
        """
        self._shards = shards
        # On the meta device nothing is allocated; only the strides are needed.
        alike = [torch.empty_like(weight, device="meta") for weight in weights]
        self._layouts = [(tensor.shape, tensor.stride()) for tensor in alike]
        if masks is not None:
            self.set(masks)
            return
        # Not by `set`, which would need a byte for each weight.
        self.bits = [_ones(weight) for weight in weights]
        self._count([weight.numel() for weight in weights], weights)

    def set(self, masks: Sequence[Tensor]) -> None:
        """Store bool tensors of the weights' shapes; True = kept. Meta tensors keep everything."""
        if any(mask.is_meta for mask in masks):
            self.bits = [mask.new_empty(-(-mask.numel() // 8), dtype=torch.uint8) for mask in masks]
            self.kept = [mask.numel() for mask in masks]
            return
        flat = []
        for mask, (shape, stride) in zip(masks, self._layouts, strict=True):
            if mask.stride() != stride:
                placed = torch.empty_strided(shape, stride, dtype=torch.bool, device=mask.device)
                mask = placed.copy_(mask)
            flat.append(_in_memory(mask))
        self.bits, kept = fused.pack(flat)
        self._count(kept, masks)

    def _count(self, kept: list[int], tensors: Sequence[Tensor]) -> None:
        """Add up what the ranks keep of each weight."""
        if any(tensor.is_meta for tensor in tensors):
            self.kept = kept
            return
        counts = torch.tensor(kept, dtype=torch.int64, device="cpu")
        self.kept = summed(counts, self._shards, tensors[0].device).tolist()

    def same_layout(self, weights: Sequence[Tensor]) -> list[bool]:
        """For each weight, whether its mask is stored in the weight's memory order."""
        return [w.stride() == stride for w, (_, stride) in zip(weights, self._layouts, strict=True)]

    def beside(self, weights: Sequence[Tensor]) -> "Masks":
        """The same masks on the devices of these weights."""
        moved = copy.copy(self)
        moved.bits = [bits.to(w.device) for bits, w in zip(self.bits, weights, strict=True)]
        return moved

    def some(self, places: Sequence[int]) -> "Masks":
        """The masks of some weights, to read, change and apply separately; see `put`."""
        part = copy.copy(self)
        for name in ("bits", "kept", "_layouts"):
            setattr(part, name, [getattr(self, name)[i] for i in places])
        return part

    def put(self, places: Sequence[int], part: "Masks") -> None:
        """Store masks that `some` returned and that were changed since."""
        # A new list: callers compare the `kept` they read earlier with the new one.
        self.bits, self.kept = list(self.bits), list(self.kept)
        for i, bits, kept in zip(places, part.bits, part.kept, strict=True):
            self.bits[i], self.kept[i] = bits, kept

    def unpacked(self) -> list[Tensor]:
        """Bool tensors of the weights' shapes; each call returns new ones."""
        masks = fused.unpack(self.bits, [math.prod(shape) for shape, _ in self._layouts])
        return [m.as_strided(*layout) for m, layout in zip(masks, self._layouts, strict=True)]

    @torch.no_grad()
    def apply(self, weights: Sequence[Tensor]) -> None:
        """Set every pruned weight to exactly zero, in place.

        Args:
            weights: Tensors of the shapes that the masks were made for.
        """
        alike = self.same_layout(weights)
        flat = [_in_memory(w.detach()) for w, same in zip(weights, alike, strict=True) if same]
        fused.zero(flat, [bits for bits, same in zip(self.bits, alike, strict=True) if same])
        if not all(alike):
            for weight, mask, same in zip(weights, self.unpacked(), alike, strict=True):
                if not same:
                    weight.masked_fill_(~mask, 0.0)


class Passing(Masks):
    """Masks of weights that exist one block at a time; each is given away, not kept.

    Attributes:
        fresh: Place of a weight -> its mask, until it is `taken`.
    """

    fresh: dict[int, Tensor]

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Create masks that keep everything."""
        self._layers = layers
        self.fresh = {}
        self.kept = [layer.weight.numel() for layer in layers]

    def some(self, places: Sequence[int]) -> Masks:
        """The masks of weights that exist now; they keep everything."""
        return Masks([self._layers[i].weight for i in places])

    def put(self, places: Sequence[int], part: Masks) -> None:
        """Count the kept weights, and hold the masks until they are taken."""
        self.kept = list(self.kept)
        for i, mask, kept in zip(places, part.unpacked(), part.kept, strict=True):
            self.fresh[i], self.kept[i] = mask, kept

    def taken(self, names: Collection[str]) -> dict[str, Tensor]:
        """The masks of some weights by parameter name; the caller owns them."""
        chosen = {i: self._layers[i].name for i in self.fresh}
        return {name: self.fresh.pop(i) for i, name in chosen.items() if name in names}


def _in_memory(tensor: Tensor) -> Tensor:
    """The elements of a tensor without gaps in memory order, a view of shape (n,)."""
    return tensor.as_strided((tensor.numel(),), (1,))


def _ones(weight: Tensor) -> Tensor:
    """The bits of a mask that keeps a whole weight."""
    size, rest = divmod(weight.numel(), 8)
    bits = torch.full((size + bool(rest),), 255, dtype=torch.uint8, device=weight.device)
    if rest:
        bits[-1] = (1 << rest) - 1
    return bits


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor into bytes, eight elements each, the first in the lowest bit.

    Args:
        mask: Bool tensor with n elements, any shape.

    Returns:
        uint8 tensor of shape (ceil(n / 8),).
    """
    (bits,), _ = fused.pack([mask.flatten()])
    return bits


def unpack_bits(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """Restore the bool tensor of ``shape`` that `pack_bits` packed.

    Raises:
        ValueError: The number of bytes does not fit the shape.
    """
    n = math.prod(shape)
    if packed.numel() != (n + 7) // 8:
        raise ValueError(f"{packed.numel()} bytes can't hold a mask of shape {tuple(shape)}")
    (mask,) = fused.unpack([packed.contiguous()], [n])
    return mask.view(*shape)
