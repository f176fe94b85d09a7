"""Which weights are prunable."""

import copy
import warnings

import pytest
import torch
import torchvision
from torch import nn

import seven_exp
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
    assert names(resnet, exclude=["fc", "layer4.1.conv2"]) == found[:-1]
    assert names(resnet, exclude_defaults=False) == [*found, "fc.weight"]


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
        ({"include": ["0"]}, ["0.weight"]),
        ({"include": ["*0"]}, ["0.weight", "1.0.weight"]),
        ({"include": "1.*"}, ["1.0.weight", "1.1.weight"]),
        ({"exclude": ["1"]}, ["0.weight"]),
        ({"exclude": ["1.0"]}, ["0.weight", "1.1.weight"]),
        ({"include": ["?.?.weight"], "exclude": ["1.1.weight"]}, ["1.0.weight"]),
    ],
)
def test_patterns(patterns, expected):
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.Conv1d(2, 2, 1)))
    assert names(model, **patterns) == expected


def test_a_bare_name_is_one_module_and_a_pattern_all_that_it_fits():
    with torch.device("meta"):
        resnet = torchvision.models.resnet18(num_classes=3)
    every = names(resnet)
    assert names(resnet, exclude=["conv1"]) == every[1:]
    assert names(resnet, exclude=["conv1.weight"]) == every[1:]
    inner = [name for name in every if name.endswith(".conv1.weight")]
    assert len(inner) == 8
    assert names(resnet, include=["*.conv1"]) == inner
    assert names(resnet, include=["*conv1*"]) == ["conv1.weight", *inner]
    assert names(resnet, include=["layer1"]) == [n for n in every if n.startswith("layer1.")]
    # Layers that are dense by default may still be named.
    assert names(resnet, exclude=["fc"]) == every


def test_a_name_of_an_inner_module_is_a_mistake_that_says_the_pattern():
    with torch.device("meta"):
        resnet = torchvision.models.resnet18(num_classes=3)
    with pytest.raises(
        ValueError, match=r"'conv2' matches no.*'\*\.conv2' matches 8, such as layer"
    ):
        prunable_layers(resnet, exclude=["conv2"])
    with pytest.raises(ValueError, match=r"'layer5' matches no.*did you mean 'layer\d'"):
        prunable_layers(resnet, exclude=["layer5"])


@pytest.mark.parametrize("exclude", [["first"], ["second"], ["*first*"]])
def test_a_shared_weight_is_dense_by_any_of_its_names(exclude):
    with pytest.raises(ValueError, match="nothing to prune"):
        prunable_layers(Tied(), exclude=exclude)


class Packed(nn.Linear):
    """Two numbers of four bits a byte, as quantised layers keep them."""

    def __init__(self, dtype=torch.uint8):
        super().__init__(8, 4)
        packed = torch.zeros(4, 4, dtype=torch.float32).to(dtype)
        self.weight = nn.Parameter(packed, requires_grad=False)


