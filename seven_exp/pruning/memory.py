"""How much memory a pruner will hold, computed before anything is allocated."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seven_exp.pruning.create import create_pruner
from seven_exp.pruning.criteria.score import precision
from seven_exp.pruning.criteria.solver import Solver
from seven_exp.pruning.inputs import uses_of
from seven_exp.pruning.layers import Layer, prunable_layers
from seven_exp.pruning.matrices import widths
from seven_exp.pruning.method import Method, prunes_by_block, regrows
from seven_exp.pruning.pruner import Pruner
from seven_exp.pruning.registry import PRUNERS, When, build_method
from seven_exp.pruning.regrowth import Remembered, StayGone
from seven_exp.pruning.structure import blocks_of


class MemoryPlan(NamedTuple):
    """Bytes that pruning adds to training.

    Attributes:
        prunable: Number of prunable weights.
        total: Number of parameters.
        per_weight: Bytes per prunable weight, masks included.
        per_rank: Bytes on the first of the ranks that share the rows of each weight; none holds
            more.
    """

    prunable: int
    total: int
    per_weight: float
    per_rank: int


def plan_memory(name: str, model: nn.Module, *, ranks: int = 1, **settings: Any) -> MemoryPlan:
    """Compute how much memory a pruner will hold for a model.

    Args:
        name: A registered name, such as "seven_dyn".
        model: May be on the meta device, where even 7B parameters take no memory.
        ranks: Number of processes among which weights and state are sharded.
        **settings: ``include``, ``exclude``, ``exclude_defaults`` and the method's
            hyper-parameters, as for `create_pruner`.

    Raises:
        ValueError: As in `create_pruner`.
    """
    which = ("include", "exclude", "exclude_defaults")
    chosen = {key: settings.pop(key) for key in which if key in settings}
    weights = [layer.weight for layer in prunable_layers(model, **chosen)]
    method, when = build_method(name, settings), PRUNERS[name].when
    needed = sum(planned_bytes(method, weights, when))
    rows = [weight[: -(-len(weight) // ranks)] for weight in weights]
    fullest = sum(planned_bytes(method, rows, when))
    prunable = sum(weight.numel() for weight in weights)
    total = sum(parameter.numel() for parameter in model.parameters())
    return MemoryPlan(prunable, total, needed / prunable, fullest)


class Held(NamedTuple):
    """Bytes that a pruner holds.

    Attributes:
        masks: One bit per weight.
        state: The score's tensors, and weights that are remembered outside the model.
    """

    masks: int
    state: int


def planned_bytes(method: Method, weights: Sequence[Tensor], when: When) -> Held:
    """What a pruner holds once it has scored these weights, which may be on the meta device."""
    masks = sum(-(-weight.numel() // 8) for weight in weights)
    if isinstance(method, Solver):
        return Held(masks, 0)
    bare = [torch.empty_like(weight, device="meta") for weight in weights]
    score, kind = method.score, regrows(method)
    state = [tensor for column in score.init(bare).tensors.values() for tensor in column]
    # Outside training, all weights that may return are remembered.
    if issubclass(kind, Remembered) or (when != "during" and kind is not StayGone):
        state += bare
    return Held(masks, sum(tensor.untyped_storage().nbytes() for tensor in state))


def held_bytes(pruner: Pruner) -> int:
    """Bytes of the tensors that a pruner holds now: masks, score state and remembered weights."""
    tensors: list[Tensor] = [*pruner._masks.bits, *(pruner._regrowth.memory or ())]
    for column in pruner.state.tensors.values():
        tensors += column
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


class WalkPlan(NamedTuple):
    """Bytes on the device while the blocks of a model are pruned one at a time.

    Attributes:
        outside: Parameters outside all blocks: embeddings, norms, the output layer.
        block: Parameters of the largest block.
        statistics: A solver's sums over the inputs of a block's weights; 0 for other methods.
        solving: An upper estimate of a solver's copies while it solves one weight: `Solver.copies`
            of its statistics and eight of the weight in float32.
        inputs: The inputs of a block for all sequences, and the embeddings, which passes keep.
        passing: An upper estimate for one pass: the widest activations of a block eight times, or
            the logits in the model's dtype and twice in float32.
    """

    outside: int
    block: int
    statistics: int
    solving: int
    inputs: int
    passing: int

    @property
    def total(self) -> int:
        """The sum; solving and passing follow one another, so the larger one counts."""
        held = self.outside + self.block + self.statistics + self.inputs
        return held + max(self.solving, self.passing)


def plan_walk(
    name: str, model: nn.Module, *, sequences: int, length: int, **settings: Any
) -> WalkPlan:
    """Compute how much memory it takes to prune a language model block by block.

    Args:
        name: A registered solver, such as "wanda", or "magnitude".
        model: A causal language model, usually on the meta device.
        sequences: Number of calibration sequences, or of evaluated blocks if there are more.
        length: Tokens of each.
        **settings: As for `create_pruner`.

    Raises:
        ValueError: As in `create_pruner`; or the pruner reads the whole model, or there are no
            blocks.
    """
    pruner = create_pruner(name, model, sparsity=0.5, **settings)
    return walk_of(pruner, model, sequences=sequences, length=length)


def walk_of(pruner: Pruner, model: nn.Module, *, sequences: int, length: int) -> WalkPlan:
    """`plan_walk` for a pruner that exists.

    Raises:
        ValueError: It reads the whole model, or the model has no blocks.
    """
    method, blocks = pruner.method, blocks_of(model)
    if not (isinstance(method, Solver) or prunes_by_block(method)) or not blocks:
        lacking = f"{pruner.name} reads the whole model" if blocks else "the model has no blocks"
        raise ValueError(f"nothing can be pruned block by block: {lacking}")
    sums, copies = [0] * len(pruner.layers), 0
    if isinstance(method, Solver):
        sums, copies = _statistics(method, model, pruner.layers), method.copies
    owner = {id(module): i for i, block in enumerate(blocks) for module in block.modules()}
    within = [0] * len(blocks)
    for layer, size in zip(pruner.layers, sums, strict=True):
        if id(layer.module) in owner:
            within[owner[id(layer.module)]] += size
    sizes = [sum(map(_bytes, block.parameters())) for block in blocks]
    embeddings = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    itemsize = pruner.layers[0].weight.element_size()
    width = max(module.embedding_dim for module in embeddings)
    widest = max(max(layer.shape[0], widths(layer)[0]) for layer in pruner.layers)
    words = max(module.num_embeddings for module in embeddings)
    return WalkPlan(
        outside=sum(map(_bytes, model.parameters())) - sum(sizes),
        block=max(sizes),
        statistics=max(within),
        solving=max(
            copies * size + 32 * layer.weight.numel()
            for layer, size in zip(pruner.layers, sums, strict=True)
        ),
        inputs=2 * sequences * length * width * itemsize,
        passing=length * max(8 * widest * 4, words * (itemsize + 8)),
    )


def _statistics(solver: Solver, model: nn.Module, layers: Sequence[Layer]) -> list[int]:
    """Bytes of a solver's sums for each layer."""
    sizes = []
    for layer, use in zip(layers, uses_of(model, layers), strict=True):
        shown = [] if use is None else [use.matrices(layer.weight.detach().to("meta"), 1)]
        tensors = [t for w in shown for t in solver.init(w.to(precision(w))).values()]
        sizes.append(sum(t.numel() * t.element_size() for t in tensors))
    return sizes


def _bytes(parameter: Tensor) -> int:
    return parameter.numel() * parameter.element_size()
