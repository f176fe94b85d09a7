"""Models: shapes, grey images, checkpoints and pretrained weights."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from safetensors.torch import save_file
from test_conf import composed
from torch import nn

from seven_exp.config import ConfigError, Model
from seven_exp.models import MODELS, build_model
from seven_exp.models.hub import NAMES
from seven_exp.models.loading import has_new_head
from seven_exp.pruning import prunable_layers
from seven_exp.runs.check import check

# name: arguments, an image size it takes
CASES = {
    "vit_tiny": ({"depth": 2}, 8),
    "vit_b_16": ({"pretrained": False}, 32),
    "vit_b_32": ({"pretrained": False}, 64),
    "resnet18": ({}, 32),
    "resnet50": ({"stem": "cifar"}, 16),
    "resnet20": ({}, 8),
    "resnet32": ({"width": 8}, 8),
    "vgg19": ({}, 32),
    "mlp": ({"widths": [5, 6]}, 8),
    "torchvision": ({"arch": "shufflenet_v2_x0_5"}, 32),
    "timm": ({"arch": "convnext_atto"}, 32),
}


def test_every_model_is_tested():
    # test_text.py has transformers' own
    assert set(CASES) == set(MODELS) - set(NAMES)


@pytest.mark.parametrize("name", CASES)
def test_a_model_and_its_file_agree(name):
    file = Path(__file__).parent.parent / "conf" / "model" / f"{name}.yaml"
    given = OmegaConf.to_container(OmegaConf.load(file))
    parameters = inspect.signature(MODELS[name]).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    assert given.pop("name") == name
    assert set(given) == set(keywords) - Model.model_fields.keys()
    assert all(keywords[key] in (given[key], inspect._empty) for key in given)


@pytest.mark.slow
def test_names_and_signatures_are_known_without_loading_torchvision():
    script = (
        "import seven_exp.models, seven_exp.datasets, sys; "
        "assert not {'torchvision', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("vit_tiny", {"patch_size": 7}, 28),
        ("vit_tiny", {"patch_size": 8, "dropout": 0.1}, 32),
        ("vit_b_32", {"pretrained": False}, 32),
        ("resnet18", {"stem": "cifar"}, 8),
        ("resnet18", {"stem": "cifar"}, 28),
        ("resnet18", {}, 64),
        ("resnet20", {}, 28),
        ("resnet20", {}, 32),
        ("mlp", {"widths": [3]}, 28),
    ],
)
def test_logits_for_other_sizes_of_image(name, arguments, size, channels):
    model = build_model(name, num_classes=3, image_size=size, channels=channels, **arguments)
    assert model(torch.randn(2, channels, size, size)).shape == (2, 3)


@pytest.mark.slow
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


def test_resnet20_has_the_layers_of_the_paper():
    model = build_model("resnet20", num_classes=10, image_size=32, channels=3)
    # (in, out) of all 3x3 convolutions: the stem, then 2n of each width, n = 3
    convolutions = [(3, 16), *[(16, 16)] * 6, (16, 32), *[(32, 32)] * 5, (32, 64), *[(64, 64)] * 5]
    weights = sum(9 * a * b for a, b in convolutions) + (16 * 32 + 32 * 64) + 64 * 10
    scales_and_shifts = 2 * (7 * 16 + 6 * 32 + 6 * 64 + 32 + 64) + 10
    assert sum(p.numel() for p in model.parameters()) == weights + scales_and_shifts == 272_474
    maps = []
    for name in ("layer1", "layer2", "layer3"):
        model.get_submodule(name).register_forward_hook(lambda *a: maps.append(a[-1].shape[1:]))
    model(torch.randn(1, 3, 32, 32))
    assert maps == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]


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
        (b"not tensors", "no checkpoint of weights"),
        ({"epoch": 3}, "holds no state dict"),
        ({"strange.weight": torch.ones(2)}, "is of another model: hidden0.weight does not fit"),
        (nn.Linear(2, 2), "no checkpoint of weights, a state dict saved alone"),
    ],
)
def test_a_checkpoint_that_does_not_fit(tmp_path, content, words):
    path = tmp_path / "model.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=words) as raised:
        build_model(
            "mlp", num_classes=5, image_size=8, channels=1, widths=[6], checkpoint=str(path)
        )
    assert "\n" not in str(raised.value)


def test_only_the_head_may_differ_in_shape(tmp_path):
    make = {"num_classes": 5, "channels": 1, "depth": 1}
    path = tmp_path / "model.safetensors"
    save_file(build_model("vit_tiny", image_size=8, **make).state_dict(), path)
    with pytest.raises(ValueError, match=r"another model: .*encoder\.pos_embedding") as raised:
        build_model("vit_tiny", image_size=32, checkpoint=str(path), **make)
    assert "\n" not in str(raised.value)


def test_a_checkpoint_that_is_used_is_found_from_home_and_says_when_its_head_is_not(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.setenv("HOME", str(tmp_path))
    make = {"image_size": 8, "channels": 1, "widths": [6], "checkpoint": "~/model.pt"}
    source = build_model("mlp", num_classes=5, **{**make, "checkpoint": None})
    torch.save({"model": source.state_dict()}, tmp_path / "model.pt")
    with caplog.at_level("INFO"):
        build_model("mlp", num_classes=5, **make)
        assert not caplog.records
        build_model("mlp", num_classes=3, **make)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("name", "arch", "size"),
    [
        ("torchvision", "resnet34", 32),
        ("torchvision", "squeezenet1_1", 32),
        ("torchvision", "mnasnet0_5", 32),
        ("torchvision", "efficientnet_b0", 32),
        ("torchvision", "regnet_y_400mf", 32),
        ("torchvision", "densenet121", 32),
        ("torchvision", "googlenet", 32),
        ("timm", "resnet10t", 32),
        ("timm", "vit_tiny_patch16_224", 48),
        ("timm", "mobilenetv3_small_050", 32),
        ("timm", "efficientvit_b0", 32),
        ("timm", "test_mambaout", 32),
        ("timm", "regnetx_002", 32),
    ],
)
def test_any_architecture_takes_the_classes_and_images_of_the_data(name, arch, size, channels):
    model = build_model(name, num_classes=3, image_size=size, channels=channels, arch=arch)
    assert model.training
    assert model.eval()(torch.randn(2, channels, size, size)).shape == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("model=torchvision", "model.arch=resnet43"), "'resnet43': did you mean "),
        (("model=timm", "model.arch=convnext_ato"), "did you mean 'convnext_atto'?"),
        (("model=timm", "model.arch=resnet18.a9_in1k"), "resnet18 has weights "),
        (("model=torchvision", "model.arch=resnet18", "+model.depth=3"), "model.depth"),
        (("model=mlp", "model.stochastic_depth=0.1"), "model.stochastic_depth: mlp has no such"),
        (("model=vit_tiny", "model.stochastic_depth=1.0"), "model.stochastic_depth is 1.0: "),
    ],
)
def test_a_model_that_does_not_exist_is_one_line_before_data_is_read(overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        check(composed(*overrides))
    assert "\n" not in str(raised.value)


def test_timm_is_an_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="it needs timm: uv sync --extra vision"):
        build_model("timm", num_classes=3, image_size=32, channels=3, arch="resnet18")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "torchvision", "arch": "alexnet"}, "can't read images of 3x8x8"),
        ({"name": "torchvision", "arch": "vit_b_16"}, "it can't be built for images of 8x8"),
        ({"name": "timm", "arch": "test_vit"}, "model.arch is 'test_vit'"),
        ({"name": "torchvision", "arch": "resnet18", "dropout": 0.1}, "resnet18 has no dropout"),
        (
            {"name": "torchvision", "arch": "squeezenet1_1", "stochastic_depth": 0.1},
            "squeezenet1_1 has no layers of it",
        ),
    ],
)
def test_a_model_that_does_not_fit_the_images_is_one_line(arguments, words):
    size = 64 if "_depth" in str(arguments) or "dropout" in arguments else 8
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        build_model(num_classes=10, image_size=size, channels=3, **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        (
            lambda x: x.flatten(1)[:, :5],
            "shape (1, 10), one for each class of the data, and returns (1, 5)",
        ),
        (lambda x: (x.flatten(1)[:, :10],), "and returns tuple"),
        (lambda x: x @ torch.ones(3), "model.name is 'of_a_plugin': it can't read images of 1x8x8"),
    ],
)
def test_a_plugin_s_model_that_does_not_fit_the_data_is_one_line(monkeypatch, outputs, words):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return outputs(self.scale * x)

    monkeypatch.setitem(
        MODELS._entries, "of_a_plugin", lambda num_classes, image_size, channels: Model()
    )
    with pytest.raises(ValueError, match=re.escape(words)):
        build_model("of_a_plugin", num_classes=10, image_size=8, channels=1)


def rates(model):
    return [m.p for m in model.modules() if isinstance(m, torchvision.ops.StochasticDepth)]


def test_stochastic_depth_rises_in_a_line_and_is_absent_from_evaluation():
    make = {"num_classes": 4, "image_size": 8, "channels": 1, "depth": 3}
    torch.manual_seed(0)
    plain = build_model("vit_tiny", **make).eval()
    torch.manual_seed(0)
    model = build_model("vit_tiny", stochastic_depth=0.3, **make).eval()
    assert rates(model) == pytest.approx([0, 0.15, 0.3])
    assert model.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(model(x), plain(x))
    # A branch is skipped for whole examples, and the others are scaled by 1 / (1 - p).
    block = build_model("vit_tiny", stochastic_depth=0.5, **make).encoder.layers[-1].train()
    tokens = torch.randn(200, 5, 64)
    attended = block.self_attention(*[block.ln_1(tokens)] * 3, need_weights=False)[0]
    added = block.dropout(attended)
    kept = added.abs().sum((1, 2)) > 0
    assert torch.equal(added[kept], attended[kept] / 0.5)
    assert 60 < kept.sum() < 140


def test_layers_of_stochastic_depth_keep_their_proportions():
    make = {"num_classes": 4, "image_size": 32, "channels": 3, "arch": "efficientnet_b0"}
    own = rates(build_model("torchvision", **make))
    halved = rates(build_model("torchvision", stochastic_depth=max(own) / 2, **make))
    assert halved == pytest.approx([p / 2 for p in own])


def test_dropout_is_that_of_all_layers():
    make = {"num_classes": 4, "image_size": 32, "channels": 3, "dropout": 0.4}
    model = build_model("torchvision", arch="squeezenet1_1", **make)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.4}
    assert build_model("timm", arch="resnet10t", **make).drop_rate == 0.4


@pytest.fixture
def served(monkeypatch):
    """torchvision's download replaced by a state dict made here."""
    states = {}

    def get_state_dict(self, *args, **kwargs):
        return states["state"]

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", get_state_dict)
    return states


