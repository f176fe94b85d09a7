"""ShortGPT: how much a block changes the direction of what it reads."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from seven_exp.pruning.criteria.score import LossFunction, Mean, ModelScore, Tensors, precision
from seven_exp.pruning.layerwise import inference
from seven_exp.pruning.patterns import Depth, Pattern
from seven_exp.pruning.registry import register
from seven_exp.pruning.structure import blocks_of


@register("short_gpt", when="after", schedule="one_shot")
class ShortGpt(ModelScore):
    """Block influence 1 - E[cos(x, y)], x what a block reads and y what it returns, per token.

    It needs pattern depth (Men et al., "ShortGPT: layers in large language models are more
    redundant than you expect", arXiv 2403.03853, eq. 1).
    """

    def check(self, pattern: Pattern) -> None:
        """All weights of a block have the same score."""
        if not isinstance(pattern, Depth):
            raise ValueError(
                f"short_gpt scores whole blocks, which pattern '{pattern}' does not remove: choose "
                "pattern depth"
            )

    def score(
        self,
        model: nn.Module,
        weights: Tensors,
        batches: Sequence[Any],
        loss_fn: LossFunction,
        mean: Mean,
    ) -> list[Tensor]:
        """The influence of its block for each weight."""
        blocks = blocks_of(model)
        place = {id(weight): i for i, block in enumerate(blocks) for weight in block.parameters()}
        device = weights[0].device
        cosines, tokens = torch.zeros(2, len(blocks), dtype=torch.float64, device=device)

        def see(
            i: int, _: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any
        ) -> None:
            read = args[0] if args else next(iter(kwargs.values()))
            returned = made if isinstance(made, Tensor) else made[0]
            if read.shape != returned.shape:
                raise ValueError(
                    "short_gpt compares what a block reads and returns, and these differ in shape: "
                    "it is for the blocks of Transformers"
                )
            cosine = functional.cosine_similarity(read.double(), returned.double(), dim=-1)
            cosines[i] += cosine.sum().to(device)
            tokens[i] += cosine.numel()

        with inference(model, {weight.device for weight in weights}), ExitStack() as hooks:
            for i, block in enumerate(blocks):
                hook = block.register_forward_hook(partial(see, i), with_kwargs=True)
                hooks.enter_context(hook)
            for batch in batches:
                loss_fn(model, batch)
        mean([cosines, tokens])
        influence = 1 - cosines / tokens
        return [
            torch.full_like(weight, influence[place[id(weight)]].item(), dtype=precision(weight))
            for weight in weights
        ]
