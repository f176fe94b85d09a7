"""Exact selection of the k largest scores over many tensors, without sorting or copying them.

A sample of the scores gives a bracket that contains the k-th largest with high probability. One
pass counts the scores above the bracket and gathers the few inside, among which the search
continues; another pass writes the masks (Floyd and Rivest, "Expected time bounds for selection",
CACM 18, 1975). Few scores, or scores whose bracket missed, are selected on integer keys in the
order of the scores, many of them digit by digit (radix select). All are exact and give the same
masks.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, distributed

from seven_exp.pruning.kernels import fused
from seven_exp.pruning.shards import summed

_DIGIT = 16
_BINS = 1 << _DIGIT
_CHUNK = 1 << 20
_LARGEST_SAMPLE = 1 << 14
_FEW = 1 << 16
_FEW_KEYS = 1 << 16
_AT_ONCE = 1 << 15
_IN_ROWS = 1 << 17
_LOWEST = torch.finfo(torch.float32).min

KeysOf = Callable[[range], Tensor]


class Cut(NamedTuple):
    """The threshold: scores above ``value`` are kept, and ``ties`` of those that equal it."""

    value: float
    ties: int


def top_k_masks(
    scores: Sequence[Tensor],
    k: int,
    candidates: Sequence[Tensor] | None = None,
    *,
    group: "distributed.ProcessGroup | None" = None,
) -> list[Tensor]:
    """Masks that keep exactly the ``k`` largest scores over all tensors.

    Equal scores are kept in order: earlier tensors first, then the lower flat index. NaN counts as
    the lowest score, so a broken value never protects its weight.

    Args:
        scores: Real tensors of any shapes, all of one dtype; devices may differ.
        k: Total number of scores to keep.
        candidates: Bool tensors of the same shapes; only True positions may be kept. None: all.
        group: Processes that each hold a shard of every tensor, in the order of flat indices, as
            with FSDP2. Every process calls this with its own shards; the processes exchange
            histograms, not scores. None: this process holds all scores.

    Returns:
        Bool tensors with the shapes and devices of ``scores``, with ``k`` True positions in total
        (over the group). They do not depend on the sharding.

    Raises:
        ValueError: There are fewer than ``k`` candidates, or ``k`` is negative.
    """
    scores = [score.detach() for score in scores]
    if group is None and k > 0 and sum(score.numel() for score in scores) > _FEW:
        cut = _sampled_cut(scores, candidates, k)
        if cut is not None:
            return fused.best(scores, candidates, cut.value, cut.ties)
    return _by_digits(scores, k, candidates, group)


def kept_count(density: float, n: int) -> int:
    """Number of ``n`` weights that a density keeps: ``int(density * n)``.

    The product is raised by a millionth, so that 1 - 0.9 of 240 gives 24 and not 23 (the double
    nearest to 1 - 0.9 lies below 0.1).
    """
    return min(n, int(density * n + 1e-6))


def ascending(scores: Tensor, candidates: Tensor) -> Tensor:
    """Flat indices of all scores from the lowest to the highest; of equal ones, the earlier first.

    Args:
        scores: Real tensor of any shape. NaN counts as the lowest score.
        candidates: Bool, same shape; what is none comes first.

    Returns:
        int64 tensor of shape (n,).
    """
    # Sorting integers is up to ten times as fast.
    return _ordered_keys([scores], [candidates], range(1)).argsort(stable=True)


def first_of_rows(scores: Tensor, k: int, candidates: Tensor, more: int = 0) -> Tensor:
    """The ``k`` largest candidates of each row; among equal ones, the earlier.

    Args:
        scores: (rows, columns).
        k: Number to keep in each row; fewer if a row has fewer candidates.
        candidates: Bool, same shape.
        more: Number of rows that keep one more: those whose next candidate is largest.

    Returns:
        Bool tensor of the same shape.
    """
    at_once = max(1, _IN_ROWS // max(1, scores.shape[1]))
    parts = zip(torch.split(scores, at_once), torch.split(candidates, at_once), strict=True)
    if not more:
        return torch.cat([_first_of_rows(score, k, places) for score, places in parts])
    found = [_and_the_next(score, k, places) for score, places in parts]
    best, following, value = (torch.cat(tensors) for tensors in zip(*found, strict=True))
    able = following.any(1)
    (rows,) = top_k_masks([value], min(more, int(able.sum())), [able])
    return best | (following & rows.unsqueeze(1))


def _first_of_rows(scores: Tensor, k: int, candidates: Tensor) -> Tensor:
    k = min(k, scores.shape[1])
    if k == 0:
        return torch.zeros_like(candidates)
    ranked = _ranked(scores, candidates)
    least = ranked.topk(k, dim=1, sorted=False).values.amin(1, keepdim=True)
    return _at_least(ranked, least, k).logical_and_(candidates)


def _and_the_next(scores: Tensor, k: int, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest candidates of each row, the one after these, and its rank (rows,)."""
    ranked = _ranked(scores, candidates)
    largest = ranked.topk(min(k + 1, scores.shape[1]), dim=1, sorted=False).values
    last, *before = largest.topk(min(2, k + 1), dim=1, largest=False).values.unbind(1)
    best = torch.zeros_like(candidates)
    if before:
        best = _at_least(ranked, before[0].unsqueeze(1), k).logical_and_(candidates)
    following = _at_least(ranked, last.unsqueeze(1), k + 1).logical_and_(candidates) & ~best
    return best, following, last