@pytest.mark.slow
def test_pretrained_weights_with_another_head_and_size(served):
    torch.manual_seed(1)
    source = torchvision.models.vit_b_32()
    served["state"] = source.state_dict()
    model = build_model("vit_b_32", num_classes=10, image_size=64, channels=1, pretrained=True)
    block = "encoder.layers.encoder_layer_5.mlp.0.weight"
    assert torch.equal(model.get_parameter(block), source.get_parameter(block))
    assert model.heads.head.weight.shape == (10, 768)
    # Of 7 x 7 places and the class token, 2 x 2 are left: the corners.
    corners = source.encoder.pos_embedding[:, [0, 1, 7, 43, 49]]
    torch.testing.assert_close(model.encoder.pos_embedding, corners)
    summed = source.conv_proj.weight.sum(1, keepdim=True)
    assert torch.equal(model.conv_proj.weight, summed)


@pytest.mark.parametrize("arch", ["resnet34", "googlenet"])
def test_pretrained_weights_of_any_architecture(served, arch):
    torch.manual_seed(1)
    source = torchvision.models.get_model(arch, num_classes=1000)
    served["state"] = source.state_dict()
    make = {"num_classes": 5, "image_size": 64, "channels": 3, "pretrained": True}
    model = build_model("torchvision", arch=arch, **make)
    body = [name for name, _ in model.named_parameters() if not name.startswith("fc.")]
    assert all(torch.equal(model.get_parameter(n), source.get_parameter(n)) for n in body)
    assert model.fc.weight.shape[0] == 5
    assert has_new_head(model)


