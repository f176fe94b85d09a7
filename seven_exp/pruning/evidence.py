"""Evidence: whether gradients and scores carry enough information to choose masks.

If all scores are equal, the order of ties decides, that is, the position of a weight.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from seven_exp.pruning.allocation import Pool
from seven_exp.pruning.matrices import Layer
from seven_exp.pruning.replicas import Group
from seven_exp.pruning.shards import held, highest

_ROWS = 8
"""A few rows almost always prove that scores differ, so the others need not be read."""


class NoEvidenceError(RuntimeError):
    """The scores that would choose the masks are all equal or all NaN or infinite."""


@contextmanager
def unfrozen(weights: Sequence[Tensor]) -> Iterator[None]:
    """Within the context, all weights require gradients."""
    frozen = [weight for weight in weights if not weight.requires_grad]
    for weight in frozen:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)


def informative(grads: Sequence[Tensor | None], group: Group | None = None) -> bool:
    """Whether the gradients of a step carry information.

    They do if some value is finite and nonzero and no layer consists of broken values (NaN or
    infinite) alone. An overflow in the backward pass breaks every layer before it and leaves the
    later ones intact, so it would decide between layers. Usually one value per layer is read.

    Args:
        grads: One tensor per layer, any shape and floating dtype.
        group: Ranks that each hold rows of every gradient.
    """
    present = [grad for grad in grads if grad is not None]
    filled = [grad for grad in present if grad.numel()]
    if not (filled if group is None else present):
        return False
    device = present[0].device
    # as_strided reads one value at a tenth of the cost of indexing.
    firsts = [grad.as_strided((), ()).to(device, torch.float32) for grad in filled]
    pairs = list(zip(torch.stack(firsts).tolist() if firsts else [], filled, strict=True))
    sound = {id(grad): math.isfinite(first) or bool(grad.isfinite().any()) for first, grad in pairs}
    some = any(first and math.isfinite(first) for first, _ in pairs) or any(
        bool((grad.isfinite() & (grad != 0)).any()) for grad in filled
    )
    flags = [some, *(sound.get(id(grad), group is None) for grad in present)]
    found = highest(torch.tensor(flags, dtype=torch.int32, device="cpu"), group, device)
    return bool(found.all())


def constant(score: Tensor, candidates: Tensor) -> bool:
    """Whether all candidates of a layer have the same score; NaN counts as the lowest.

    Args:
        score: Of any shape.
        candidates: Bool, same shape.
    """
    low, high = _ends(score, candidates)
    return not high > low


def undecidable(
    scores: Sequence[Tensor],
    candidates: Sequence[Tensor],
    pool: Pool,
    available: int,
    group: Group | None = None,
) -> bool:
    """Whether a pool must drop some weights but its scores are all equal or broken.

    Args:
        scores: One tensor for each of the pool's layers.
        candidates: Bool tensors of the same shapes: the weights that may be kept.
        pool: How many weights are kept, and which of them compete.
        available: Number of candidates, on all ranks of the group.
        group: Ranks that each hold rows of every layer.
    """
    if pool.each_row:
        return _rows_undecidable(scores[0], candidates[0], pool)
    if not 0 < pool.together.kept < available:
        return False
    layers = list(zip(scores, candidates, strict=True))
    if pool.by_share:
        return all(constant(*layer) for layer in layers)
    lowest, topmost = math.inf, -math.inf
    for layer in layers:
        low, high = _ends(*layer)
        lowest, topmost = min(lowest, low), max(topmost, high)
        if topmost > lowest:
            break
    ends = torch.tensor([-lowest, topmost], dtype=torch.float64, device="cpu")
    below, above = highest(ends, group, scores[0].device).tolist()
    return not above > -below


def likely_cause(
    model: nn.Module, lost: Sequence[str], scores: Sequence[Tensor], uses_gradients: bool
) -> str:
    """Half a sentence: why scores carry no information, and what to do.

    Args:
        model: The model that is scored.
        lost: Names of weights that are zero because they are pruned entirely.
        scores: One tensor for each layer that competes.
        uses_gradients: Whether the scores depend on gradients or activations.
    """
    named = ((name, held(p.detach())) for name, p in model.named_parameters() if p.ndim > 1)
    matrices = {name: p for name, p in named if name.endswith("weight")}
    if broken := [name for name, p in matrices.items() if not p.isfinite().all()]:
        return f"{broken[0]} is NaN or infinite: lower the learning rate or the loss scale"
    finite = any(bool(score.isfinite().any()) for score in scores)
    if not uses_gradients and not finite:
        return "the scores are NaN or infinite though the weights are not: correct their formula"
    if not uses_gradients:
        return "the weights are all equal: initialise the model or load its weights first"
    if lost:
        return f"{lost[0]} is pruned entirely and passes no signal on: lower the sparsity"
    if zero := [name for name, p in matrices.items() if not p.any()]:
        return f"{zero[-1]} is all zero: initialise it at random, or train the model first"
    if not finite:
        return "an overflow (NaN or infinite values): lower the loss scale"
    return (
        "gradients set to zero before step(), an overflow (NaN or infinite gradients), inputs that "
        "are all zero, or a weight that the loss does not use (exclude it)"
    )


def no_evidence(
    name: str,
    model: nn.Module,
    layers: Sequence[Layer],
    kept: Sequence[int],
    pool: Pool,
    scores: Sequence[Tensor],
    uses_gradients: bool,
) -> NoEvidenceError:
    """The error for a pool whose scores carry no information.

    Args:
        name: Name of the pruner.
        model: As for `likely_cause`.
        layers: All layers of the pruner.
        kept: Number of weights that each of them keeps now.
        pool: Some of them.
        scores: One tensor for each layer of the pool.
        uses_gradients: As for `likely_cause`.
    """
    first, *others = (layers[i].name for i in pool.layers)
    lost = [layer.name for layer, number in zip(layers, kept, strict=True) if not number]
    where = f"{first} and {len(others)} more" if others else first
    return NoEvidenceError(
        f"{name} can't choose what to prune of {where}: all scores are equal or broken; likely "
        f"cause: {likely_cause(model, lost, scores, uses_gradients)}"
    )


def _rows_undecidable(score: Tensor, candidates: Tensor, pool: Pool) -> bool:
    rows, alive = score.flatten(1), candidates.flatten(1)
    low, high = _ends_of_rows(rows, alive)
    left, most = alive.sum(1), pool.kept + bool(pool.more)
    if most and (choosing := left > most).any():
        return not ((high > low) & choosing).any()
    rivals = left > pool.kept
    if 0 < pool.more < rivals.sum():
        return not high[rivals].max() > low[rivals].min()
    return False


def _ends(score: Tensor, candidates: Tensor) -> tuple[float, float]:
    """A low and a high score of the candidates; they are equal only if all scores are."""
    if not score.numel():
        return math.inf, -math.inf
    few = slice(None, None, max(1, len(score) // _ROWS))
    for part in (few, slice(None)):
        rows = score[part].reshape(1, -1), candidates[part].reshape(1, -1)
        low, high = torch.cat(_ends_of_rows(*rows)).tolist()
        if high > low:
            break
    return low, high


def _ends_of_rows(score: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """The lowest and the highest candidate of each row."""
    score = score.masked_fill(score.isnan(), -torch.inf)
    low = score.masked_fill(~candidates, torch.inf).amin(1)
    return low, score.masked_fill(~candidates, -torch.inf).amax(1)
