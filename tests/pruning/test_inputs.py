"""The captured inputs of a weight reproduce its module's output."""

import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning.inputs import uses_of
from seven_exp.pruning.matrices import matrices


def shown(module, *args, **kwargs):
    """Each weight's name, matrices and inputs in one call."""
    layers = list(matrices(module))
    for layer, use in zip(layers, uses_of(module, layers), strict=True):
        inputs = use.inputs(args, kwargs)
        yield layer.name, use.matrices(layer.weight.detach(), len(inputs)), inputs


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (nn.Conv1d, (3, 4, 11)),
        (nn.Conv1d, (4, 11)),
        (nn.Conv2d, (3, 4, 9, 8)),
        (nn.Conv2d, (4, 9, 8)),
        (nn.Conv3d, (2, 4, 5, 6, 7)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 2, "padding": "same", "dilation": 2},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
        {"kernel_size": 3, "groups": 2},
        {"kernel_size": 2, "groups": 4, "padding": "valid"},
    ],
)
def test_a_convolution_is_a_linear_map_of_what_is_shown(kind, shape, settings):
    torch.manual_seed(0)
    convolution = kind(4, 8, bias=False, dtype=torch.float64, **settings)
    images = torch.randn(shape, dtype=torch.float64)
    ((_, weights, patches),) = shown(convolution, images)
    mapped = torch.cat([x @ w.T for x, w in zip(patches, weights, strict=True)], dim=1)
    made = convolution(images).movedim(-len(convolution.kernel_size) - 1, -1)
    torch.testing.assert_close(mapped, made.reshape(-1, 8))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_a_linear_map_of_pixels(groups):
    torch.manual_seed(0)
    # Windows that don't overlap, so that each output depends on one pixel.
    convolution = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups, bias=False).double()
    images = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    ((_, weights, pixels),) = shown(convolution, images)
    mapped = torch.cat([x @ w.T for x, w in zip(pixels, weights, strict=True)], dim=1)
    made = convolution(images).view(3, 6, 5, 2, 5, 2).permute(0, 2, 4, 1, 3, 5)
    torch.testing.assert_close(mapped, made.reshape(-1, 24))


@pytest.mark.parametrize("fed", ["one", "two", "widths"])
def test_attention_follows_from_what_is_shown_of_its_projections(fed):
    torch.manual_seed(0)
    widths = {"kdim": 6, "vdim": 5} if fed == "widths" else {}
    attention = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64, **widths)
    query = torch.randn(2, 3, 8).double()
    key, value = query, query
    if fed != "one":
        key, value = (torch.randn(2, 7, widths.get(n, 8)).double() for n in ("kdim", "vdim"))
    seen = {name: (w, x) for name, w, x in shown(attention, query, key=key, value=value)}
    weight, (attended,) = seen.pop("out_proj.weight")
    made = attention(query, key, value, need_weights=False)[0].flatten(0, 1)
    torch.testing.assert_close(attended @ weight[0].T + attention.out_proj.bias, made)
    inputs = [x for _, xs in seen.values() for x in xs]
    expected = [query] if fed == "one" else [query, key, value]
    for x, tokens in zip(inputs, expected, strict=True):
        assert torch.equal(x, tokens.flatten(0, 1))


def test_layers_that_do_not_show_their_inputs_stay_dense_with_a_word():
    model = nn.ModuleDict({"rnn": nn.GRU(4, 4), "map": nn.Linear(4, 4)})
    with pytest.warns(UserWarning, match=r"2 of 3 layers.*rnn\.weight_ih_l0 is part of a GRU"):
        pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    assert list(pruner.masks) == ["map.weight"]
    with pytest.raises(ValueError, match="nothing is left to prune"):
        seven_exp.create_pruner("wanda", nn.GRU(4, 4), sparsity=0.5)


class Block(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).tanh()


@pytest.mark.parametrize("blocks", [False, True])
def test_a_shared_weight_has_the_inputs_of_all_modules_that_share_it(blocks):
    torch.manual_seed(0)
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    two.weight = one.weight
    model = nn.Sequential(*([Block(one), Block(two)] if blocks else [one, nn.Tanh(), two]))
    x, weight = torch.randn(50, 8) * torch.arange(8), one.weight.detach().clone()
    squares = x.square().sum(0) + one(x).detach().tanh().square().sum(0)
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5, exclude_defaults=False)
    pruner.prune([x], lambda m, b: m(b).sum())
    (mask,), score = pruner.masks.values(), weight.abs() * squares.sqrt()
    assert torch.equal(mask, score >= score.topk(4).values[:, -1:])


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("order", ["blocks", "layers"])
def test_what_no_batch_uses_stays_dense_with_a_word(name, order):
    class ByHand(nn.Linear):
        pass

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle, self.by_hand = nn.Linear(3, 4), nn.Linear(3, 4), ByHand(4, 4)

        def forward(self, x):
            return self.used(x) @ self.by_hand.weight.T

    torch.manual_seed(0)
    model = Model()
    before = model.idle.weight.detach().clone()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, order=order)
    with pytest.warns(UserWarning, match=r"idle\.weight, by_hand\.weight stay dense: no batch"):
        pruner.prune([torch.randn(8, 3)], lambda m, x: m(x).sum())
    assert {n: int(mask.sum()) for n, mask in pruner.masks.items()} == {
        "used.weight": 6,
        "idle.weight": 12,
        "by_hand.weight": 16,
    }
    assert torch.equal(model.idle.weight, before)
    assert pruner.check().ok


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "synflow"])
def test_every_module_has_its_own_mode_back(name):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[])
    pruner.prune([torch.randn(6, 4)], lambda m, x: m(x).sum())
    assert [module.training for module in model] == [True, False, True, True]
