"""Pruning by the weights alone, block by block: only one block's weights need to exist."""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import nn

from seven_exp.pruning.allocation import Pool
from seven_exp.pruning.competition import Competition
from seven_exp.pruning.criteria.score import Score, State
from seven_exp.pruning.evidence import no_evidence
from seven_exp.pruning.layerwise import Hold
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.structure import blocks_of


@torch.no_grad()
def prune_by_block(
    name: str,
    model: nn.Module,
    score: Score,
    competition: Competition,
    masks: Masks,
    pools: Sequence[Pool],
    hold: Hold,
) -> None:
    """Choose the masks of one block after another, and set pruned weights to zero.

    Args:
        name: Name of the pruner, for messages.
        model: Has blocks; weights outside them exist all the time.
        score: Needs no state.
        competition: Decides which weights of a pool stay.
        masks: The layers' masks; updated.
        pools: None contains layers of two blocks.
        hold: Within the context a block's weights exist.

    Raises:
        NoEvidenceError: All scores of a pool are equal or broken; earlier blocks stay pruned.
    """
    layers = competition.layers
    block = {module: one for one in blocks_of(model) for module in one.modules()}
    of_block = defaultdict[nn.Module | None, list[Pool]](list)
    for pool in pools:
        of_block[block.get(layers[pool.layers[0]].module)].append(pool)
    for place, own in of_block.items():
        with nullcontext() if place is None else hold(place):
            for pool in own:
                weights = [layers[i].weight for i in pool.layers]
                part, scores = masks.some(pool.layers), score.score(State(), weights)
                ranks = dict(zip(pool.layers, scores, strict=True))
                candidates = dict(zip(pool.layers, part.unpacked(), strict=True))
                best = competition.best(pool, ranks, candidates, sum(part.kept))
                if best is None:
                    raise no_evidence(name, model, layers, masks.kept, pool, scores, False)
                part.set([best[i] for i in pool.layers])
                masks.put(pool.layers, part)
                part.apply(weights)
