"""Which weights are prunable."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from seven_exp.pruning import prunable_layers


def names(model, **patterns):
    return [layer.name for layer in prunable_layers(model, **patterns)]


class Tied(nn.Module):
    """A language model's skeleton: the output projection shares the embedding's weight."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.output = nn.Linear(4, 7)
        self.output.weight = self.embedding.weight


def test_vit_leaves_out_head_and_patch_embedding():
    vit = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16
    )
    blocks = [f"encoder.layers.encoder_layer_{i}" for i in range(2)]
    parts = (
        "self_attention.in_proj_weight",
        "self_attention.out_proj.weight",
        "mlp.0.weight",
        "mlp.3.weight",
    )
    assert names(vit) == [f"{block}.{part}" for block in blocks for part in parts]


def test_resnet_leaves_out_fc_alone():
    resnet = torchvision.models.resnet18(num_classes=10)
    found = names(resnet)
    convolutions = [n for n, m in resnet.named_modules() if isinstance(m, nn.Conv2d)]
    assert found == [f"{name}.weight" for name in convolutions]
    assert "fc.weight" in names(resnet, exclude=[])


def test_attention_with_separate_projections():
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4)
    assert names(attention) == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ]


def test_shared_weights_count_once_and_embeddings_not_at_all():
    assert names(Tied()) == ["first.weight"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ({"include": ["0"]}, ["0.weight", "1.0.weight"]),
        ({"include": "1.*"}, ["1.0.weight", "1.1.weight"]),
        ({"exclude": ["1"]}, ["0.weight"]),
        ({"exclude": ["1.0"]}, ["0.weight", "1.1.weight"]),
        ({"include": ["?.?.weight"], "exclude": ["1.1.weight"]}, ["1.0.weight"]),
    ],
)
def test_patterns(patterns, expected):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))
    assert names(model, **patterns) == expected


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(key):
    with pytest.raises(ValueError, match=f"{key} pattern 'encodr'"):
        prunable_layers(nn.Linear(2, 2), **{key: ["encodr"]})


def test_nothing_left_to_prune():
    with pytest.raises(ValueError, match="nothing to prune"):
        prunable_layers(nn.LayerNorm(3))


def test_wrapped_models_have_their_own_names():
    model = nn.Sequential(nn.Linear(2, 2))
    assert names(torch.compile(model)) == ["0.weight"]
    assert names(nn.DataParallel(model)) == ["0.weight"]
    assert names(copy.deepcopy(model)) == ["0.weight"]


def test_a_reparametrized_weight_is_not_a_parameter_to_mask():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    with pytest.warns(UserWarning, match=r"0\.weight is computed from other parameters"):
        assert names(model) == ["1.weight"]


def test_a_weight_reparametrized_later_is_named():
    model = nn.Sequential(nn.Linear(2, 2))
    (layer,) = prunable_layers(model)
    nn.utils.parametrizations.spectral_norm(model[0])
    with pytest.raises(RuntimeError, match=r"0\.weight is no parameter any more"):
        _ = layer.weight
