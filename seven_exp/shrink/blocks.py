"""Hidden units and heads in the blocks of torchvision's and transformers' models.

Layers that write into a residual stream keep their size, because others read and write there too.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from seven_exp.pruning.matrices import unwrap
from seven_exp.shrink.attention import Heads, cut, slim, standing
from seven_exp.shrink.sizes import add, keep_inputs, keep_outputs, parameter
from seven_exp.shrink.units import Pair, shrink_units
from seven_exp.shrink.verify import Inputs, outputs_kept

_ELEMENTWISE = (
    *(nn.Dropout, nn.Identity, nn.GELU, nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU),
    *(nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Hardswish, nn.Hardtanh),
)

_TORCH_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def _elementwise(activation: object) -> bool:
    return isinstance(activation, _ELEMENTWISE) or activation in (functional.relu, functional.gelu)


@dataclass(frozen=True)
class _Transformer:
    """The names of the parts of transformers' blocks."""

    up: str
    activation: str
    down: str
    query: str | None = None
    key: str = ""
    value: str = ""
    out: str = ""
    width: str = ""

    def fits(self, block: nn.Module) -> bool:
        """Whether the block has these parts: versions of transformers name them differently."""
        try:
            operator.attrgetter(*filter(None, vars(self).values()))(block)
        except AttributeError:
            return False
        return True


_BERT = _Transformer(
    *("intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"),
    *("attention.self.query", "attention.self.key", "attention.self.value"),
    *("attention.output.dense", "attention.self.attention_head_size"),
)

_TRANSFORMERS = {
    "BertLayer": _BERT,
    "RobertaLayer": _BERT,
    "TransformerBlock": _Transformer(
        *("ffn.lin1", "ffn.activation", "ffn.lin2"),
        *("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        "attention.attention_head_size",
    ),
    "ViTLayer": _Transformer(
        *("mlp.fc1", "mlp.activation_fn", "mlp.fc2"),
        *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
        "attention.head_dim",
    ),
    # Their attention is of a special kind, so it is not changed.
    "DebertaV2Layer": _Transformer(
        "intermediate.dense", "intermediate.intermediate_act_fn", "output.dense"
    ),
    "GPT2Block": _Transformer("mlp.c_fc", "mlp.act", "mlp.c_proj"),
}
"""Class of a block -> its parts. DistilBERT's blocks are called TransformerBlock."""


@dataclass(frozen=True)
class Shrunk:
    """A part of the model that has become smaller.

    Attributes:
        name: Name of the module, or of the first layer of a pair.
        unit: "neurons", "channels", "heads" or "dimensions" (of queries, keys and values).
        before: Number of units before.
        after: Number of units after.
    """

    name: str
    unit: str
    before: int
    after: int


def shrink(model: nn.Module, example_inputs: Inputs) -> list[Shrunk]:
    """Remove all units without effect, in place, and verify that the outputs stay the same.

    Args:
        model: Pruned weights zero, float32 or float64. Its behaviour in evaluation mode counts;
            every module keeps its mode.
        example_inputs: Inputs for comparing the outputs before and after: a tensor, a tuple
            of arguments or a mapping of keyword arguments. A part of the model that they do not
            reach is not verified.

    Returns:
        What has become smaller, in the model's order; nothing if every unit has an effect.

    Raises:
        ValueError: The model has no known block, or its outputs would change by more than
            rounding. The model is then unchanged.
    """
    model = unwrap(model)
    pairs, attentions, blocks = list(_pairs(model)), _attentions(model), list(_blocks(model))
    if not pairs and not attentions:
        raise ValueError(
            f"{type(model).__name__} has no block whose inner sizes can change: known are "
            "torchvision's ViT and ResNet, transformers' BERT, RoBERTa, DistilBERT, DeBERTa-v2, "
            "ViT and GPT-2, PyTorch's Transformer layers, and perceptrons"
        )
    with outputs_kept(model, example_inputs):
        sizes = _shrink_pairs(pairs)
        for name, attention in attentions:
            slimmed = slim(attention)
            if slimmed is not None:
                model.set_submodule(name, slimmed.eval())
                sizes[name, "heads"] = attention.num_heads, slimmed.number
                sizes[name, "dimensions"] = 3 * attention.embed_dim, slimmed.in_proj.out_features
        for name, block, parts in blocks:
            if parts.query is not None:
                sizes[f"{name}.attention", "heads"] = _drop_heads(block, parts)
    return [Shrunk(*key, *value) for key, value in sizes.items() if value[1] < value[0]]


def _shrink_pairs(pairs: Sequence[tuple[str, Pair]]) -> dict[tuple[str, str], tuple[int, int]]:
    """Name and unit -> number of units before and after."""
    sizes: dict[tuple[str, str], tuple[int, int]] = {}
    # Removing units can leave more units without effect, before and after them.
    going = True
    while going:
        going = False
        for name, pair in pairs:
            before, after = shrink_units(pair)
            unit = "channels" if isinstance(pair.first, nn.Conv2d) else "neurons"
            sizes[name, unit] = sizes.get((name, unit), (before, 0))[0], after
            going |= after < before
    return sizes


def _attentions(model: nn.Module) -> list[tuple[str, nn.MultiheadAttention]]:
    """Attention that is only called as a module by its block."""
    # These blocks read its weights, and pass masks to it.
    kept = {
        part
        for module in model.modules()
        if isinstance(module, _TORCH_LAYERS)
        for part in module.children()
    }
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention) and module not in kept
    ]


