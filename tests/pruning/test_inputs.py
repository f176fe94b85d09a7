"""What layers are fed with is seen as it is used, or a clear word says why it can't be."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import seven_exp
from seven_exp.pruning.inputs import watching


@pytest.mark.parametrize(
    ("convolution", "shape", "kernel"),
    [
        (functional.conv1d, (3, 4, 11), (5, 4, 3)),
        (functional.conv1d, (4, 11), (5, 4, 2)),
        (functional.conv2d, (3, 2, 9, 8), (5, 2, 3, 2)),
        (functional.conv2d, (2, 9, 8), (5, 2, 2, 4)),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2, "padding": 1},
        {"padding": "same", "dilation": 2},
        {"padding": "valid"},
        {"padding": "same"},
    ],
)
def test_a_convolution_is_a_linear_map_of_what_is_seen(convolution, shape, kernel, settings):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(kernel, generator=generator, dtype=torch.float64)
    seen = []
    with watching([weight], lambda i, inputs: seen.append(inputs)):
        made = getattr(functional, convolution.__name__)(input=images, weight=weight, **settings)
    (patches,) = seen
    mapped = patches @ weight.flatten(1).T
    channels_last = made.movedim(-len(kernel) + 1, -1).reshape(-1, kernel[0])
    torch.testing.assert_close(mapped, channels_last)


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize(
    "layer",
    [
        nn.ConvTranspose2d(4, 8, 3),
        nn.Conv3d(4, 8, 3),
        nn.Conv2d(4, 8, 3, groups=2),
    ],
)
def test_layers_that_cannot_be_watched_are_refused_at_once(name, layer):
    with pytest.raises(ValueError, match=r"0\.weight is a .*: exclude it"):
        seven_exp.create_pruner(name, nn.Sequential(layer), sparsity=0.5, exclude=[])


def test_what_was_never_fed_is_not_pruned_by_its_place():
    model = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)})
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5, exclude=[])
    with pytest.raises(ValueError, match=r"idle\.weight was fed with nothing"):
        pruner.prune([torch.randn(4, 3)], lambda m, x: m["used"](x).sum())


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "synflow"])
def test_every_module_has_its_own_mode_back(name):
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3))
    model.train()
    model[1].eval()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[])
    pruner.prune([torch.randn(6, 4)], lambda m, x: m(x).sum())
    assert [module.training for module in model] == [True, False, True, True]
