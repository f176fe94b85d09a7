"""Families of language models: what is pruned, what stays dense, exact counts, read again."""

import warnings

import pytest
import torch
import transformers

from seven_exp.pruning import create_pruner
from seven_exp.pruning.structure import blocks_of

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
        # These are measured by their inputs, and the others by their weights alone.
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
    assert {layer.name for layer in pruner.layers} == {x.name for x in first.layers} - experts
    assert any("hides its inputs" in str(word.message) for word in said) == bool(experts)
    # Experts are pruned by their weights alone, in the same model.
    if experts:
        rest = create_pruner(
            "magnitude", model, sparsity=0.5, scope="per_layer", include=[*experts]
        )
        rest.prune()
        assert {layer.name for layer in rest.layers} == experts
    masks = pruner.masks | (rest.masks if experts else {})
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