def _blocks(model: nn.Module) -> Iterator[tuple[str, nn.Module, _Transformer]]:
    for name, module in model.named_modules():
        parts = _TRANSFORMERS.get(type(module).__name__)
        if parts is not None and parts.fits(module):
            yield name, module, parts


def _pairs(model: nn.Module) -> Iterator[tuple[str, Pair]]:
    """Every pair of layers with hidden units between them, with the name of the first."""
    for prefix, module in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
            yield from ((dot + name, pair) for name, pair in _linear_pairs(module))
        elif type(module).__name__ in ("BasicBlock", "Bottleneck"):
            yield from ((dot + name, pair) for name, pair in _conv_pairs(module))
        elif isinstance(module, _TORCH_LAYERS) and _elementwise(module.activation):
            yield f"{dot}linear1", Pair(module.linear1, module.linear2, module.activation)
    for prefix, block, parts in _blocks(model):
        first, second = block.get_submodule(parts.up), block.get_submodule(parts.down)
        activation = operator.attrgetter(parts.activation)(block)
        yield f"{prefix}.{parts.up}", Pair(first, second, activation)


def _linear_pairs(module: nn.Sequential) -> Iterator[tuple[str, Pair]]:
    parts = list(module.named_children())
    linear = [place for place, (_, part) in enumerate(parts) if isinstance(part, nn.Linear)]
    for here, there in pairwise(linear):
        between = [part for _, part in parts[here + 1 : there]]
        if all(isinstance(part, _ELEMENTWISE) for part in between):
            (name, first), (_, second) = parts[here], parts[there]
            yield name, Pair(first, second, nn.Sequential(*between))


def _conv_pairs(block: nn.Module) -> Iterator[tuple[str, Pair]]:
    """Torchvision's residual blocks: conv1, bn1, relu, conv2, bn2, and so on."""
    activation = getattr(block, "relu", functional.relu)
    if not _elementwise(activation):
        return
    for i in (1, 2):
        parts = [getattr(block, f"{kind}{n}", None) for kind in ("conv", "bn") for n in (i, i + 1)]
        first, second, norm, second_norm = parts
        if (
            isinstance(first, nn.Conv2d)
            and isinstance(second, nn.Conv2d)
            and first.groups == second.groups == 1
            and isinstance(norm, nn.BatchNorm2d)
            and isinstance(second_norm, nn.BatchNorm2d)
        ):
            yield f"conv{i}", Pair(first, second, activation, norm, second_norm)


@torch.no_grad()
def _drop_heads(block: nn.Module, parts: _Transformer) -> tuple[int, int]:
    """Remove whole heads from one of transformers' attentions; return heads before and after.

    Its code requires heads of one width, so single dimensions stay, and at least one head.
    """
    assert parts.query is not None
    inside = [block.get_submodule(path) for path in (parts.query, parts.key, parts.value)]
    out = block.get_submodule(parts.out)
    width = operator.attrgetter(parts.width)(block)
    n = len(parameter(inside[0], "weight")) // width
    queries, keys, values = (
        cut(parameter(m, "weight"), getattr(m, "bias", None), n) for m in inside
    )
    heads = Heads(queries, keys, values, torch.unflatten(parameter(out, "weight"), 1, (n, -1)))
    stay = standing(heads.idle_values)
    if len(stay) == 0:
        stay = stay.new_zeros(1)
    if len(stay) == n:
        return n, n
    gone = torch.ones_like(heads.idle_values)
    gone[stay] = False
    add(out, "bias", heads.told(gone))
    kept = (stay[:, None] * width + torch.arange(width)).flatten()
    for projection in inside:
        keep_outputs(projection, kept)
    keep_inputs(out, kept)
    return n, len(stay)