class Buffers(nn.Module):
    """Packed integers in a buffer, as GPTQ keeps them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 4, dtype=torch.int32))


def quantised():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.nn.quantized.Linear(4, 4)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Packed, r"0\.weight.*uint8 of a Packed"),
        (lambda: Packed(torch.int8), r"0\.weight.*int8 of a Packed"),
        (lambda: Packed(torch.float8_e4m3fn), r"0\.weight.*float8_e4m3fn of a Packed"),
        (Buffers, r"0\.qweight.*int32 of a Buffers"),
        (quantised, r"0\.weight.*quantised Linear"),
    ],
)
def test_packed_weights_are_refused_by_name(make, words):
    model = nn.Sequential(make(), nn.Linear(4, 4))
    with pytest.raises(ValueError, match=f"{words}.*without quantisation"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5)
    assert names(model, exclude=["0"]) == ["1.weight"]
    assert names(model, include=["1"]) == ["1.weight"]


class Experts(nn.Module):
    """Several matrices in one parameter."""

    def __init__(self, *shape, **more):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(*shape))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(*shape[:2]))
        for name, value in more.items():
            setattr(self, name, value)


def test_weights_of_all_kinds_are_prunable():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(4, 6, bidirectional=True, proj_size=3),
            "cell": nn.GRUCell(4, 6),
            "experts": Experts(2, 3, 4),
            "positions": nn.ParameterList([torch.zeros(1, 5, 4)]),
        }
    )
    kinds = ("ih", "hh", "hr")
    lstm = [f"lstm.weight_{kind}_l0{way}" for way in ("", "_reverse") for kind in kinds]
    assert names(model) == [*lstm, "cell.weight_ih", "cell.weight_hh", "experts.gate_up_proj"]


@pytest.mark.parametrize("name", ["magnitude", "seven_dyn", "rigl", "obert"])
def test_recurrent_layers_and_experts_are_pruned(name):
    torch.manual_seed(0)
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 6), "experts": Experts(2, 8, 6)})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    more = {"end_step": 3} if name in ("seven_dyn", "rigl", "obert") else {}
    if name == "rigl":
        more["optimizer"] = optimizer
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, **more)
    for _ in range(4 if more else 0):
        hidden, _ = model["lstm"](torch.randn(5, 2, 4))
        made = torch.einsum("tbh,eoh->tbeo", hidden, model["experts"].gate_up_proj)
        made.square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    if not more:
        pruner.prune()
    every = [p for name, p in model.named_parameters() if name in pruner.masks]
    zeros = sum(int((weight == 0).sum()) for weight in every)
    assert sum(weight.numel() for weight in every) == 24 * 4 + 24 * 6 + 2 * 8 * 6
    assert abs(zeros - 168) <= len(every) * (name == "rigl")


@pytest.mark.parametrize(
    ("settings", "alike"),
    [
        ({"scope": "per_row"}, lambda mask: mask.sum(-1)),
        ({"pattern": "2:4"}, lambda mask: mask.reshape(-1, 4).sum(1)),
        ({"pattern": "2:4", "scope": "per_row"}, lambda mask: mask.reshape(-1, 4).sum(1)),
    ],
)
def test_rows_of_experts_are_those_of_each_expert(settings, alike):
    torch.manual_seed(0)
    model = nn.Sequential(Experts(3, 6, 8))
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5, **settings)
    pruner.prune()
    counts = alike(pruner.masks["0.gate_up_proj"])
    assert counts.unique().numel() == 1
    weight = model[0].gate_up_proj.detach()
    kept = weight.abs()[weight != 0].sum()
    by_hand = weight.abs().reshape(-1, 8 if settings.get("scope") == "per_row" else 4)
    if "pattern" in settings:
        by_hand = by_hand.reshape(-1, 4)
    torch.testing.assert_close(kept, by_hand.sort(descending=True)[0].chunk(2, 1)[0].sum())


def test_whole_rows_and_blocks_of_experts():
    model = nn.Sequential(Experts(3, 6, 8))
    for pattern in ("rows", "2x4"):
        pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern=pattern)
        pruner.prune()
        mask = pruner.masks["0.gate_up_proj"]
        if pattern == "2x4":
            mask = mask.view(9, 2, 2, 4).transpose(1, 2)
        flat = mask.reshape(18, 8)
        assert 0 < flat.sum() <= 72
        assert (flat.all(1) == flat.any(1)).all()
    with pytest.raises(ValueError, match=r"does not tile 0\.gate_up_proj of 6x8"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, pattern="4x4")


def test_experts_share_what_erk_gives_each_matrix():
    """As if each expert were a layer: density eps (outputs + inputs) / (outputs * inputs)."""
    model = nn.Sequential(Experts(4, 16, 32), nn.Linear(64, 64, bias=False))
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.75, scope="erk")
    pruner.prune()
    eps = 0.25 * (4 * 16 * 32 + 64 * 64) / (4 * (16 + 32) + 64 + 64)
    kept = [count for _, count in pruner.layer_counts.values()]
    assert kept == [4 * int(eps * (16 + 32)), int(eps * (64 + 64))]


@pytest.mark.parametrize(
    ("up", "more"),
    [
        ((2, 4, 6), {"is_transposed": True}),
        ((2, 4, 6), {"down_proj": nn.Parameter(torch.randn(2, 3, 4))}),
    ],
)
def test_experts_whose_rows_are_inputs_are_told(up, more):
    model = nn.Sequential(Experts(*up, **more))
    seven_exp.create_pruner("magnitude", model, sparsity=0.5).prune()
    with pytest.raises(ValueError, match=r"0\.gate_up_proj is transposed"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, scope="per_row")


@pytest.mark.parametrize("key", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_a_mistake(key):
    with pytest.raises(ValueError, match=f"{key} pattern 'encodr'"):
        prunable_layers(nn.Linear(2, 2), **{key: ["encodr"]})


@pytest.mark.slow
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
    with pytest.raises(RuntimeError, match=r"0\.weight is no longer a parameter"):
        _ = layer.weight


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.LayerNorm(3), "the model has no linear, convolutional, attention or recurrent layer"),
        (
            nn.ModuleDict({"classifier": nn.Linear(4, 2)}),
            r"all stay dense by default \(output layer\); exclude_defaults=False prunes them",
        ),
    ],
)
def test_a_model_with_nothing_to_prune_is_told_why(model, words):
    with pytest.raises(ValueError, match=f"^no prunable weight: {words}$"):
        prunable_layers(model)