def _ranked(scores: Tensor, candidates: Tensor) -> Tensor:
    """The scores with NaN as the lowest of them, below which is all that is no candidate."""
    ranked = torch.nan_to_num(_comparable(scores), nan=_LOWEST, posinf=torch.inf)
    return ranked.clamp_(min=_LOWEST).masked_fill_(~candidates, -torch.inf)


def _at_least(ranked: Tensor, least: Tensor, k: int) -> Tensor:
    """The ``k`` places of each row that reach its ``least``; among equal ones, the earlier."""
    chosen = ranked >= least
    spare = chosen.sum(1, keepdim=True) - k
    if spare.any():
        ties = ranked == least
        chosen &= ~ties | (ties.cumsum(1) <= ties.sum(1, keepdim=True) - spare)
    return chosen


def top_units(
    scores: Sequence[Tensor],
    units: Sequence[Tensor],
    k: int,
    candidates: Sequence[Tensor],
    judging: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Masks that keep whole units, the best by mean score, with at most ``k`` weights in total.

    Args:
        scores: Real tensors of any shapes.
        units: For each tensor int64 unit numbers that broadcast to its shape.
        k: Largest total number of weights to keep.
        candidates: Bool tensors like ``scores``; a unit without a candidate is not kept.
        judging: Whether a tensor's scores count; a unit without scores ranks first. None: all do.

    Returns:
        Bool tensors like ``scores``.
    """
    numbers = [unit.to(s.device).expand(s.shape) for s, unit in zip(scores, units, strict=True)]
    count = 1 + max(int(number.max()) for number in numbers)
    total, judged, size, alive = torch.zeros(4, count, dtype=torch.float64, device="cpu")
    judging = [True] * len(scores) if judging is None else judging
    for score, number, places, judge in zip(scores, numbers, candidates, judging, strict=True):
        flat = number.flatten().cpu()
        ones = torch.ones_like(flat, dtype=torch.float64)
        if judge:
            values = torch.nan_to_num(score.detach().double().cpu(), nan=_LOWEST)
            total.index_add_(0, flat, values.flatten())
            judged.index_add_(0, flat, ones)
        size.index_add_(0, flat, ones)
        alive.index_add_(0, flat, places.flatten().double().cpu())
    mean = (total / judged).masked_fill(judged == 0, torch.inf).masked_fill(alive == 0, -torch.inf)
    order = mean.argsort(stable=True, dim=0, descending=True)
    order = order[mean[order] > -torch.inf]
    fits = size[order].cumsum(0) <= k + 0.5
    kept = torch.zeros(count, dtype=torch.bool, device="cpu")
    kept[order[fits]] = True
    return [kept.to(number.device)[number] for number in numbers]


def unit_means(scores: Sequence[Tensor], units: Sequence[Tensor]) -> list[Tensor]:
    """The mean score of its unit for each weight.

    Args:
        scores: Real tensors of any shapes.
        units: As for `top_units`.
    """
    numbers = [unit.to(s.device).expand(s.shape) for s, unit in zip(scores, units, strict=True)]
    total, size = torch.zeros(
        2, 1 + max(int(number.max()) for number in numbers), dtype=torch.float64, device="cpu"
    )
    for score, number in zip(scores, numbers, strict=True):
        flat, values = number.flatten().cpu(), score.detach().double().cpu().flatten()
        total.index_add_(0, flat, values)
        size.index_add_(0, flat, torch.ones_like(values))
    mean = total / size.clamp(min=1)
    return [
        mean.to(score.device, score.dtype)[number]
        for score, number in zip(scores, numbers, strict=True)
    ]


def _sampled_cut(
    scores: Sequence[Tensor], candidates: Sequence[Tensor] | None, k: int
) -> Cut | None:
    """The k-th largest candidate; None if a sample doesn't bracket it.

    Raises:
        ValueError: There are fewer than ``k`` candidates.
    """
    total = sum(score.numel() for score in scores)
    low, high, room = _bracket(scores, candidates, k / total)
    parts = fused.partition(scores, candidates, low, high, room)
    _check(k, parts.candidates)
    rank = k - parts.above
    if rank < 1 or parts.between is None:
        return None
    if rank <= parts.at_high:
        return Cut(high, rank)
    rank -= parts.at_high
    if rank <= parts.between.numel():
        return cut_of(parts.between, rank)
    rank -= parts.between.numel()
    return Cut(low, rank) if rank <= parts.at_low else None


def _bracket(
    scores: Sequence[Tensor], candidates: Sequence[Tensor] | None, share: float
) -> tuple[float, float, int]:
    """A `bracket` of the k-th largest of all scores, and an estimate of how many it contains."""
    total = sum(score.numel() for score in scores)
    stride = sample_stride(total)
    device = scores[0].device
    sample = torch.cat([score.flatten()[::stride].to(device) for score in scores])
    drawn = sample.numel()
    if candidates is not None:
        sample = sample[torch.cat([places.flatten()[::stride].to(device) for places in candidates])]
    low, high, inside = bracket(sample, drawn, share, deviations=4)
    return low, high, math.ceil(2 * inside * total)


def sample_stride(total: int) -> int:
    """The stride at which to sample this many scores for a `bracket`."""
    # An odd stride does not stay within a few columns of a matrix.
    return (total // min(_LARGEST_SAMPLE, round(math.pow(total, 2 / 3)))) | 1


def bracket(
    sample: Tensor, drawn: int, share: float, deviations: float
) -> tuple[float, float, float]:
    """Two scores between which the k-th largest lies with high probability.

    In a sample, the number of scores among the k largest of all is binomial; the bracket extends
    some standard deviations to either side.

    Args:
        sample: Sampled candidates, of shape (n,).
        drawn: Size of the sample, including scores that are not candidates.
        share: k as a fraction of the population.
        deviations: Number of standard deviations.

    Returns:
        The lower end, the upper end, and the fraction expected between them.
    """
    sample = _comparable(sample[~sample.isnan()])
    margin = deviations * math.sqrt(drawn * share * (1 - share)) + 1
    ends = []
    for rank in (round(drawn * share + margin), round(drawn * share - margin)):
        inside = 1 <= rank <= sample.numel()
        outside = torch.inf if rank < 1 else -torch.inf
        ends.append(float(_kth_of(sample, rank)) if inside else outside)
    return ends[0], ends[1], 2 * margin / max(1, drawn)


def cut_of(values: Tensor, k: int) -> Cut | None:
    """The k-th largest of some values without NaN; None if a sample misled."""
    if values.numel() > _AT_ONCE:
        return _sampled_cut([values], None, k)
    value, ties = _kth_and_ties(values, k)
    return Cut(float(value), ties)


def _kth_and_ties(values: Tensor, k: int) -> tuple[Tensor, int]:
    """The k-th largest value, and how many of those equal to it are among the k largest."""
    value = _kth_of(_comparable(values), k)
    return value, k - int((values > value).sum())


def _kth_of(values: Tensor, k: int) -> Tensor:
    return values.kthvalue(values.numel() - k + 1).values


def _comparable(values: Tensor) -> Tensor:
    narrow = values.is_floating_point() and values.dtype != torch.float64
    return values.float() if narrow else values


def _check(k: int, available: int) -> None:
    if not 0 <= k <= available:
        raise ValueError(f"can't keep {k} of {available} candidates")


def _by_digits(
    scores: Sequence[Tensor],
    k: int,
    candidates: Sequence[Tensor] | None,
    group: "distributed.ProcessGroup | None",
) -> list[Tensor]:
    """`top_k_masks`, with the threshold found 16 bits at a time."""
    add = partial(summed, group=group, device=scores[0].device)
    available = sum(fused.counts(candidates) if candidates else map(torch.numel, scores))
    available = int(add(torch.tensor(available, dtype=torch.int64, device="cpu")))
    _check(k, available)
    if k == 0:
        return [torch.zeros_like(score, dtype=torch.bool) for score in scores]
    if k == available:
        return [
            torch.ones_like(score, dtype=torch.bool)
            if candidates is None
            else candidates[i].clone()
            for i, score in enumerate(scores)
        ]

    chunks = _chunks(scores)
    keys_of: KeysOf = partial(_ordered_keys, scores, candidates)
    if len(chunks) == 1:
        # If everything fits into one chunk, keeping it is cheaper than recomputing it.
        keys_of = cache(keys_of)
    bits = 64 if scores[0].dtype == torch.float64 else 32
    if group is None and len(chunks) == 1 and len(keys_of(chunks[0])) <= _FEW_KEYS:
        # Histograms of so few keys would take longer.
        found, ties_to_keep = _kth_and_ties(keys_of(chunks[0]), k)
        threshold = int(found)
    else:
        threshold, ties_to_keep = _kth_largest(keys_of, chunks, bits, k, add)
    masks: list[Tensor] = []
    ties: list[Tensor] = []
    for chunk in chunks:
        keys = keys_of(chunk)
        sizes = [scores[i].numel() for i in chunk]
        masks += torch.split(keys > threshold, sizes)
        ties += [part.nonzero().squeeze(1) for part in torch.split(keys == threshold, sizes)]
    shares = _shares_of(ties_to_keep, [len(places) for places in ties], group, scores[0].device)
    for mask, places, share in zip(masks, ties, shares, strict=True):
        mask[places[:share]] = True
    return [mask.view(score.shape) for mask, score in zip(masks, scores, strict=True)]


def _shares_of(
    kept: int, ties: list[int], group: "distributed.ProcessGroup | None", device: torch.device
) -> list[int]:
    """Number of ties that each layer keeps here: earlier layers first, then lower ranks."""
    own = torch.tensor(ties, dtype=torch.int64, device="cpu")
    counts, rank = own.unsqueeze(1), 0
    if group is not None:
        world, rank = distributed.get_world_size(group), distributed.get_rank(group)
        gathered = [torch.empty_like(own, device=device) for _ in range(world)]
        distributed.all_gather(gathered, own.to(device), group=group)
        counts = torch.stack(gathered, dim=1).cpu()
    before = (counts.flatten().cumsum(0) - counts.flatten()).view_as(counts)[:, rank]
    return (kept - before).clamp(min=0).minimum(own).tolist()


def _chunks(scores: Sequence[Tensor]) -> list[range]:
    """Ranges of neighbouring tensors on one device; small ones share one kernel launch."""
    chunks: list[range] = []
    size = 0
    for i, score in enumerate(scores):
        full = size + score.numel() > _CHUNK
        if not chunks or full or score.device != scores[i - 1].device:
            chunks.append(range(i, i))
            size = 0
        chunks[-1] = range(chunks[-1].start, i + 1)
        size += score.numel()
    return chunks


def _ordered_keys(
    scores: Sequence[Tensor], candidates: Sequence[Tensor] | None, chunk: range
) -> Tensor:
    """A chunk's scores as integers in the same order; NaN and then non-candidates come lowest.

    Returns:
        int32 or int64 (for float64 scores), one flat tensor.
    """
    values = _flat([scores[i].detach() for i in chunk])
    if values.dtype != torch.float64:
        values = values.float()
    integer = torch.int64 if values.dtype == torch.float64 else torch.int32
    lowest = torch.iinfo(integer).min
    # Adding zero turns -0.0 into 0.0, which must tie with it.
    bits = (values + 0.0).view(integer)
    negative = bits >> (torch.iinfo(integer).bits - 1)
    keys = bits.bitwise_xor_(negative & torch.iinfo(integer).max)
    keys.masked_fill_(values.isnan(), lowest + 1)
    if candidates is not None:
        keys.masked_fill_(~_flat([candidates[i] for i in chunk]), lowest)
    return keys


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors]) if len(tensors) > 1 else tensors[0].flatten()


def _kth_largest(
    keys_of: KeysOf,
    chunks: Sequence[range],
    bits: int,
    k: int,
    add: Callable[[Tensor], Tensor],
) -> tuple[int, int]:
    """Key of the k-th largest score, and the number of scores with that key to keep."""
    prefix = 0
    for shift in range(bits - _DIGIT, -1, -_DIGIT):
        leading = shift == bits - _DIGIT
        # Only the leading digit is signed.
        offset = _BINS // 2 if leading else 0
        counts = torch.zeros(_BINS, dtype=torch.int64, device="cpu")
        for chunk in chunks:
            keys = keys_of(chunk)
            if not leading:
                keys = keys[(keys >> (shift + _DIGIT)) == prefix]
            digits = (keys >> shift) + offset if leading else (keys >> shift) & (_BINS - 1)
            counts += torch.bincount(digits, minlength=_BINS).cpu()
        # Convert ranks from the top to ranks from the bottom, for a search in the cumulative sums.
        below = add(counts).cumsum(0)
        total = int(below[-1])
        digit = int(torch.searchsorted(below, total - k + 1))
        k -= total - int(below[digit])
        prefix = digit - offset if leading else (prefix << _DIGIT) | digit
    return prefix, k
