"""Attention with fewer heads, and heads of fewer dimensions."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class SlimAttention(nn.Module):
    """Self-attention whose total head width may differ from the width of a token.

    It replaces `torch.nn.MultiheadAttention`, which does not support such sizes, and is called
    in the same way.

    Attributes:
        in_proj: Tokens -> queries, keys and values of all heads, in this order.
        out_proj: Values of all heads -> tokens.
        scale: Factor of queries times keys: one over the root of the original width.
    """

    heads: Tensor

    def __init__(
        self,
        heads: int,
        in_weight: Tensor,
        in_bias: Tensor | None,
        out_weight: Tensor,
        out_bias: Tensor,
        *,
        scale: float,
    ) -> None:
        """Use the given projections.

        Args:
            heads: Number of heads; with none, every token gets the same output.
            in_weight: (heads * (2 * query width + value width), width of a token).
            in_bias: Bias of the same outputs; None: none.
            out_weight: (width of a token, heads * value width).
            out_bias: Bias of the same outputs; None: none.
            scale: See the class.
        """
        super().__init__()
        self.in_proj = _linear(in_weight, in_bias)
        self.out_proj = _linear(out_weight, out_bias)
        # A tensor, so that a state dict describes the layout of its rows.
        self.register_buffer("heads", torch.tensor(heads))
        self.number, self.scale = heads, scale
        values = self.out_proj.in_features
        queries = (self.in_proj.out_features - values) // 2
        self.split = (queries, queries, values)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Attend.

        Args:
            query: Tokens, (batch, length, width).
            key: The same tokens.
            value: The same tokens.
            need_weights: Not supported.

        Returns:
            Tokens (batch, length, width), and None instead of the weights.
        """
        assert query is key is value
        assert not need_weights
        if self.number == 0:
            return self.out_proj.bias.expand(query.shape), None
        q, k, v = (
            part.unflatten(-1, (self.number, -1)).transpose(1, 2)
            for part in self.in_proj(query).split(self.split, dim=-1)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), None


def cut(projection: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Rows of a projection (heads * dimensions, width) with their bias, by head.

    Returns:
        (heads, dimensions, width + 1).
    """
    if bias is None:
        bias = projection.new_zeros(len(projection))
    return torch.unflatten(torch.cat([projection, bias[:, None]], 1), 0, (heads, -1)).detach()


def busiest(idle: Tensor, heads: Tensor) -> Tensor:
    """The same number of dimensions for each head, including all that are not idle.

    Args:
        idle: Bool (all heads, dimensions).
        heads: int64, the heads to keep.

    Returns:
        int64 (kept heads, kept dimensions), in ascending order; at least one each.
    """
    chosen = idle[heads]
    width = max([1, *(~chosen).sum(1).tolist()])
    return chosen.int().argsort(dim=1, stable=True)[:, :width].sort(dim=1).values


@torch.no_grad()
def slim(attention: nn.MultiheadAttention) -> SlimAttention | None:
    """The same attention without the heads and dimensions that have no effect.

    Args:
        attention: Self-attention in evaluation mode, batch first, queries, keys and values of one
            width.

    Returns:
        None if all of them have an effect, or the attention is of another kind.
    """
    n, weight = attention.num_heads, attention.in_proj_weight
    plain = attention.bias_k is None and not attention.add_zero_attn and attention.batch_first
    if weight is None or not plain:
        return None
    biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    queries, keys, values = (
        cut(rows, bias, n) for rows, bias in zip(weight.chunk(3), biases, strict=True)
    )
    out = torch.unflatten(attention.out_proj.weight, 1, (n, -1))
    # Attention weights sum to one, so a mean of equal values is the value.
    idle_values = (values[..., :-1] == 0).all(-1) | (out == 0).all(0)
    # Adding the same number to the scores of all keys changes no attention weight.
    idle_scores = (keys[..., :-1] == 0).all(-1) | (queries == 0).all(-1)
    heads = (~idle_values).any(1).nonzero().squeeze(1)
    value_places, score_places = busiest(idle_values, heads), busiest(idle_scores, heads)
    if len(heads) == n and value_places.shape[1] == score_places.shape[1] == attention.head_dim:
        return None
    gone = torch.ones_like(idle_values)
    gone[heads[:, None], value_places] = False
    chosen = ((queries, score_places), (keys, score_places), (values, value_places))
    rows = torch.cat([part[heads[:, None], places].flatten(0, 1) for part, places in chosen])
    # The removed values add a constant to every token.
    bias = out[:, gone].double() @ values[..., -1][gone].double()
    if attention.out_proj.bias is not None:
        bias += attention.out_proj.bias.double()
    return SlimAttention(
        len(heads),
        rows[:, :-1],
        rows[:, -1],
        out[:, heads[:, None], value_places].flatten(1),
        bias.to(rows.dtype),
        scale=attention.head_dim**-0.5,
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
