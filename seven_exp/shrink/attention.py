"""Attention with fewer heads, and heads of fewer dimensions."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


class SlimAttention(nn.Module):
    """Self-attention whose heads together need not be as wide as a token.

    It stands where `torch.nn.MultiheadAttention` stood, which can't be of such sizes, and is
    called like it.

    Attributes:
        in_proj: Tokens -> queries, keys and values of all heads, in this order.
        out_proj: Values of all heads -> tokens.
        scale: What queries times keys are multiplied by: one over the root of the original width.
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
        """Take the projections as they are.

        Args:
            heads: How many; with none, every token is told the same.
            in_weight: (heads * (2 * query width + value width), width of a token).
            in_bias: Of its outputs; None: none.
            out_weight: (width of a token, heads * value width).
            out_bias: Of its outputs.
            scale: See the class.
        """
        super().__init__()
        self.in_proj = _linear(in_weight, in_bias)
        self.out_proj = _linear(out_weight, out_bias)
        # A tensor, so that a state dict says how its rows are to be read.
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
            need_weights: They are not to be had.

        Returns:
            Tokens (batch, length, width), and None in the place of the weights.
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


@dataclass(frozen=True)
class Heads:
    """The projections of an attention, cut into heads.

    Attributes:
        queries: Weight and bias of the queries, (heads, dimensions, width of a token + 1).
        keys: Likewise.
        values: Likewise.
        out: (width of a token, heads, dimensions): what becomes of the values.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor
    out: Tensor

    @property
    def idle_values(self) -> Tensor:
        """Bool (heads, dimensions): values that say the same of every token, or are not read.

        Weights of attention sum to one, so that a mean of equal values is the value.
        """
        return (self.values[..., :-1] == 0).all(-1) | (self.out == 0).all(0)

    @property
    def idle_scores(self) -> Tensor:
        """Bool (heads, dimensions): where queries times keys are the same for every key.

        What is added to the scores of all keys alike changes no weight of attention.
        """
        return (self.keys[..., :-1] == 0).all(-1) | (self.queries == 0).all(-1)

    def told(self, gone: Tensor) -> Tensor:
        """What values that go have added to every token, float64 (width of a token,).

        Args:
            gone: Bool (heads, dimensions), some of the idle ones.
        """
        return self.out[:, gone].double() @ self.values[..., -1][gone].double()


def cut(projection: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """Rows of a projection (heads * dimensions, width) with their bias, by head.

    Returns:
        (heads, dimensions, width + 1).
    """
    if bias is None:
        bias = projection.new_zeros(len(projection))
    return torch.unflatten(torch.cat([projection, bias[:, None]], 1), 0, (heads, -1)).detach()


def busiest(idle: Tensor, heads: Tensor) -> Tensor:
    """Equally many dimensions of each head, all that are not idle among them.

    Args:
        idle: Bool (all heads, dimensions).
        heads: int64, those that stay.

    Returns:
        int64 (heads that stay, dimensions that stay), in ascending order; at least one each.
    """
    chosen = idle[heads]
    width = max([1, *(~chosen).sum(1).tolist()])
    return chosen.int().argsort(dim=1, stable=True)[:, :width].sort(dim=1).values


def standing(idle: Tensor) -> Tensor:
    """The heads, int64, of which a value is not idle."""
    return (~idle).any(1).nonzero().squeeze(1)


@torch.no_grad()
def slim(attention: nn.MultiheadAttention) -> SlimAttention | None:
    """The same attention without the heads and dimensions that do nothing.

    Args:
        attention: Self-attention in evaluation mode, batch first, queries, keys and values of one
            width.

    Returns:
        None if all of them do something, or the attention is of another kind.
    """
    n, weight = attention.num_heads, attention.in_proj_weight
    plain = attention.bias_k is None and not attention.add_zero_attn and attention.batch_first
    if weight is None or not plain:
        return None
    biases = [None] * 3 if attention.in_proj_bias is None else attention.in_proj_bias.chunk(3)
    queries, keys, values = (
        cut(rows, bias, n) for rows, bias in zip(weight.chunk(3), biases, strict=True)
    )
    parts = Heads(queries, keys, values, torch.unflatten(attention.out_proj.weight, 1, (n, -1)))
    heads = standing(parts.idle_values)
    value_places = busiest(parts.idle_values, heads)
    score_places = busiest(parts.idle_scores, heads)
    if len(heads) == n and value_places.shape[1] == score_places.shape[1] == attention.head_dim:
        return None
    gone = torch.ones_like(parts.idle_values)
    gone[heads[:, None], value_places] = False
    chosen = ((queries, score_places), (keys, score_places), (values, value_places))
    rows = torch.cat([part[heads[:, None], places].flatten(0, 1) for part, places in chosen])
    out_bias = attention.out_proj.bias
    told = parts.told(gone) + (0 if out_bias is None else out_bias.double())
    return SlimAttention(
        len(heads),
        rows[:, :-1],
        rows[:, -1],
        parts.out[:, heads[:, None], value_places].flatten(1),
        told.to(rows.dtype),
        scale=attention.head_dim**-0.5,
    )


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    outputs, inputs = weight.shape
    linear = nn.Linear(inputs, outputs, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone())
    return linear
