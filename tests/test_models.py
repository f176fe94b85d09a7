"""Models: shapes, grey images, checkpoints and pretrained weights."""

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from seven_exp.models import MODELS, build_model
from seven_exp.pruning import prunable_layers

# name: arguments, an image size it takes
CASES = {
    "vit_tiny": ({"depth": 2}, 8),
    "vit_b_16": ({"pretrained": False}, 32),
    "vit_b_32": ({"pretrained": False}, 64),
    "resnet18": ({}, 32),
    "resnet50": ({"stem": "cifar"}, 16),
    "mlp": ({"widths": [5, 6]}, 8),
}


def test_every_model_is_tested():
    assert set(CASES) == set(MODELS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_logits_and_gradients(name, channels):
    arguments, size = CASES[name]
    torch.manual_seed(0)
    model = build_model(name, num_classes=7, image_size=size, channels=channels, **arguments)
    logits = model(torch.randn(2, channels, size, size))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for layer in prunable_layers(model):
        gradient = layer.weight.grad
        assert gradient is not None, layer.name
        assert gradient.abs().sum() > 0, f"{layer.name} sees no gradient at the start"


@pytest.mark.parametrize("name", CASES)
def test_the_head_is_not_prunable(name):
    arguments, size = CASES[name]
    model = build_model(name, num_classes=7, image_size=size, channels=3, **arguments)
    assert all(layer.weight.shape[0] != 7 for layer in prunable_layers(model))


@pytest.mark.parametrize(("size", "patches"), [(8, 4), (28, 49), (32, 64)])
def test_tiny_vit_cuts_every_size_of_image_here(size, patches):
    model = build_model("vit_tiny", num_classes=10, image_size=size, channels=1)
    assert model.encoder.pos_embedding.shape[1] == patches + 1


def test_grey_images_give_what_three_equal_channels_gave():
    torch.manual_seed(0)
    colour = build_model("resnet18", num_classes=4, image_size=16, channels=3).eval()
    torch.manual_seed(0)
    grey = build_model("resnet18", num_classes=4, image_size=16, channels=1).eval()
    x = torch.randn(2, 1, 16, 16)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "nested"])
def test_checkpoints_round_trip(tmp_path, suffix):
    make = {"num_classes": 5, "image_size": 8, "channels": 1, "widths": [6]}
    source = build_model("mlp", **make)
    path = tmp_path / f"model.{'pt' if suffix == 'nested' else suffix}"
    if suffix == "safetensors":
        save_file(source.state_dict(), path)
    else:
        state = source.state_dict()
        torch.save({"state_dict": state} if suffix == "nested" else state, path)
    loaded = build_model("mlp", checkpoint=str(path), **make)
    for name, tensor in source.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)

    other = build_model("mlp", checkpoint=str(path), **{**make, "num_classes": 3})
    assert torch.equal(other.hidden0.weight, source.hidden0.weight)
    assert other.head.weight.shape == (3, 6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        (b"not tensors", "can't be read"),
        ({"epoch": 3}, "holds no state dict"),
        ({"strange.weight": torch.ones(2)}, "is of another model"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, content, words):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=words):
        build_model(
            "mlp", num_classes=5, image_size=8, channels=1, widths=[6], checkpoint=str(path)
        )


@pytest.fixture
def served(monkeypatch):
    """torchvision's download replaced by a state dict made here."""
    states = {}

    def get_state_dict(self, *args, **kwargs):
        return states["state"]

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", get_state_dict)
    return states


def test_pretrained_weights_with_another_head_and_size(served):
    torch.manual_seed(1)
    source = torchvision.models.vit_b_32()
    served["state"] = source.state_dict()
    model = build_model("vit_b_32", num_classes=10, image_size=64, channels=1, pretrained=True)
    block = "encoder.layers.encoder_layer_5.mlp.0.weight"
    assert torch.equal(model.get_parameter(block), source.get_parameter(block))
    assert model.heads.head.weight.shape == (10, 768)
    # 2 x 2 patches and the class token, scaled from 7 x 7
    assert model.encoder.pos_embedding.shape == (1, 5, 768)
    class_token = source.encoder.pos_embedding[:, 0]
    assert torch.equal(model.encoder.pos_embedding[:, 0], class_token)
    summed = source.conv_proj.weight.sum(1, keepdim=True)
    assert torch.equal(model.conv_proj.weight, summed)


def test_pretrained_head_is_kept_where_it_fits(served):
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    served["state"] = source.state_dict()
    model = build_model("resnet18", num_classes=1000, image_size=64, channels=3, pretrained=True)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True)
    )


def test_a_download_that_fails_says_what_to_do(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)
    with pytest.raises(ValueError, match=r"model\.checkpoint=PATH"):
        build_model("resnet18", num_classes=10, image_size=64, channels=3, pretrained=True)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vit_tiny", {"patch_size": 3}, "nearest valid choice is 2"),
        ("vit_tiny", {"width": 65}, "model.width is 65"),
        ("vit_tiny", {"depth": 0}, "model.depth is 0"),
        ("mlp", {"widths": []}, "at least one width"),
        ("resnet18", {"stem": "cifar", "pretrained": True}, "imagenet stem"),
    ],
)
def test_values_out_of_range(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        build_model(name, num_classes=10, image_size=8, channels=1, **arguments)


def test_the_core_prunes_every_kind_of_weight_here():
    kinds = set()
    for name, (arguments, size) in CASES.items():
        model = build_model(name, num_classes=7, image_size=size, channels=3, **arguments)
        kinds |= {type(layer.module) for layer in prunable_layers(model)}
    assert {nn.Linear, nn.Conv2d} <= kinds
    assert any(issubclass(kind, nn.MultiheadAttention) for kind in kinds)
