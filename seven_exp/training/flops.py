"""Floating-point operations of one forward pass, dense and with pruned weights skipped."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from seven_exp.pruning.inputs import Use, uses_of
from seven_exp.pruning.layers import Layer, unwrap
from seven_exp.pruning.matrices import holders_of
from seven_exp.tasks import Inputs, forward


def forward_flops(
    model: nn.Module,
    sample: Inputs,
    layers: Sequence[Layer],
    counts: Mapping[str, tuple[int, int]],
) -> tuple[int, int]:
    """Operations for one sample: (dense, sparse). A multiply-add counts as two.

    The sparse count is theoretical: it subtracts, for every pruned weight, two operations for each
    use of the weight. Only sparse kernels realise this gain. Of experts only those in use
    count; what is subtracted for them assumes that all of them process equally many inputs, and
    for the projections of attention that each has the same sparsity.

    Args:
        model: Any module.
        sample: One batch's inputs, first dimension the batch.
        layers: The prunable weights.
        counts: Weight name -> (number of weights, number of kept weights).
    """
    model = unwrap(model)
    uses = dict.fromkeys((layer.name for layer in layers), 0.0)

    def counter(name: str, holder: Layer, use: Use | None) -> torch.utils.hooks.RemovableHandle:
        def count(module: nn.Module, args: Any, kwargs: Any, output: object) -> None:
            uses[name] += _uses(holder, use, args, kwargs, output)

        module = holder.module if use is None else use.module
        return module.register_forward_hook(count, with_kwargs=True)

    sharing = zip(layers, holders_of(model, layers), strict=True)
    named = [(layer.name, holder) for layer, holders in sharing for holder in holders]
    where = uses_of(model, [holder for _, holder in named])
    handles = [counter(*one, use) for one, use in zip(named, where, strict=True)]
    training = model.training
    try:
        model.eval()
        # With gradients off, attention would take a fused path, which the counter can't see.
        flops = FlopCounterMode(display=False, custom_mapping=_grouped())
        with _unfused(layers), torch.enable_grad(), flops:
            forward(model, sample)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    dense = flops.get_total_flops()
    skipped = round(sum(2 * (size - kept) * uses[name] for name, (size, kept) in counts.items()))
    size = len(next(iter(sample.values())) if isinstance(sample, Mapping) else sample)
    return dense // size, (dense - skipped) // size


@contextmanager
def _unfused(layers: Sequence[Layer]) -> Iterator[None]:
    """Make recurrent layers multiply step by step within the context, so the counter sees it."""
    with ExitStack() as stack:
        if any(isinstance(layer.module, nn.RNNBase) for layer in layers):
            stack.enter_context(warnings.catch_warnings())
            # torch warns about other processors' precision whenever these flags are set.
            warnings.filterwarnings("ignore", ".*TF32 acceleration")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def _routed(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Number of inputs that experts process: one for each expert that a token is routed to.

    0 if the call does not say it by indices of experts.
    """
    given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return next((x.numel() for x in given if x.dtype in (torch.int32, torch.int64)), 0)


def _grouped() -> dict[Any, Any]:
    """How to count products of rows with the experts' matrices that torch's counter lacks."""

    def count(rows: Sequence[int], stack: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * rows[0] * stack[1] * stack[2]

    kernels = [
        getattr(torch.ops.aten, "_grouped_mm", None),
        getattr(torch.ops.transformers, "grouped_mm_fallback", None),
    ]
    return {kernel: count for kernel in kernels if kernel is not None}


def _uses(
    layer: Layer, use: Use | None, args: Sequence[Any], kwargs: Mapping[str, Any], output: object
) -> float:
    """How many times a module's call uses each weight of a layer, on average."""
    if layer.stacked:
        return _routed(args, kwargs) / len(layer.weight)
    module = layer.module
    if use is not None and isinstance(module, nn.MultiheadAttention):
        # Queries, keys and values may differ in number.
        return fmean(len(rows) for rows in use.inputs(args, kwargs))
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        images = args[0] if args else next(iter(kwargs.values()))
        return float(images.numel() // module.in_channels)
    result = output[0] if isinstance(output, tuple) else output
    result = result.data if isinstance(result, nn.utils.rnn.PackedSequence) else result
    assert isinstance(result, Tensor)
    if isinstance(module, nn.modules.conv._ConvNd):
        return float(result.numel() // module.out_channels)
    return float(result.numel() // result.shape[-1])
