"""Which weights of a model are prunable: chosen by module type, then by name."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

DEFAULT_EXCLUDE = (
    # classifier heads, as torchvision, timm and transformers name them
    *("head", "heads", "fc", "classifier", "pre_classifier", "score", "lm_head", "qa_outputs"),
    # patch and token embeddings
    *("conv_proj", "patch_embed*", "*embeddings"),
)
"""Names left dense unless ``exclude`` says otherwise; each matches one component of a name."""

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Layer:
    """One prunable weight: where it lives, so that it is found again after ``load_state_dict``."""

    name: str
    module: nn.Module
    attribute: str

    @property
    def weight(self) -> nn.Parameter:
        """The parameter as it is now.

        Raises:
            RuntimeError: It is none any more.
        """
        weight = getattr(self.module, self.attribute)
        if not isinstance(weight, nn.Parameter):
            raise RuntimeError(f"{self.name} is no parameter any more, so it can't be pruned")
        return weight


def transposed(layer: Layer) -> bool:
    """Whether a weight's rows are its inputs: transposed convolutions, transformers' Conv1D."""
    return isinstance(layer.module, _TRANSPOSED) or type(layer.module).__name__ == "Conv1D"


def unwrap(model: nn.Module) -> nn.Module:
    """The user's own module beneath ``torch.compile`` and data-parallel wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(
            model, nn.DataParallel | nn.parallel.DistributedDataParallel
        ):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def prunable_layers(
    model: nn.Module,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
) -> list[Layer]:
    """Prunable weights in module order: of Linear, Conv and attention, less what names exclude.

    A pattern (``*`` and ``?`` as in a shell) matches a parameter's full name, its module's full
    name, or any single component of it. A weight shared by several modules counts once; one
    shared with an embedding is an embedding.

    Args:
        model: Any module, compiled or data-parallel ones included.
        include: Keep only the weights that match one of these. None: all.
        exclude: Leave out the weights that match one of these. None: ``DEFAULT_EXCLUDE``, which
            covers classifier heads and embeddings. An empty list excludes nothing.

    Raises:
        ValueError: Nothing is left to prune, or a given pattern matches no parameter.
    """
    model = unwrap(model)
    include, exclude = _listed(include), _listed(exclude)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for key, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns or ():
            if not any(matches(name, pattern) for name in names):
                raise ValueError(f"{key} pattern '{pattern}' matches no parameter of the model")

    unwanted = DEFAULT_EXCLUDE if exclude is None else exclude
    seen = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)}
    layers = []
    for layer in _candidates(model):
        if id(layer.weight) in seen:
            continue
        seen.add(id(layer.weight))
        wanted = include is None or any(matches(layer.name, p) for p in include)
        if wanted and not any(matches(layer.name, p) for p in unwanted):
            layers.append(layer)
    if not layers:
        raise ValueError("no prunable weight: include and exclude leave nothing to prune")
    return layers


def _candidates(model: nn.Module) -> Iterator[Layer]:
    for prefix, module in model.named_modules():
        # transformers' Conv1D (GPT-2) is a Linear with its weight transposed.
        if isinstance(module, _WEIGHTED) or type(module).__name__ == "Conv1D":
            attributes: tuple[str, ...] = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            attributes = _ATTENTION
        else:
            continue
        for attribute in attributes:
            name = f"{prefix}.{attribute}".lstrip(".")
            if isinstance(module._parameters.get(attribute), nn.Parameter):
                yield Layer(name, module, attribute)
            elif isinstance(getattr(module, attribute, None), Tensor):
                warnings.warn(f"{name} is computed from other parameters: left dense", stacklevel=2)


def _listed(patterns: Sequence[str] | None) -> Sequence[str] | None:
    return [patterns] if isinstance(patterns, str) else patterns


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern fits a parameter's name, its module's, or any single component."""
    module = name.rpartition(".")[0]
    return any(fnmatchcase(part, pattern) for part in (name, module, *name.split(".")))
