"""Structure: which layers of a model are outputs, embeddings, routers and adapters.

Nothing is run. A layer's role follows from its position among the others, from its shape, and from
the names that torchvision, timm, transformers and peft give to such layers.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

from torch import nn

from seven_exp.pruning.matrices import Layer, join, widths

_ADAPTERS = ("lora_*", "vera_*", "adapter", "adapters", "adapter_*", "*_adapter", "*_adapters")
_EMBEDDINGS = (
    *("conv_proj", "patch_embed*", "*embeddings", "*_embedding", "embed_in", "embed_out"),
    *("embed_proj", "project_in", "project_out", "embeddings_project", "embedding_hidden_*"),
)
_ATTENTION = ("*attn*", "*attention*")
_ROUTERS = ("router", "*_router")
_GATES = ("gate", "wg", "*_gate", "gating")
_HEADS = (
    # Classification heads in torchvision, timm and transformers.
    *("head", "heads", "head_*", "*_head", "*_heads", "fc", "classifier", "*_classifier"),
    *("classifiers", "score", "last_linear", "logits_proj", "aux[0-9]", "AuxLogits", "aux_logits"),
    # Language-model and question-answering heads, and embeddings for similarity.
    *("qa_outputs", "cls", "*predictions", "seq_relationship", "pred_layer", "*_logits"),
    *("proj_out", "visual_projection", "text_projection"),
    # Detection and segmentation.
    *("*_predictor", "*_pred", "bbox_reg", "bbox_ctrness", "cls_score", "kps_score_*"),
    *("class_embed", "bbox_embed"),
    # Modules that peft trains instead of a head, and the head inside them.
    *("modules_to_save", "original_module"),
)
_NO_HEADS = ("pre_logits", "pre_classifier")
"""Hidden layers in front of a head."""

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

_LAST = ("fc*", "lin*", "dense*", "out*", "*_out", "last*", "final*", "to_logits", "logits")
"""Names of the last layer in a model without a head, such as LeNet's fc1, fc2, fc3."""


@dataclass(frozen=True)
class Structure:
    """The roles of a model's parts.

    Attributes:
        roles: Full name of a module or parameter -> "output layer", "embedding", "router",
            "adapter" or "depthwise filter"; the role holds for everything inside.
        last: Name of the last weight if no output layer was recognised.
    """

    roles: Mapping[str, str]
    last: str | None = None

    def role(self, name: str) -> str | None:
        """The role of a parameter; None for an ordinary one, which is prunable."""
        parts = name.split(".")
        ends = range(len(parts), 0, -1)
        return next((role for end in ends if (role := self.roles.get(".".join(parts[:end])))), None)


def structure_of(model: nn.Module, layers: Sequence[Layer]) -> Structure:
    """Find a model's output layers, embeddings, routers and adapters.

    Args:
        model: Unwrapped.
        layers: Its `matrices`.
    """
    modules = dict(model.named_modules())
    roles = {
        path: "adapter" for path in modules if any(_named(p, _ADAPTERS) for p in path.split("."))
    }
    roles |= {path: "router" for path in _routers(modules, layers) if path not in roles}
    roles |= {path: "embedding" for path in _embeddings(modules, layers) if path not in roles}
    roles |= {path: "depthwise filter" for path in _filters(modules) if path not in roles}
    plain = Structure(roles)
    hidden = [layer for layer in layers if plain.role(layer.name) is None]
    heads = _heads(modules, hidden)
    outputs = [output for head in heads for output in _tail(head, modules, hidden)]
    if not heads:
        outputs = _last(model, hidden)
    roles |= dict.fromkeys(outputs, "output layer")
    tied = {id(module.weight) for module in modules.values() if embeds(module)}
    recognised = outputs or any(id(layer.weight) in tied for layer in layers)
    last = None if recognised or len(hidden) < 2 else hidden[-1].name
    return Structure(roles, last)


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: the elements of its module lists in which a class repeats.

    The outermost such lists count, in module order. Sequences and lists are searched, but are not
    blocks themselves.
    """
    children = list(model.children())
    kinds = Counter(map(type, children)) if isinstance(model, _LISTS) else Counter()
    blocks = []
    for child in children:
        repeats = kinds[type(child)] > 1 and type(child) not in _LISTS
        blocks += [child] if repeats else blocks_of(child)
    return blocks


def attention_of(model: nn.Module) -> set[nn.Module]:
    """The modules inside a model's attention, whose name or type says so."""
    return {
        part
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        or _named(path.rpartition(".")[2].lower(), _ATTENTION)
        for part in module.modules()
    }


def embeds(module: nn.Module) -> bool:
    """Whether a module is torch's own embedding."""
    return isinstance(module, nn.Embedding | nn.EmbeddingBag)