def test_pretrained_head_is_kept_where_it_fits(served):
    torch.manual_seed(1)
    source = torchvision.models.resnet18()
    served["state"] = source.state_dict()
    model = build_model("resnet18", num_classes=1000, image_size=64, channels=3, pretrained=True)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), source.parameters(), strict=True)
    )
    assert not has_new_head(model)


@pytest.mark.slow
def test_files_of_older_torchvisions_are_understood(served):
    """Published weights of ViT name an MLP's layers, and older ResNets count no batches."""
    torch.manual_seed(1)
    vit = torchvision.models.vit_b_32()
    served["state"] = {
        re.sub(r"mlp\.([03])\.", lambda m: f"mlp.linear_{1 + int(m[1]) // 3}.", name): tensor
        for name, tensor in vit.state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_2.bias" in served["state"]
    model = build_model("vit_b_32", num_classes=4, image_size=224, channels=3, pretrained=True)
    for name, tensor in vit.state_dict().items():
        if not name.startswith("heads"):
            assert torch.equal(model.state_dict()[name], tensor), name

    resnet = torchvision.models.resnet18()
    nn.init.normal_(resnet.bn1.running_mean)
    served["state"] = {k: v for k, v in resnet.state_dict().items() if "num_batches" not in k}
    model = build_model("resnet18", num_classes=4, image_size=64, channels=3, pretrained=True)
    assert torch.equal(model.bn1.running_mean, resnet.bn1.running_mean)
    assert torch.equal(model.layer4[1].conv2.weight, resnet.layer4[1].conv2.weight)


@pytest.fixture
def offline(monkeypatch):
    def fail(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models._api.WeightsEnum, "get_state_dict", fail)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("name", "file"), [("resnet18", "resnet18"), ("vit_b_16", "vit_b_16")])
