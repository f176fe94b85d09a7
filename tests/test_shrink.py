"""Smaller models: the same outputs, whatever set of rows and heads is gone."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seven_exp
from seven_exp.models import build_model
from seven_exp.shrink import fit, shrink


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
    shrunk = shrink(small, inputs)
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


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), fraction=st.sampled_from([0.2, 0.5, 0.9, 1.0]))
def test_rows_of_a_perceptron(seed, fraction):
    model = vision("mlp", widths=[12, 9, 7])
    without_rows(model, seed, fraction, lambda name: "hidden" in name)
    alive = [(m.weight != 0).any(1).sum().item() for n, m in model.named_children() if "hid" in n]
    _, small = same_outputs(model, torch.randn(5, 1, 8, 8))
    # What is left of each layer is at most what had a weight; the rest may be unused further on.
    left = [small.get_submodule(f"hidden{i}").out_features for i in range(3)]
    assert all(have <= max(1, had) for have, had in zip(left, alive, strict=True))


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), fraction=st.sampled_from([0.3, 0.6, 0.95, 1.0]))
def test_rows_of_a_vision_transformer(seed, fraction):
    model = vision("vit_tiny", depth=2, width=16, heads=2, mlp_width=12)
    without_rows(model, seed, fraction, lambda name: ".layers." in name)
    same_outputs(model, torch.randn(3, 1, 8, 8))


@settings(max_examples=10)
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


@pytest.mark.slow
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
    (part,) = shrink(nn.Sequential(first, nn.ReLU(), second), torch.randn(5, 3))
    assert (part.unit, part.before, part.after) == ("neurons", 4, 2)
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
    (part,) = shrink(nn.Sequential(first, nn.ReLU(), second), images)
    assert (part.unit, part.before, part.after) == ("channels", 6, 3)
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
    assert shrink(vision("mlp", widths=[8]), torch.randn(2, 1, 8, 8)) == []
    with pytest.raises(ValueError, match="Bilinear has no units"):
        shrink(nn.Bilinear(2, 2, 2), (torch.randn(3, 2), torch.randn(3, 2)))
    with pytest.raises(TypeError, match="example_inputs"):
        shrink(vision("mlp", widths=[8]))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_neurons_of_pytorchs_own_transformer(activation, training):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, activation=activation, batch_first=True)
    model = stirred(nn.TransformerEncoder(layer, 2)).train(training)
    pruner = seven_exp.create_pruner(
        "magnitude", model, sparsity=0.5, pattern="rows", scope="per_layer"
    )
    pruner.prune()
    inputs, padding = torch.randn(2, 5, 32), torch.arange(5) > torch.tensor([[4], [2]])
    small = copy.deepcopy(model)
    shrunk = shrink(small, inputs)
    assert {(part.unit, part.before, part.after) for part in shrunk} == {("neurons", 64, 32)}
    assert {module.training for module in small.modules()} == {training}
    model.eval(), small.eval()
    # PyTorch has one path with gradients and another without.
    for context in (torch.enable_grad, torch.no_grad):
        for mask in (None, padding):
            with context():
                whole, less = (m(inputs, src_key_padding_mask=mask) for m in (model, small))
            torch.testing.assert_close(less, whole, rtol=0, atol=1e-5)


def test_neurons_between_silu():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.SiLU(), nn.Dropout(0.5), nn.Linear(9, 4)).train()
    stirred(without_rows(model, 0, 0.5, lambda name: name == "0.weight")).train()
    whole = copy.deepcopy(model).eval()
    inputs = torch.randn(7, 6)
    (part,) = shrink(model, inputs)
    assert (part.name, part.before) == ("0", 9)
    assert part.after == (whole[0].weight != 0).any(1).sum()
    assert all(module.training for module in model.modules())
    torch.testing.assert_close(model.eval()(inputs), whole(inputs), rtol=0, atol=1e-5)


class BasicBlock(nn.Module):
    """Parts that are called like torchvision's."""

    def __init__(self, activation):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.activation = activation