def _named(part: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(part, pattern) for pattern in patterns)


def _routers(modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> set[str]:
    """Modules that route inputs to experts, or weight the experts' outputs."""
    stacks = {id(layer.module) for layer in layers if layer.stacked}
    found = set()
    for path, module in modules.items():
        own = dict(module.named_children())
        experts = id(module) in stacks or any("expert" in name for name in own)
        patterns = (*_ROUTERS, *_GATES) if experts else _ROUTERS
        found |= {join(path, name) for name in own if _named(name, patterns)}
    return found


def _embeddings(modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> set[str]:
    """Modules that turn tokens or patches into vectors, and projections of these vectors."""
    found = {
        path
        for path, module in modules.items()
        if embeds(module) or _named(path.rpartition(".")[2], _EMBEDDINGS)
    }
    first = layers[0].module if len(layers) > 1 else None
    if isinstance(first, nn.Conv1d | nn.Conv2d | nn.Conv3d) and first.kernel_size == first.stride:
        # A first layer with non-overlapping patches is a patch embedding, whatever its name.
        found |= {_place(layers[0])} if max(first.stride) > 1 else set()
    return found


def _filters(modules: Mapping[str, nn.Module]) -> list[str]:
    """Modules that filter each channel along the tokens by itself, as in Mamba: few weights."""
    return [
        path
        for path, module in modules.items()
        if isinstance(module, nn.Conv1d) and module.groups == module.in_channels > 1
    ]


def _heads(modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> list[str]:
    """Modules that make outputs: the innermost ones whose names say so."""
    weighted = _holders(layers)
    named = {
        path
        for path in modules
        if path in weighted and _is_head(path, modules) and not _in_a_chain(path, modules, layers)
    }
    outer = {
        ".".join(path.split(".")[:end]) for path in named for end in range(path.count(".") + 1)
    }
    return [path for path in modules if path in named - outer]


def _holders(layers: Sequence[Layer]) -> set[str]:
    """Full names of all modules that hold weights, directly or not."""
    parts = [layer.name.split(".") for layer in layers]
    return {".".join(names[:end]) for names in parts for end in range(len(names))}


def _is_head(path: str, modules: Mapping[str, nn.Module]) -> bool:
    around, _, name = path.rpartition(".")
    if not _named(name, _HEADS) or _named(name, _NO_HEADS):
        return False
    # A "head" before a predictor makes features, as in Faster R-CNN.
    stem = name.removesuffix("_head")
    return stem == name or join(around, f"{stem}_predictor") not in modules


def _in_a_chain(path: str, modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> bool:
    """Whether it belongs to repeated blocks, each of which reads the previous one's outputs."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            before, rest = ".".join(parts[:i]), ".".join(parts[i + 1 :])
            blocks = [name for name, _ in modules[before].named_children()]
            for one, two in pairwise(blocks):
                ends = _within(join(before, one, rest), layers)
                starts = _within(join(before, two), layers)
                if ends and starts and _follows(ends, starts):
                    return True
    return False


def _within(path: str, layers: Sequence[Layer]) -> list[Layer]:
    return [layer for layer in layers if not path or layer.name.startswith(f"{path}.")]


def _tail(path: str, modules: Mapping[str, nn.Module], layers: Sequence[Layer]) -> list[str]:
    """The last modules of a head: one, or one per branch."""
    children = [join(path, name) for name, _ in modules[path].named_children()]
    children = [child for child in children if _within(child, layers)]
    if not children:
        return [path]
    parallel = isinstance(modules[path], nn.ModuleList | nn.ModuleDict)
    if not parallel or _is_chain(children, layers):
        children = children[-1:]
    return [output for child in children for output in _tail(child, modules, layers)]


def _is_chain(paths: Sequence[str], layers: Sequence[Layer]) -> bool:
    """Whether each module reads the outputs of the module before it."""
    held = [_within(path, layers) for path in paths]
    return all(_follows(one, two) for one, two in pairwise(held))


def _follows(before: Sequence[Layer], after: Sequence[Layer]) -> bool:
    """Whether the first of some layers can read the outputs of the last of others."""
    (_, outputs), (inputs, _) = widths(before[-1]), widths(after[0])
    return outputs == inputs


def _last(model: nn.Module, layers: Sequence[Layer]) -> list[str]:
    """The last layer of a model whose head has no known name, if it is top-level and fits.

    Torch's own containers and blocks give no evidence about what follows them.
    """
    if len(layers) < 2 or type(model).__module__.startswith("torch.nn."):
        return []
    path = _place(layers[-1])
    return [path] if _named(path, _LAST) and "." not in path else []


def _place(layer: Layer) -> str:
    """Full name of the module that holds a weight."""
    return layer.name.rpartition(".")[0]
