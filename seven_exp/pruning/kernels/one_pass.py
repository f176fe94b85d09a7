"""SEVEN's step, the mask update and the zeroing of pruned weights, fused into one pass over memory.

Separate passes cost the memory traffic of their tensors, and together they read the weights and the
scores three times. Here a sample of the scores after the step gives a bracket for the k-th largest.
The fused pass keeps the scores in the bracket and above it, and records those inside. Afterwards
the recorded scores that are too low are dropped.
"""

import ctypes
import math

import torch

from seven_exp.pruning.kernels import fused
from seven_exp.pruning.kernels.addresses import address
from seven_exp.pruning.kernels.seven_step import SevenStep
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.select import bracket, cut_of, sample_stride

_WORTHWHILE = 1 << 16
_DEVIATIONS = 3
"""Narrower than for resident scores: the pass records positions too, and a miss costs little."""


def seven_and_best(step: SevenStep, masks: Masks, k: int) -> bool:
    """`fused.seven`, then keep the ``k`` best of the kept weights, with the ties of `top_k_masks`.

    Args:
        step: Its weights are set to zero where they are pruned.
        masks: The present masks, replaced by the new ones.
        k: Total number of weights to keep.

    Returns:
        Whether the masks were chosen. If not, only the step was taken, and the masks must be chosen
        from the scores (no compiler, few weights, an unsupported layout, or a bracket that missed).
    """
    alive = sum(masks.kept)
    compiled = None
    in_order = all(w.is_contiguous() for w in step.weights) and all(masks.same_layout(step.weights))
    if alive > _WORTHWHILE and 0 < k < alive and in_order:
        compiled = fused.compiled_seven(step)
    if compiled is None:
        fused.seven(step)
        return False
    factors, layers = step.factors(), compiled.layers
    new = [torch.empty_like(part) for part in masks.bits]
    old_bits, new_bits = layers.bits(masks.bits), layers.bits(new)

    total = sum(weight.numel() for weight in step.weights)
    stride = sample_stride(total)
    drawn_at_most, number = math.ceil(total / stride), ctypes.c_int64()
    sample = torch.empty(drawn_at_most, dtype=torch.float32, device="cpu")
    into = address(sample, torch.float32, drawn_at_most), ctypes.byref(number)
    compiled.run(f"sampled_{step.kind}", old_bits, factors, stride, *into)
    drawn = number.value
    low, high, share = bracket(sample[:drawn], drawn, k / alive, _DEVIATIONS)

    room = min(alive, math.ceil(2 * share * alive))
    values = torch.empty(room, dtype=torch.float32, device="cpu")
    places = torch.empty(room, dtype=torch.int64, device="cpu")
    noted = address(values, torch.float32, room), address(places, torch.int64, room)
    counts = (ctypes.c_int64 * 2)()
    numbers = factors, low, high
    compiled.run(f"seven_and_best_{step.kind}", old_bits, new_bits, *numbers, *noted, room, counts)
    above, inside = counts
    if not above < k <= above + inside or inside > room:
        return False
    values, places = values[:inside], places[:inside]
    cut = cut_of(values, k - above)
    if cut is None:
        return False
    equal = (values == cut.value).nonzero().squeeze(1)
    if len(equal) > cut.ties:
        values[equal[places[equal].argsort()[cut.ties :]]] = -torch.inf
    now, weights = layers.totals(), layers._replace(columns=layers.columns[:1])
    noted = address(values, torch.float32, inside), address(places, torch.int64, inside)
    compiled._replace(layers=weights).run(
        "drop", old_bits, new_bits, *noted, inside, cut.value, now
    )
    masks.bits, masks.kept = new, list(now)
    return True
