"""Layers that multiply by a CSR (compressed sparse row) matrix with torch's CPU kernels."""

import warnings
from contextlib import suppress

import torch
from torch import Tensor, nn

from seven_exp.shrink.attention import SlimAttention
from seven_exp.shrink.verify import Inputs, outputs_kept

_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Modules that read the weights of the layers inside them without calling these."""


class SparseLinear(nn.Module):
    """A Linear with its weight in CSR; computes the same as the dense one."""

    def __init__(self, linear: nn.Linear) -> None:
        """Keep the nonzero weights."""
        super().__init__()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
            self.weight = nn.Parameter(linear.weight.detach().to_sparse_csr(), requires_grad=False)
        self.bias = linear.bias
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        columns = inputs.reshape(-1, inputs.shape[-1]).T
        outputs = (self.weight @ columns).T.reshape(*inputs.shape[:-1], -1)
        return outputs if self.bias is None else outputs + self.bias


def to_csr(model: nn.Module, names: set[str], example_inputs: Inputs) -> int:
    """Replace linear layers by CSR layers, including attention's projections.

    Attention that computes more than `SlimAttention`, such as masked or cross-attention, stays
    dense.

    Args:
        model: Changed in place; its outputs stay the same.
        names: Names of the pruned weights; those outside linear layers stay dense.
        example_inputs: Inputs for comparing the outputs before and after.

    Returns:
        Number of weights in CSR.
    """
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MultiheadAttention) and f"{name}.in_proj_weight" in names:
            with suppress(ValueError), outputs_kept(model, example_inputs):
                model.set_submodule(name, _open(module))
            names = names | {f"{name}.in_proj.weight"}
    closed = {
        part
        for module in model.modules()
        if isinstance(module, _READERS)
        for part in module.modules()
    }
    linears = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module not in closed and f"{name}.weight" in names
    ]
    for name, module in linears:
        model.set_submodule(name, SparseLinear(module))
    return len(linears)


def _open(attention: nn.MultiheadAttention) -> SlimAttention:
    """The same attention with its projections as layers."""
    assert attention.in_proj_weight is not None
    bias = attention.out_proj.bias
    return SlimAttention(
        attention.num_heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        attention.out_proj.weight,
        torch.zeros(attention.embed_dim) if bias is None else bias,
        scale=attention.head_dim**-0.5,
    )


def bytes_of(model: nn.Module) -> int:
    """Bytes of a model's tensors, each shared one once; for CSR, values and both index lists."""
    total = 0
    for tensor in {id(t): t for t in (*model.parameters(), *model.buffers())}.values():
        parts = [tensor]
        if tensor.layout == torch.sparse_csr:
            parts = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        total += sum(part.numel() * part.element_size() for part in parts)
    return total
