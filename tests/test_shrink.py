"""Smaller models: the same outputs, whatever set of rows and heads is gone."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from seven_exp.models import build_model
from seven_exp.shrink import fit, shrink
from seven_exp.shrink.units import Pair, shrink_units


def vision(name, size=8, channels=1, **arguments):
    torch.manual_seed(0)
    made = build_model(name, num_classes=10, image_size=size, channels=channels, **arguments)
    return stirred(made)


@torch.no_grad()
def stirred(model):
    """Biases and statistics as training leaves them: not zero, not one."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.normal_(std=0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.eval()


@torch.no_grad()
def without_rows(model, seed, fraction, names):
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and names(name):
            parameter[torch.rand(len(parameter), generator=generator) < fraction] = 0.0
    return model


@torch.no_grad()
def same_outputs(model, inputs):
    """Shrink a copy, load its tensors into a whole model, and compare all three."""
    whole, small = copy.deepcopy(model), copy.deepcopy(model)
    shrunk = shrink(small)
    fit(whole, small.state_dict())
    given_inputs = inputs if isinstance(inputs, dict) else {}
    places = () if isinstance(inputs, dict) else (inputs,)
    outputs = [m(*places, **given_inputs) for m in (model, small, whole)]
    if not isinstance(outputs[0], torch.Tensor):
        outputs = [out[0] for out in outputs]
    scale = outputs[0].abs().max().clamp(min=1.0)
    assert (outputs[0] - outputs[1]).abs().max() <= 2e-6 * scale
    assert torch.equal(outputs[1], outputs[2])
    return shrunk, small


@given(seed=st.integers(0, 2**31), fraction=st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_rows_of_a_perceptron(seed, fraction):
    model = vision("mlp", widths=[12, 9, 7])
    without_rows(model, seed, fraction, lambda name: "hidden" in name)
    alive = [(m.weight != 0).any(1).sum().item() for n, m in model.named_children() if "hid" in n]
    _, small = same_outputs(model, torch.randn(5, 1, 8, 8))
    # What is left of each layer is at most what had a weight; the rest may be unused further on.
    left = [small.get_submodule(f"hidden{i}").out_features for i in range(3)]
    assert all(have <= max(1, had) for have, had in zip(left, alive, strict=True))


@given(seed=st.integers(0, 2**31), fraction=st.sampled_from([0.3, 0.6, 0.95, 1.0]))
def test_rows_of_a_vision_transformer(seed, fraction):
    model = vision("vit_tiny", depth=2, width=16, heads=2, mlp_width=12)
    without_rows(model, seed, fraction, lambda name: ".layers." in name)
    same_outputs(model, torch.randn(3, 1, 8, 8))


@given(gone=st.lists(st.booleans(), min_size=8, max_size=8))
def test_heads_of_a_vision_transformer(gone):
    model = vision("vit_tiny", depth=2, width=16, heads=4, mlp_width=12)
    with torch.no_grad():
        for i, missing in enumerate(gone):
            attention = model.encoder.layers[i // 4].self_attention
            dims = torch.arange(4) + i % 4 * 4
            if missing:
                attention.in_proj_weight[torch.cat([dims, dims + 16, dims + 32])] = 0.0
                attention.out_proj.weight[:, dims] = 0.0
    _, small = same_outputs(model, torch.randn(3, 1, 8, 8))
    for i in range(2):
        attention = small.encoder.layers[i].self_attention
        left = 4 - sum(gone[4 * i : 4 * i + 4])
        assert attention.out_proj.in_features == 4 * left


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [("resnet18", {"stem": "cifar"}, 8), ("resnet50", {}, 32), ("resnet20", {}, 8)],
)
def test_channels_of_a_resnet(name, arguments, size):
    model = vision(name, size, 3, **arguments)
    without_rows(model, 1, 0.5, lambda name: "conv" in name)
    shrunk, _ = same_outputs(model, torch.randn(2, 3, size, size))
    assert {part.unit for part in shrunk} == {"channels"}
    assert sum(part.after for part in shrunk) < 0.6 * sum(part.before for part in shrunk)


def transformer(kind):
    import transformers

    wide = {"vocab_size": 30, "num_hidden_layers": 2, "hidden_size": 16}
    wide |= {"num_attention_heads": 4, "intermediate_size": 12}
    configs = {
        "bert": lambda: transformers.BertConfig(**wide),
        "roberta": lambda: transformers.RobertaConfig(**wide, pad_token_id=0),
        "distilbert": lambda: transformers.DistilBertConfig(
            vocab_size=30, dim=16, n_heads=4, n_layers=2, hidden_dim=12
        ),
        "deberta": lambda: transformers.DebertaV2Config(**wide),
        "gpt2": lambda: transformers.GPT2Config(
            vocab_size=30, n_embd=16, n_head=2, n_layer=2, n_inner=12
        ),
    }
    torch.manual_seed(0)
    auto = transformers.AutoModel
    return stirred(auto.from_config(configs[kind]()))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta", "gpt2"])
def test_neurons_and_heads_of_transformers(kind):
    model = transformer(kind)
    inner = ("intermediate", "lin1", "c_fc")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and any(part in name for part in inner):
                (weight.T if kind == "gpt2" else weight)[2:7] = 0.0
            if name.endswith(("value.weight", "v_lin.weight")):
                weight[4:8] = 0.0  # the second head says the same to every token
    tokens = torch.randint(1, 30, (3, 6))
    mask = torch.ones_like(tokens)
    mask[0, 4:] = 0
    shrunk, _ = same_outputs(model, {"input_ids": tokens, "attention_mask": mask})
    units = {(part.unit, part.before, part.after) for part in shrunk}
    assert ("neurons", 12, 7) in units
    assert (("heads", 4, 3) in units) == (kind in ("bert", "roberta", "distilbert"))


def test_vision_transformer_of_transformers():
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        image_size=8, patch_size=4, num_channels=1,
    )  # fmt: skip
    model = stirred(transformers.ViTForImageClassification(config))
    without_rows(model, 0, 0.5, lambda name: "fc1" in name)
    shrunk, _ = same_outputs(model, torch.randn(2, 1, 8, 8))
    assert {part.unit for part in shrunk} == {"neurons"}


