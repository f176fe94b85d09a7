"""Families of language models: what is pruned, what stays dense, exact counts, read again."""

import warnings

import numpy as np
import pytest
import torch
import transformers

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
