"""Layers that don't fit the settings: one error names all, or they stay dense."""

import ast
import re

import pytest
import torch
import torchvision
from torch import nn

import seven_exp
from seven_exp.pruning import prunable_layers


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 10), nn.Linear(10, 12), nn.Linear(12, 4))


def advice(error):
    """The names that the message would exclude."""
    return ast.literal_eval(re.search(r"exclude=(\[.*?\])", str(error.value))[1])


ASKED = {
    "2:4": ("magnitude", {"pattern": "2:4"}, ["0.weight", "2.weight"]),
    "2x4": ("magnitude", {"pattern": "2x4"}, ["0.weight", "2.weight"]),
    "wanda": ("wanda", {"pattern": "2:4"}, ["0.weight", "2.weight"]),
}


@pytest.mark.parametrize("case", ASKED)
def test_all_misfits_are_named_and_the_advice_mends_it(case):
    name, settings, expected = ASKED[case]
    with pytest.raises(ValueError, match="exclude") as error:
        seven_exp.create_pruner(name, net(), sparsity=0.5, **settings)
    assert all(layer in str(error.value) for layer in expected)
    assert "misfits=dense" in str(error.value)
    pruner = seven_exp.create_pruner(name, net(), sparsity=0.5, exclude=advice(error), **settings)
    assert list(pruner.masks) == [f"{i}.weight" for i in range(4) if f"{i}.weight" not in expected]


@pytest.mark.parametrize("case", ASKED)
def test_misfits_stay_dense_where_asked_with_their_share(case):
    name, settings, expected = ASKED[case]
    model = net()
    # 48 + 120 of 48 + 80 + 120 + 48 = 296 weights
    with pytest.warns(UserWarning, match=r"2 of 4 layers, 56\.8% of their weights, stay dense"):
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, misfits="dense", **settings)
    batches = [torch.randn(9, 6)]
    pruner.prune(batches, lambda m, x: m(x).square().mean())
    assert not set(pruner.masks) & set(expected)
    assert all(model.get_parameter(layer).all() for layer in expected)
    assert pruner.sparsity == 0.5


def test_following_the_advice_keeps_the_classifier_dense():
    with torch.device("meta"):
        model = torchvision.models.resnet18(num_classes=16)
    with pytest.raises(ValueError, match=r"conv1\.weight, whose 3 inputs") as error:
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern="2:4")
    assert advice(error) == ["conv1"]
    names = [layer.name for layer in prunable_layers(model, exclude=advice(error))]
    assert "fc.weight" not in names
    assert len(names) == 19


def test_heads_of_a_transformer_leave_its_feed_forward_layers():
    vit = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=64
    )
    with pytest.raises(ValueError, match="heads does not fit") as error:
        seven_exp.create_pruner("magnitude", vit, sparsity=0.5, pattern="heads")
    assert len(advice(error)) < 6, "one pattern serves all blocks"
    excluded = seven_exp.create_pruner(
        "magnitude", vit, sparsity=0.5, pattern="heads", exclude=advice(error)
    )
    # A block has 8 * 24 + 8 * 8 weights in attention and 2 * 8 * 64 in the other two layers.
    with pytest.warns(UserWarning, match=r"6 of 12 layers, 80\.0% of their weights, stay dense"):
        dense = seven_exp.create_pruner(
            "magnitude", vit, sparsity=0.5, pattern="heads", misfits="dense"
        )
    assert list(excluded.masks) == list(dense.masks)
    assert all("self_attention" in name for name in dense.masks)


def test_wandas_own_pattern_keeps_the_best_of_each_group():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 6, bias=False)), torch.randn(20, 8)
    before = model[0].weight.detach().clone()
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5, pattern="2:4")
    pruner.prune([x], lambda m, batch: m(batch).sum())
    # Sun et al., arXiv 2306.11695, eq. 1: |W_ij| ||X_j||, compared within each group of a row.
    scores = (before.abs() * x.norm(dim=0)).view(6, 2, 4)
    best = scores.argsort(dim=2, descending=True)[..., :2]
    expected = torch.zeros(6, 2, 4, dtype=torch.bool).scatter_(2, best, True).view(6, 8)
    assert torch.equal(pruner.masks["0.weight"], expected)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_a_choice_that_is_none_is_refused(sparsity):
    with pytest.raises(ValueError, match="unknown misfits 'dens': did you mean 'dense'"):
        seven_exp.create_pruner("magnitude", net(), sparsity=sparsity, misfits="dens")


def test_where_nothing_fits_nothing_is_left_to_prune():
    with pytest.raises(ValueError, match="nothing is left to prune"):
        seven_exp.create_pruner("magnitude", net(), sparsity=0.5, pattern="heads", misfits="dense")