def test_a_neuron_without_weights_lives_on_in_the_next_bias():
    first, second = nn.Linear(3, 4), nn.Linear(4, 2)
    with torch.no_grad():
        first.weight[1:3] = 0.0
        first.bias[:] = torch.tensor([1.0, 2.0, -3.0, 4.0])
        second.bias[:] = 0.5
    expected = 0.5 + 2.0 * second.weight[:, 1].detach()  # relu(2), and relu(-3) is nothing
    assert shrink_units(Pair(first, second, nn.ReLU())) == (4, 2)
    torch.testing.assert_close(second.bias.detach(), expected)


def test_a_constant_channel_before_padding_is_no_bias():
    torch.manual_seed(0)
    first, second = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 3, 3, padding=1)
    with torch.no_grad():
        first.weight[:4] = 0.0
        first.bias[:] = torch.tensor([1.0, 2.0, 3.0, -1.0, 0.1, 0.2])
    images = torch.randn(2, 2, 5, 5)
    whole = nn.Sequential(first, nn.ReLU(), second)(images)
    # One channel speaks for three; the fourth says nothing.
    assert shrink_units(Pair(first, second, nn.ReLU())) == (6, 3)
    small = nn.Sequential(first, nn.ReLU(), second)(images)
    torch.testing.assert_close(small, whole)


def test_what_is_read_by_nobody_goes_too():
    model = vision("mlp", widths=[8, 6])
    with torch.no_grad():
        model.head.weight[:, :4] = 0.0
        model.hidden1.weight[4:, 5:] = 0.0  # so nobody reads these three of hidden0
    shrunk, _ = same_outputs(model, torch.randn(4, 1, 8, 8))
    assert [(p.name, p.before, p.after) for p in shrunk] == [("hidden0", 8, 5), ("hidden1", 6, 2)]


def test_a_model_without_zeros_stays_and_an_unknown_one_is_refused():
    assert shrink(vision("mlp", widths=[8])) == []
    with pytest.raises(ValueError, match="Bilinear has no block"):
        shrink(nn.Bilinear(2, 2, 2))
