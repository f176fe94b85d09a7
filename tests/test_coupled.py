"""Coupled units: what a model ties together is found, pruned and removed together."""

import copy

import pytest
import torch
from torch import Tensor, nn

import seven_exp
from seven_exp.pruning.patterns import Coupled, Group
from seven_exp.shrink import coupled_pattern, shrink
from seven_exp.shrink.coupling import coupled


class Residual(nn.Module):
    """A stem, a block with a skip connection, a depthwise convolution and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 4, 1)
        self.deep = nn.Conv2d(4, 4, 3, groups=4, padding=1)
        self.head = nn.Linear(4 * 4, 5)

    def forward(self, x):
        x = self.bn(self.stem(x)).relu()
        x = x[..., 1:-1, 1:-1] + self.outer(self.inner(x).relu())
        return self.head(self.deep(x).flatten(1))


def places(unit):
    return {f"{name}.{side}": at for (name, side), at in unit.places.items()}


class Parallel(nn.Module):
    """Two branches whose sum is computed in place, or not."""

    def __init__(self, add):
        super().__init__()
        self.stem, self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 4)
        self.side, self.head, self.add = nn.Linear(4, 4), nn.Linear(4, 2), add

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.add(self.down(self.up(x).relu()), self.side(x)).sigmoid())


def test_a_sum_in_place_has_the_units_of_a_sum():
    one, two = (coupled(Parallel(add), torch.randn(2, 3)) for add in (torch.add, Tensor.add_))
    assert len(one) == 4 + 6 + 4  # of the stem, the inner layer and the sum
    assert list(map(places, one)) == list(map(places, two))


def test_a_sum_ties_rows_and_a_flattened_channel_ties_all_its_columns():
    units = coupled(Residual(), torch.randn(2, 3, 4, 4))
    assert len(units) == 4 + 6
    assert places(units[1]) == {
        "stem.rows": (1,),
        "outer.rows": (1,),
        "inner.columns": (1,),
        "bn.channels": (1,),
        "deep.channels": (1,),
        "head.columns": (4, 5, 6, 7),
    }
    assert places(units[4]) == {"inner.rows": (0,), "outer.columns": (0,)}


class Attention(nn.Module):
    """Two key-value heads, read by two query heads each, and a gated MLP, as in Llama."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 8), nn.Linear(8, 8)
        self.out, self.norm = nn.Linear(16, 8), nn.LayerNorm(8)
        self.gate, self.up, self.down = nn.Linear(8, 5), nn.Linear(8, 5), nn.Linear(5, 8)
        self.read = nn.Linear(8, 3)

    def forward(self, x):
        heads = (p(x).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q, self.k, self.v))
        q, k, v = (h if h.shape[1] == 4 else h.repeat_interleave(2, 1) for h in heads)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm(x + self.out(mixed.transpose(1, 2).flatten(2)))
        x = self.norm(x + self.down(nn.functional.silu(self.gate(x)) * self.up(x)))
        return self.read(x)


def test_heads_of_grouped_queries_and_gates_are_found():
    units = coupled(Attention(), torch.randn(2, 5, 8))
    found = [places(unit) for unit in units]
    second = tuple(range(8, 16))
    assert found[1] == {
        "q.rows": second,
        "k.rows": (4, 5, 6, 7),
        "v.rows": (4, 5, 6, 7),
        "out.columns": second,
    }
    neuron = {"gate.rows": (2,), "up.rows": (2,), "down.columns": (2,)}
    assert found[4] == neuron
    # The layer norm ties the whole stream, which is no unit.
    assert len(found) == 2 + 5


@torch.no_grad()
def test_units_are_pruned_by_their_mean_score_and_removed():
    torch.manual_seed(0)
    model, inputs = Residual().eval(), torch.randn(2, 3, 4, 4)
    weights = {name: w.detach().double().clone() for name, w in model.named_parameters()}
    pruner = seven_exp.create_pruner(
        "magnitude", model, sparsity=0.5, pattern=coupled_pattern(model, inputs), exclude=["head"]
    )
    pruner.prune()
    # A channel's weights are its rows in stem, outer and deep; a neuron's are its row in inner.
    rows = [("stem", "outer", "deep")] * 4 + [("inner",)] * 6
    units = []
    for number, names in enumerate(rows):
        own = torch.cat([weights[f"{n}.weight"][number % 4 if number < 4 else number - 4].flatten()
                         for n in names]).abs()  # fmt: skip
        units.append((own.mean().item(), len(own), number))
    budget, kept = sum(size for _, size, _ in units) // 2, set()
    for _, size, number in sorted(units, reverse=True):
        budget -= size
        if budget < 0:
            break
        kept.add(number)
    alive = [bool(model.get_submodule(names[0]).weight[n if n < 4 else n - 4].any())
             for n, names in enumerate(rows)]  # fmt: skip
    assert alive == [number in kept for number in range(10)]
    zeros = sum(int((m == 0).sum()) for m in pruner.masks.values())
    assert pruner.sparsity == zeros / sum(m.numel() for m in pruner.masks.values())
    whole = copy.deepcopy(model)
    shrunk = shrink(model, inputs)
    assert {part.unit for part in shrunk} <= {"channels"}
    torch.testing.assert_close(model(inputs), whole(inputs), rtol=0, atol=1e-5)
    small, large = (sum(p.numel() for p in m.parameters()) for m in (model, whole))
    assert small < large


def test_neurons_take_the_columns_that_read_them():
    model = Attention()
    pattern = coupled_pattern(model, torch.randn(2, 5, 8))
    pruner = seven_exp.create_pruner(
        "magnitude", model, sparsity=0.6, pattern=pattern, exclude=["read"]
    )
    pruner.prune()
    up, gate = (model.get_submodule(n).weight.any(1) for n in ("up", "gate"))
    assert torch.equal(up, gate)
    assert torch.equal(up, model.down.weight.any(0))
    assert model.k.weight.any(1).tolist() == model.v.weight.any(1).tolist()
    assert model.out.weight.any(0)[::4].tolist() == model.q.weight.any(1)[::4].tolist()


def test_what_does_not_fit_is_an_error_that_says_what_to_do():
    model, inputs = Residual(), torch.randn(2, 3, 4, 4)
    with pytest.raises(ValueError, match="pass pattern=seven_exp"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern="coupled")
    pattern = coupled_pattern(model, inputs)
    with pytest.raises(ValueError, match="choose global or per_layer"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern=pattern, scope="erk")
    # The stem stays dense, so its channels can't be removed; the neurons of `inner` can.
    with pytest.raises(ValueError, match="coupled does not fit deep") as error:
        seven_exp.create_pruner(
            "magnitude", model, sparsity=0.5, pattern=pattern, exclude=["stem", "head"]
        )
    assert "inner" not in str(error.value)
    with pytest.raises(ValueError, match="has no units that can be removed"):
        coupled_pattern(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
                        torch.randn(2, 3))  # fmt: skip


def test_groups_are_plain_data():
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    groups = [Group([("0.weight", 0, [i])], [("2.weight", 1, [i])]) for i in range(2)]
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight[:] = torch.tensor([2.0, 3.0])
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern=Coupled(groups))
    pruner.prune()
    assert pruner.sparsity == 0.5
    assert model[0].weight.any(1).tolist() == model[2].weight.any(0).tolist() == [False, True]
