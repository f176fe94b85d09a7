"""The roles of published models' layers, and which of them are prunable."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

import seven_exp
from seven_exp.pruning import prunable_layers, survey

OUTPUT, EMBEDDING, ROUTER = "output layer", "embedding", "router"


def matrices(model):
    """Parameters that vary along two dimensions, by name."""
    return {n: p for n, p in model.named_parameters() if sum(s > 1 for s in p.shape) > 1}


def check(model, dense):
    """Pruned is what is a matrix and not named; each of these has its reason, each bears a name."""
    found, every = survey(model), matrices(model)
    pruned = [layer.name for layer in found.layers]
    reasons = {name: why for name, why in found.dense.items() if "bias_table" not in name}
    named = {}
    for name, why in dense.items():
        if name.startswith("*"):
            named |= {full: why for full in every if full.endswith(name[1:])}
        else:
            named[name] = why
    assert {name: why for name, why in reasons.items() if name in named} == named
    assert set(reasons) == set(named)
    assert pruned == [name for name in every if name not in named and "bias" not in name]
    assert found.prunable == sum(every[name].numel() for name in pruned)
    assert found.total == sum(p.numel() for p in model.parameters())


def outputs(*names):
    return {f"{name}.weight": OUTPUT for name in names}


POSITIONS = {"encoder.pos_embedding": EMBEDDING}
RPN = ("rpn.head.cls_logits", "rpn.head.bbox_pred")
BOXES = ("roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
SSD = [
    f"head.{kind}_head.module_list.{i}"
    for kind in ("classification", "regression")
    for i in range(6)
]

TORCHVISION = {
    "alexnet": outputs("classifier.6"),
    "vgg11": outputs("classifier.6"),
    "vgg11_bn": outputs("classifier.6"),
    "squeezenet1_1": outputs("classifier.1"),
    "mobilenet_v2": outputs("classifier.1"),
    "mobilenet_v3_small": outputs("classifier.3"),
    "efficientnet_b0": outputs("classifier.1"),
    "mnasnet0_5": outputs("classifier.1"),
    "densenet121": outputs("classifier"),
    "shufflenet_v2_x0_5": outputs("fc"),
    "resnet18": outputs("fc"),
    "resnext50_32x4d": outputs("fc"),
    "r3d_18": outputs("fc"),
    "googlenet": outputs("aux1.fc2", "aux2.fc2", "fc"),
    "inception_v3": outputs("AuxLogits.fc", "fc"),
    "convnext_tiny": {"features.0.0.weight": EMBEDDING, **outputs("classifier.2")},
    "swin_t": {"features.0.0.weight": EMBEDDING, **outputs("head")},
    "vit_b_32": {"conv_proj.weight": EMBEDDING, **POSITIONS, **outputs("heads.head")},
    "fcn_resnet50": outputs("classifier.4", "aux_classifier.4"),
    "deeplabv3_mobilenet_v3_large": outputs("classifier.4", "aux_classifier.4"),
    "lraspp_mobilenet_v3_large": outputs("classifier.low_classifier", "classifier.high_classifier"),
    "fasterrcnn_mobilenet_v3_large_fpn": outputs(*RPN, *BOXES),
    "maskrcnn_resnet50_fpn": outputs(*RPN, *BOXES, "roi_heads.mask_predictor.mask_fcn_logits"),
    "keypointrcnn_resnet50_fpn": outputs(
        *RPN, *BOXES, "roi_heads.keypoint_predictor.kps_score_lowres"
    ),
    "retinanet_resnet50_fpn": outputs(
        "head.classification_head.cls_logits", "head.regression_head.bbox_reg"
    ),
    "fcos_resnet50_fpn": outputs(
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
        "head.regression_head.bbox_ctrness",
    ),
    "ssd300_vgg16": outputs(*SSD),
    "ssdlite320_mobilenet_v3_large": outputs(*(f"{name}.1" for name in SSD)),
}


SETTINGS = {
    **{
        name: {"weights_backbone": None}
        for name in TORCHVISION
        if any(kind in name for kind in ("rcnn", "retinanet", "fcos", "ssd"))
    },
    "googlenet": {"init_weights": False},
    "inception_v3": {"init_weights": False},
    "fcn_resnet50": {"weights_backbone": None, "aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"weights_backbone": None, "aux_loss": True},
    "lraspp_mobilenet_v3_large": {"weights_backbone": None},
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None, **SETTINGS.get(name, {}))
    check(model, TORCHVISION[name])


SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}
IMAGES = {**SMALL, "image_size": 16, "patch_size": 8}
MOE = {**SMALL, "num_key_value_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
BART = {
    "d_model": 16, "vocab_size": 50, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}  # fmt: skip
TOKENS = {"*_embeddings.weight": EMBEDDING}

TRANSFORMERS = {
    "BertForSequenceClassification": ("BertConfig", SMALL, TOKENS | outputs("classifier")),
    "BertForPreTraining": ("BertConfig", SMALL, TOKENS | outputs("cls.seq_relationship")),
    "BertForQuestionAnswering": ("BertConfig", SMALL, TOKENS | outputs("qa_outputs")),
    "DistilBertForSequenceClassification": (
        "DistilBertConfig",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "vocab_size": 50},
        TOKENS | outputs("classifier"),
    ),
    "RobertaForSequenceClassification": (
        "RobertaConfig", SMALL, TOKENS | outputs("classifier.out_proj"),
    ),
    "DebertaV2ForSequenceClassification": (
        "DebertaV2Config", {**SMALL, "embedding_size": 8},
        TOKENS | outputs("classifier") | {"deberta.embeddings.embed_proj.weight": EMBEDDING},
    ),
    "ElectraForSequenceClassification": (
        "ElectraConfig", {**SMALL, "embedding_size": 8},
        TOKENS
        | outputs("classifier.out_proj")
        | {"electra.embeddings_project.weight": EMBEDDING},
    ),
    "GPT2LMHeadModel": (
        "GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50},
        {"transformer.wte.weight": EMBEDDING, "transformer.wpe.weight": EMBEDDING},
    ),
    "OPTForCausalLM": (
        "OPTConfig",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 32,
            "vocab_size": 50, "word_embed_proj_dim": 8,
        },
        {
            f"model.decoder.{part}.weight": EMBEDDING
            for part in ("embed_tokens", "embed_positions", "project_in", "project_out")
        },
    ),
    "LlamaForCausalLM": (
        "LlamaConfig", MOE, {"model.embed_tokens.weight": EMBEDDING} | outputs("lm_head"),
    ),
    "LlamaForSequenceClassification": (
        "LlamaConfig", MOE, {"model.embed_tokens.weight": EMBEDDING} | outputs("score"),
    ),
    "MixtralForCausalLM": (
        "MixtralConfig", {**MOE, "num_local_experts": 4},
        {"model.embed_tokens.weight": EMBEDDING, "*.gate.weight": ROUTER} | outputs("lm_head"),
    ),
    "Qwen2MoeForCausalLM": (
        "Qwen2MoeConfig",
        {
            **MOE, "num_experts": 4, "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
        },
        {
            "model.embed_tokens.weight": EMBEDDING,
            "*.gate.weight": ROUTER,
            "*.shared_expert_gate.weight": ROUTER,
        }
        | outputs("lm_head"),
    ),
    "GptOssForCausalLM": (
        "GptOssConfig", {**MOE, "num_local_experts": 4, "head_dim": 8},
        {"model.embed_tokens.weight": EMBEDDING, "*.router.weight": ROUTER} | outputs("lm_head"),
    ),
    "T5ForConditionalGeneration": (
        "T5Config", T5,
        {"shared.weight": EMBEDDING, "*.relative_attention_bias.weight": EMBEDDING},
    ),
    "T5ForSequenceClassification": (
        "T5Config", T5,
        {"transformer.shared.weight": EMBEDDING, "*.relative_attention_bias.weight": EMBEDDING}
        | outputs("classification_head.out_proj"),
    ),
    "BartForSequenceClassification": (
        "BartConfig", BART,
        {"model.shared.weight": EMBEDDING, "*.embed_positions.weight": EMBEDDING}
        | outputs("classification_head.out_proj"),
    ),
    "ViTForImageClassification": (
        "ViTConfig", IMAGES,
        {"*.position_embeddings": EMBEDDING, "*.projection.weight": EMBEDDING}
        | outputs("classifier"),
    ),
    "DeiTForImageClassificationWithTeacher": (
        "DeiTConfig", IMAGES,
        {"*.position_embeddings": EMBEDDING, "*.projection.weight": EMBEDDING}
        | outputs("cls_classifier", "distillation_classifier"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name):
    transformers = pytest.importorskip("transformers")
    config, settings, dense = TRANSFORMERS[name]
    with torch.device("meta"):
        model = getattr(transformers, name)(getattr(transformers, config)(**settings))
    check(model, dense)


def module(**children):
    made = nn.Module()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def linear(inputs=4, outputs=4):
    return nn.Linear(inputs, outputs, bias=False)


class Adapted(nn.Module):
    """A layer as peft wraps it."""

    def __init__(self):
        super().__init__()
        self.base_layer = linear()
        self.lora_A = nn.ModuleDict({"default": linear(4, 2)})
        self.lora_B = nn.ModuleDict({"default": linear(2, 4)})


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = linear(), linear(), linear(4, 3)


def blocks(make, count=3):
    return nn.ModuleList(make() for _ in range(count))


def head(*names):
    return module(body=linear(), **{name: linear(4, 3) for name in names})


LORA = ("base_layer", "lora_A.default", "lora_B.default")
SAVED = module(original_module=linear(4, 3), modules_to_save=module(default=linear(4, 3)))

BUILT = {
    "timm": (module(body=linear(), head=head("fc")), ["head.fc"]),
    "timm, distilled": (head("head", "head_dist"), ["head", "head_dist"]),
    "gated MLP": (module(gate_proj=linear(), up_proj=linear(), down_proj=linear()), []),
    "a gate without experts": (module(gate=linear(), body=linear()), []),
    "experts one by one": (module(gate=linear(4, 3), experts=blocks(linear)), ["gate"]),
    "adapters": (module(one=Adapted()), [f"one.{part}" for part in LORA[1:]]),
    "an adapted head": (
        module(one=linear(), score=Adapted()),
        [f"score.{part}" for part in LORA],
    ),
    "a head that peft trains": (
        module(one=linear(), score=SAVED),
        ["score.original_module", "score.modules_to_save.default"],
    ),
    "fc within blocks": (
        module(blocks=blocks(lambda: module(fc=linear())), fc=linear(4, 3)),
        ["fc"],
    ),
    "models side by side": (blocks(lambda: head("fc"), 2), ["0.fc", "1.fc"]),
    "heads side by side": (
        module(body=linear(), class_embed=blocks(lambda: linear(4, 3))),
        ["class_embed.0", "class_embed.1", "class_embed.2"],
    ),
    "a head of layers in a list": (
        module(body=linear(), bbox_embed=module(layers=blocks(linear))),
        ["bbox_embed.layers.2"],
    ),
    "no head's name": (LeNet(), ["fc3"]),
    "layers in sequence": (nn.Sequential(linear(), linear(4, 3)), []),
}


@pytest.mark.parametrize("name", BUILT)
def test_places_of_layers(name):
    model, dense = BUILT[name]
    pruned = [layer.name.removesuffix(".weight") for layer in prunable_layers(model)]
    every = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    assert pruned == [name for name in every if name not in dense]
    taken = prunable_layers(model, exclude_defaults=False)
    assert [layer.name.removesuffix(".weight") for layer in taken] == every


def test_the_line_at_the_start_counts_all_parameters():
    model = module(embeddings=nn.Embedding(10, 4), body=nn.Linear(4, 4), head=nn.Linear(4, 5))
    # 40 + (16 + 4) + (20 + 5) = 85 parameters, 76 of them in matrices.
    found = survey(model)
    assert "prunable: 16 of 85 parameters (18.8%) in 1 layers: body.weight" in str(found)
    assert "embedding 52.6%, output layer 26.3%" in str(found)
    with pytest.warns(UserWarning, match=r"21\.1% of the weights in matrices.*embedding 52\.6%"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The user's own choice needs no warning.
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, exclude=["embeddings", "head"])


def test_a_last_layer_that_no_name_tells_is_said():
    model = nn.Sequential(linear(), nn.ReLU(), linear(4, 3))
    assert "no output layer is recognised: exclude '2.weight'" in str(survey(model))
    assert "recognised" not in str(survey(model, exclude=["2"]))
    assert "recognised" not in str(survey(module(body=linear(), head=linear())))
