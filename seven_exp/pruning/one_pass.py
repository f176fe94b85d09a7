"""SEVEN's step, the choice of the best and the zeroing of the others, in one pass over memory.

Done one after the other, each costs what its tensors cost to read and write, and together they read
the weights and the scores thrice. Here a sample of the scores that the step will arrive at gives a
bracket for the k-th largest; the pass itself keeps what lies in the bracket or above and notes what
lies inside; those of them that are too low are dropped when the pass is over.
"""

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seven_exp.pruning import sweeps
from seven_exp.pruning.select import bracket, cut_of, sample_size

_WORTHWHILE = 1 << 16
_DEVIATIONS = 3
"""Narrower than where the scores lie still: the pass notes places too, and a miss costs little."""


def seven_and_best(
    step: sweeps.SevenStep, bits: Sequence[Tensor], kept: Sequence[int], k: int
) -> tuple[list[Tensor], list[int]] | None:
    """`sweeps.seven`, then the ``k`` best of the kept weights, to the tie as `top_k_masks`.

    Args:
        step: Its weights are set to zero where they are pruned.
        bits: The masks so far, packed, in the order of the weights in memory.
        kept: How many places of each are 1.
        k: How many weights to keep in all.

    Returns:
        The new masks, packed, and how many places of each are 1. None: the step has been taken, but
        the masks are to be chosen from the scores (no compiler, few weights, a layout that this
        pass does not know, or a bracket that missed).
    """
    alive = sum(kept)
    compiled = None
    if alive > _WORTHWHILE and 0 < k < alive and all(w.is_contiguous() for w in step.weights):
        compiled = step.compiled()
    if compiled is None:
        sweeps.seven(step)
        return None
    sampled, choose = {
        torch.float32: (compiled.sampled_float32, compiled.seven_and_best_float32),
        torch.bfloat16: (compiled.sampled_bfloat16, compiled.seven_and_best_bfloat16),
    }[step.m[0].dtype]
    factors, threads = step.factors(), torch.get_num_threads()
    new = [torch.empty_like(part) for part in bits]
    *places_of, new_bits = sweeps.addresses(*step.tensors, bits, new)
    layers, sizes, weight_places, *_, old_bits = places_of

    total = sum(weight.numel() for weight in step.weights)
    # An odd stride does not stay within a few columns of a matrix.
    stride = (total // sample_size(total)) | 1
    sample = torch.empty(math.ceil(total / stride))
    drawn = sampled(*places_of, factors, stride, sample.data_ptr(), threads)
    low, high, share = bracket(sample[:drawn], drawn, k / alive, _DEVIATIONS)

    room = min(alive, math.ceil(2 * share * alive))
    values, places = torch.empty(room), torch.empty(room, dtype=torch.int64)
    counts = (ctypes.c_int64 * 2)()
    choose(
        *(*places_of, new_bits, factors, low, high),
        *(values.data_ptr(), places.data_ptr(), room, counts, threads),
    )
    above, inside = counts
    if not above < k <= above + inside or inside > room:
        return None
    values, places = values[:inside], places[:inside]
    cut = cut_of(values, k - above)
    if cut is None:
        return None
    equal = (values == cut.value).nonzero().squeeze(1)
    if len(equal) > cut.ties:
        values[equal[places[equal].argsort()[cut.ties :]]] = -torch.inf
    now = (ctypes.c_int64 * len(new))()
    compiled.drop(
        *(layers, sizes, weight_places, old_bits, new_bits, values.data_ptr(), places.data_ptr()),
        *(inside, cut.value, now, threads),
    )
    return new, list(now)
