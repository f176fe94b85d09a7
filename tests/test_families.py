"""Families of language models: what is pruned, what stays dense, exact counts, read again."""

import warnings

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from seven_exp.pruning import create_pruner
from seven_exp.pruning.structure import blocks_of
from seven_exp.training.flops import forward_flops

SIZE = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": 43, "max_position_embeddings": 32, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
SHORT = {name: SIZE[name] for name in ("vocab_size", "bos_token_id", "eos_token_id")}
EXPERTS = {**SIZE, "num_key_value_heads": 2, "num_experts_per_tok": 2}

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
GATED = (*ATTENTION, "gate_proj", "up_proj", "down_proj")
FUSED = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
ROUTED = (*ATTENTION, "gate_up_proj", "down_proj")

# Class of the configuration, its arguments -> the prunable weights of one block.
FAMILIES = {
    "Llama": (SIZE, GATED),
    "Qwen2": ({**SIZE, "num_key_value_heads": 2}, GATED),
    "Qwen3": ({**SIZE, "num_key_value_heads": 1, "head_dim": 8}, GATED),
    "Mistral": ({**SIZE, "num_key_value_heads": 1}, GATED),
    "Gemma": ({**SIZE, "num_key_value_heads": 1, "head_dim": 8}, GATED),
    "Phi": ({**SIZE, "num_key_value_heads": 2},
            ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    "OPT": ({**SIZE, "ffn_dim": 24, "word_embed_proj_dim": 16},
            ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")),
    "GPT2": ({**SHORT, "n_embd": 16, "n_head": 2, "n_layer": 2, "n_positions": 32},
             ("c_attn", "c_proj", "c_fc", "c_proj")),
    "GPTNeoX": (SIZE, FUSED),
    "Bloom": ({**SHORT, "hidden_size": 16, "n_layer": 2, "n_head": 2}, FUSED),
    "Falcon": ({**SHORT, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2},
               FUSED),
    "Mamba": ({**SHORT, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
              ("in_proj", "x_proj", "dt_proj", "out_proj")),
    "Mixtral": ({**EXPERTS, "num_local_experts": 4}, ROUTED),
    "Olmoe": ({**EXPERTS, "num_experts": 4}, ROUTED),
    "Qwen2Moe": ({**EXPERTS, "num_experts": 4, "moe_intermediate_size": 8,
                  "shared_expert_intermediate_size": 8},
                 (*ROUTED, "gate_proj", "up_proj", "down_proj")),
    "GptOss": ({**EXPERTS, "num_local_experts": 4, "head_dim": 8}, ROUTED),
    "DeepseekV3": (
        {**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1,
         "moe_intermediate_size": 8, "first_k_dense_replace": 0, "q_lora_rank": 8,
         "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8},
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", "gate_up_proj",
         "down_proj", "gate_proj", "up_proj", "down_proj"),
    ),
}  # fmt: skip

MIXTURES = ("Mixtral", "Olmoe", "Qwen2Moe", "GptOss", "DeepseekV3")


def model_of(family):
    arguments, _ = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**arguments)
    return transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 43, (2, 16), generator=generator) for _ in range(2)]


def logits_loss(model, ids):
    return model(ids).logits.float().square().mean()


def name_of(path):
    return next(p for p in reversed(path.split(".")) if p != "weight")


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_pruned_saved_and_read_again(family, tmp_path):
    model = model_of(family)
    dense = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        first = create_pruner("magnitude", model, sparsity=0.5, scope="per_layer")
        pruner = create_pruner("wanda", model, sparsity=0.5, scope="per_layer")
        pruner.prune(batches(), logits_loss)
    blocks = blocks_of(model)
    assert len(blocks) == 2
    expected = sorted(2 * FAMILIES[family][1])
    assert sorted(name_of(layer.name) for layer in first.layers) == expected
    inside = {id(p) for block in blocks for p in block.parameters()}
    assert all(id(layer.weight) in inside for layer in first.layers)
    # Routers, embeddings and the output layer stay dense, and say why.
    dense_matrices = first.coverage.dense
    routers = [name for name, why in dense_matrices.items() if why == "router"]
    assert len(routers) == (2 if family in MIXTURES else 0)
    more = {"depthwise filter", "other weights of MambaMixer"} if family == "Mamba" else set()
    assert set(dense_matrices.values()) <= {"router", "embedding", "output layer"} | more
    if more:
        assert all("conv1d" in n for n, why in dense_matrices.items() if why == "depthwise filter")
    experts = {layer.name for layer in first.layers if layer.stacked}
    assert len(experts) == (4 if family in MIXTURES else 0)
    assert {layer.name for layer in pruner.layers} == {layer.name for layer in first.layers}
    masks = pruner.masks
    # Mamba reads this weight without calling its module, so no batch shows its inputs.
    hidden = {name for name in masks if family == "Mamba" and "dt_proj" in name}
    assert any("no batch calls their modules" in str(w.message) for w in said) == bool(hidden)
    for name, mask in masks.items():
        assert int(mask.sum()) == mask.numel() // (1 if name in hidden else 2), name
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    for name, value in again.state_dict().items():
        kept = masks.get(name, torch.tensor(True))
        assert torch.equal(value, torch.where(kept, dense[name], 0.0)), name


