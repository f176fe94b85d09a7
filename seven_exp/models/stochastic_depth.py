"""Regularisation of torchvision's models: stochastic depth and dropout."""

from torch import nn


def set_stochastic_depth(model: nn.Module, name: str, rate: float) -> None:
    """Skip residual branches at random in training, the last one with this probability.

    (Huang et al., arXiv 1603.09382.) The probability grows in a line from the first block to the
    last. A model with such layers keeps their proportions; those of a ViT are added to its blocks,
    without parameters.

    Args:
        model: One of torchvision's; changed in place.
        name: Name of the model, for the error.
        rate: Probability, in [0, 1).

    Raises:
        ValueError: It has no such layers and is no ViT.
    """
    from torchvision.models.vision_transformer import EncoderBlock
    from torchvision.ops import StochasticDepth

    if own := [module for module in model.modules() if isinstance(module, StochasticDepth)]:
        largest = max(module.p for module in own)
        for module in own:
            module.p = rate * module.p / largest
        return
    blocks = [module for module in model.modules() if isinstance(module, EncoderBlock)]
    if not blocks:
        raise ValueError(
            f"model.stochastic_depth is {rate}: {name} has no layers of it; choose null"
        )
    for number, block in enumerate(blocks):
        skip = StochasticDepth(rate * number / max(1, len(blocks) - 1), "row")
        # The two places at which a block adds a branch to its input.
        block.dropout = nn.Sequential(block.dropout, skip)
        block.mlp.append(skip)


def set_dropout(model: nn.Module, name: str, rate: float) -> None:
    """Set the probability of all dropout layers.

    Raises:
        ValueError: There are none, or the value is out of range.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"model.dropout is {rate}: choose from 0 up to, not including, 1")
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if not layers:
        raise ValueError(f"model.dropout is {rate}: {name} has no dropout; choose null")
    for layer in layers:
        layer.p = rate