class Silu(BasicBlock):
    def forward(self, x):
        x = x + self.bn2(self.conv2(self.activation(self.bn1(self.conv1(x)))))
        return self.activation(x)


class PreActivation(BasicBlock):
    def forward(self, x):
        y = self.conv1(self.activation(self.bn1(x)))
        return x + self.conv2(self.activation(self.bn2(y)))


class Skipping(nn.Sequential):
    def forward(self, x):
        hidden = self[1](self[0](x))
        return self[2](hidden) + hidden[:, :4]


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(6, 9), nn.Linear(6, 9), nn.Linear(9, 6)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class ReadTwice(nn.Module):
    """The hidden units of a perceptron are read by another layer as well."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
        self.other = nn.Linear(9, 4)

    def forward(self, x):
        return self.mlp(x) + self.other(self.mlp[0](x))


class Attending(nn.Module):
    """Attention that is called with a mask."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        return self.attention(x, x, x, attn_mask=mask, need_weights=False)[0]


def named(kind):
    """The class under the name by which a block is known."""
    return type("BasicBlock", (kind,), {})


def silu_block():
    return nn.Sequential(named(Silu)(nn.SiLU()))


def pre_activation_block():
    return nn.Sequential(named(PreActivation)(nn.ReLU()))


def broken():
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))
    with torch.no_grad():
        model[2].bias[0] = float("nan")
    return model


IMAGES, VECTORS = (2, 4, 5, 5), (7, 6)
BLOCKS = {
    silu_block: (IMAGES, "channels"),
    pre_activation_block: (IMAGES, "channels"),
    Gated: (VECTORS, "neurons"),
    ReadTwice: (VECTORS, "neurons"),
}


@pytest.mark.parametrize("make", BLOCKS)
def test_blocks_of_any_kind(make):
    (shape, unit), model = BLOCKS[make], make()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and any(part in name for part in ("conv1", "gate", "up", "0.")):
                weight[1:3] = 0.0
    shrunk, _ = same_outputs(stirred(model), torch.randn(shape))
    assert [part.unit for part in shrunk] == [unit]
    assert shrunk[0].after < shrunk[0].before


REFUSED = {
    lambda: Skipping(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4)): (VECTORS, "has no units"),
    Attending: ((2, 3, 8), "does not run"),
    broken: (VECTORS, "gives other outputs"),
    lambda: nn.Sequential(nn.Linear(6, 9), nn.Linear(9, 4)).bfloat16(): (VECTORS, "too coarse"),
}


def everything(model):
    """Modules and tensors by identity, values and sizes."""
    modules = [(name, id(m), m.training, m.extra_repr()) for name, m in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    values = [t.detach().clone().flatten().view(torch.uint8) for _, t in tensors if t.dim()]
    return modules, [(name, id(t)) for name, t in tensors], torch.cat(values).tolist()


@pytest.mark.parametrize("make", REFUSED)
def test_outputs_that_would_change_are_refused_and_the_model_stays(make):
    (shape, reason), model = REFUSED[make], make()
    torch.manual_seed(0)
    dtype = next(model.parameters()).dtype
    without_rows(model, 3, 0.5, lambda name: True)
    if make is not broken:
        stirred(model)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_weight[[0, 1, 2, 3, 16, 17, 18, 19]] = 0.0
    inputs = torch.randn(shape).to(dtype)
    model.train()
    before = everything(model)
    with pytest.raises(ValueError, match=reason):
        shrink(model, inputs)
    assert everything(model) == before
    model.eval()(inputs)


def test_a_compiled_model_is_named_as_what_it_wraps():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with torch.no_grad():
        model[0].weight[:3] = 0
    found = shrink(torch.compile(model, backend="eager"), torch.randn(2, 4))
    assert [(part.name, part.before, part.after) for part in found] == [("0", 6, 3)]