def seen_by_experts(model, ids):
    """For each block what its experts call gets: inputs, indices of the chosen experts."""
    calls = []
    hooks = [
        module.register_forward_pre_hook(lambda m, args: calls.append((m, args)))
        for name, module in model.named_modules()
        if name.endswith("experts")
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return calls


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "magnitude", "scope": "per_layer"},
        {"name": "magnitude", "scope": "erk"},
        {"name": "magnitude", "scope": "alpha"},
        {"name": "taylor_pre", "scope": "per_layer", "rounds": 3},
        *({"name": name} for name in ("ria", "sparsegpt", "thanos", "alps")),
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_experts_do_not_compete(family, settings):
    """Each keeps what a layer of its own would keep, though the first has much larger weights."""
    model, sparsity = model_of(family), 0.43
    pruner = create_pruner(**settings, model=model, sparsity=sparsity)
    for layer in pruner.layers:
        if layer.stacked:
            layer.weight.data[0] *= 10
    pruner.prune(batches(), logits_loss)
    assert pruner.check().ok
    stacks = [pruner.masks[layer.name] for layer in pruner.layers if layer.stacked]
    assert len(stacks) == 4
    for mask in stacks:
        counts = mask.flatten(1).sum(1).tolist()
        assert max(counts) - min(counts) <= (settings.get("scope") == "alpha")
        if settings.get("scope", "per_layer") == "per_layer":
            assert counts[0] == int((1 - sparsity) * mask[0].numel() + 1e-6)


@pytest.mark.parametrize("name", ["sparsegpt", "thanos", "ria"])
def test_experts_are_pruned_like_layers_of_their_own(name):
    """A stack whose experts all see all tokens, beside the same matrices in linear layers."""
    torch.manual_seed(0)
    model = model_of("Mixtral")
    module = next(m for m in model.modules() if type(m).__name__ == "MixtralExperts")
    stack, x = module.gate_up_proj.detach().clone(), torch.randn(40, module.gate_up_proj.shape[2])
    chosen = torch.arange(4).expand(40, 4)
    alone = nn.ModuleDict({"experts": module})
    pruner = create_pruner(name, alone, sparsity=0.5, include=["*gate_up_proj"])
    pruner.prune([x], lambda m, x: m["experts"](x, chosen, torch.ones(40, 4)).sum())
    for expert in range(4):
        layer = nn.Linear(*reversed(stack[expert].shape), bias=False)
        layer.weight.data.copy_(stack[expert])
        own = create_pruner(name, layer, sparsity=0.5, exclude_defaults=False)
        own.prune([x], lambda m, x: m(x).sum())
        assert torch.equal(own.masks["weight"], pruner.masks["experts.gate_up_proj"][expert])
        torch.testing.assert_close(layer.weight, module.gate_up_proj[expert], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 16])
@pytest.mark.parametrize("family", ["Mixtral", "GptOss"])
def test_wanda_prunes_each_expert_for_the_tokens_routed_to_it(family, length):
    """The first block in NumPy: its inputs are those of the dense model."""
    model, ids = model_of(family), batches()[0][:1, :length]
    dense = {name: value.double().numpy() for name, value in model.state_dict().items()}
    module, (hidden, chosen, *_) = seen_by_experts(model, ids)[0]
    pruner = create_pruner("wanda", model, sparsity=0.5)
    pruner.prune([ids], logits_loss)
    path = next(name for name, m in model.named_modules() if m is module)
    up, down = (dense[f"{path}.{name}"] for name in ("gate_up_proj", "down_proj"))
    if family == "GptOss":
        up, down = up.transpose(0, 2, 1), down.transpose(0, 2, 1)
    hidden, chosen = hidden.double().numpy().reshape(-1, up.shape[2]), chosen.numpy()
    assert len(set(chosen.flatten())) == (2 if length == 1 else 4)  # of four experts
    for expert in range(4):
        x = hidden[(chosen.reshape(len(hidden), -1) == expert).any(1)]
        made = x @ up[expert].T
        if family == "GptOss":
            made = made + dense[f"{path}.gate_up_proj_bias"][expert]
            gate, linear = made[:, ::2].clip(max=7), made[:, 1::2].clip(-7, 7)
            inner = (linear + 1) * gate / (1 + np.exp(-1.702 * gate))
        else:
            gate, linear = np.split(made, 2, axis=1)
            inner = gate / (1 + np.exp(-gate)) * linear
        for name, weight, inputs in (("gate_up_proj", up, x), ("down_proj", down, inner)):
            norms = np.linalg.norm(inputs, axis=0) if len(x) else np.ones(weight.shape[2])
            best = np.argsort(-np.abs(weight[expert]) * norms, axis=1)[:, : weight.shape[2] // 2]
            expected = np.zeros(weight[expert].shape, dtype=bool)
            np.put_along_axis(expected, best, values=True, axis=1)
            mask = pruner.masks[f"{path}.{name}"][expert].numpy()
            assert np.array_equal(mask.T if family == "GptOss" else mask, expected), (expert, name)


@pytest.mark.slow
def test_operations_are_those_of_the_experts_in_use():
    model, ids = model_of("Mixtral"), batches()[0]
    pruner = create_pruner("magnitude", model, sparsity=0.5, scope="per_layer")
    pruner.prune()
    dense, sparse = forward_flops(model, {"input_ids": ids}, pruner.layers, pruner.layer_counts)
    width, inner, length, words = 16, 24, 16, 43
    maps = 4 * width * width + 2 * 3 * width * inner  # two experts of three matrices
    attention, router = 2 * length * width, 4 * width
    assert dense == 2 * length * (2 * (maps + attention + router) + width * words)
    assert dense - sparse == 2 * length * 2 * maps // 2