def test_a_download_that_fails_says_what_to_do(name, file):
    words = rf"put https://\S*{file}-\w+\.pth into \S+checkpoints, or give model\.checkpoint=PATH"
    with pytest.raises(ValueError, match=words):
        build_model(name, num_classes=10, image_size=64, channels=3, pretrained=True)


@pytest.mark.usefixtures("offline")
def test_a_checkpoint_replaces_pretrained_weights(tmp_path):
    make = {"num_classes": 3, "image_size": 32, "channels": 3}
    source = build_model("resnet18", **make)
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    model = build_model(
        "resnet18", pretrained=True, checkpoint=str(tmp_path / "model.safetensors"), **make
    )
    assert torch.equal(model.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("vit_tiny", {"patch_size": 3}, "nearest valid choice is 2"),
        ("vit_tiny", {"width": 65}, "model.width is 65"),
        ("vit_tiny", {"depth": 0}, "model.depth is 0"),
        ("vit_tiny", {"width": -64}, "model.width is -64"),
        ("vit_tiny", {"dropout": 1.5}, "model.dropout is 1.5"),
        ("mlp", {"widths": []}, "at least one width"),
        ("resnet18", {"stem": "cifar", "pretrained": True}, "imagenet stem"),
    ],
)
def test_values_out_of_range(name, arguments, words):
    with pytest.raises(ValueError, match=words):
        build_model(name, num_classes=10, image_size=8, channels=1, **arguments)


@pytest.mark.slow
def test_the_core_prunes_every_kind_of_weight_here():
    kinds = set()
    for name, (arguments, size) in CASES.items():
        model = build_model(name, num_classes=7, image_size=size, channels=3, **arguments)
        kinds |= {type(layer.module) for layer in prunable_layers(model)}
    assert {nn.Linear, nn.Conv2d} <= kinds
    assert any(issubclass(kind, nn.MultiheadAttention) for kind in kinds)
