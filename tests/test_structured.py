"""Structured methods on a tiny Llama: their formulas in NumPy, and the really smaller model."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

import seven_exp
from seven_exp.shrink import coupled_pattern, shrink

WIDTH, INNER, DEPTH, HEAD = 16, 12, 3, 4


def llama(seed=0, **changed):
    """Two key-value heads, read by two query heads each."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=DEPTH, head_dim=HEAD,
        num_attention_heads=4, num_key_value_heads=2, vocab_size=30, max_position_embeddings=32,
        pad_token_id=None, initializer_range=0.3, attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    for key, value in changed.items():
        setattr(config, key, value)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def tokens(count=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(30, (2, 9), generator=generator) for _ in range(count)]


def loss_fn(model, ids):
    logits = model(ids).logits[:, :-1]
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def pattern_of(model):
    return coupled_pattern(model, {"input_ids": tokens(1)[0]})


def weights_of(model):
    return {name: w.detach().double().numpy().copy() for name, w in model.named_parameters()}


@torch.no_grad()
def logits_of(model):
    return torch.cat([model(ids).logits for ids in tokens(2, seed=9)])


def best_units(units, budget):
    """Names of the units that stay: the best of (score, size, name), while they fit."""
    kept = set()
    for _, size, name in sorted(units, key=lambda unit: -unit[0]):
        budget -= size
        if budget < 0:
            break
        kept.add(name)
    return kept


HEAD_SIZE, NEURON_SIZE = 4 * 2 * HEAD * WIDTH - 2 * HEAD * WIDTH, 3 * WIDTH
"""Weights of two query heads with their key and value head, and of a neuron."""


def alive(model):
    """The units that have weights, and a check that all their parts agree."""
    found = set()
    for i, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        groups = attention.o_proj.weight.any(0).unflatten(0, (2, -1))
        assert torch.equal(groups.any(1), groups.all(1))
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            assert torch.equal(part.weight.any(1).unflatten(0, (2, -1)).all(1), groups.all(1))
        neurons = mlp.down_proj.weight.any(0)
        for part in (mlp.gate_proj, mlp.up_proj):
            assert torch.equal(part.weight.any(1), neurons)
        found |= {("head", i, j) for j in range(2) if groups[j].all()}
        found |= {("neuron", i, j) for j in range(INNER) if neurons[j]}
    return found


@torch.no_grad()
def inputs_of(model, batches):
    """What the output projections and the down projections read: name -> (tokens, inputs)."""
    seen, hooks = {}, []
    for name, module in model.named_modules():
        if name.endswith(("o_proj", "down_proj")):

            def keep(_, args, name=name):
                seen.setdefault(name, []).append(args[0].flatten(0, -2).double().numpy())

            hooks.append(module.register_forward_pre_hook(keep))
    for ids in batches:
        model(ids)
    for hook in hooks:
        hook.remove()
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def smaller(model):
    """A shrunk copy, whose outputs are those of the model."""
    small = copy.deepcopy(model)
    shrunk = shrink(small, {"input_ids": tokens(1)[0]})
    torch.testing.assert_close(logits_of(small), logits_of(model), rtol=0, atol=1e-5)
    return small, shrunk


@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_flap_is_the_standardised_fluctuation_and_moves_means_to_biases(sparsity):
    model = llama()
    weights, inputs = weights_of(model), inputs_of(model, tokens())
    pruner = seven_exp.create_pruner("flap", model, sparsity=sparsity, pattern=pattern_of(model))
    pruner.prune(tokens(), loss_fn)
    units = []
    for i in range(DEPTH):
        for kind, name, size in (
            ("head", f"model.layers.{i}.self_attn.o_proj", HEAD_SIZE),
            ("neuron", f"model.layers.{i}.mlp.down_proj", NEURON_SIZE),
        ):
            fluctuation = inputs[name].var(0, ddof=1) * (weights[f"{name}.weight"] ** 2).sum(0)
            standard = (fluctuation - fluctuation.mean()) / fluctuation.std(ddof=1)
            means = standard.reshape(2 if kind == "head" else INNER, -1).mean(1)
            units += [(mean, size, (kind, i, j)) for j, mean in enumerate(means)]
    total = sum(size for _, size, _ in units)
    assert alive(model) == best_units(units, int((1 - sparsity) * total))
    for name, x in inputs.items():
        dense, gone = weights[f"{name}.weight"], ~pruner.masks[f"{name}.weight"].any(0).numpy()
        expected = weights[f"{name}.bias"] + dense[:, gone] @ x[:, gone].mean(0)
        found = model.get_submodule(name).bias.detach().numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    small, shrunk = smaller(model)
    assert {part.unit for part in shrunk} == {"heads", "neurons"}
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_flap_without_biases_moves_none_and_says_where_they_belong():
    model = llama(attention_bias=False, mlp_bias=False)
    pattern = pattern_of(model)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.o_proj\.weight has none: load"):
        seven_exp.create_pruner("flap", model, sparsity=0.5, pattern=pattern)
    pruner = seven_exp.create_pruner("flap", model, sparsity=0.5, pattern=pattern, bias=False)
    weights = weights_of(model)
    pruner.prune(tokens(), loss_fn)
    for name, mask in pruner.masks.items():
        np.testing.assert_array_equal(weights_of(model)[name], weights[name] * mask.numpy())


def test_flap_needs_units_that_other_layers_read():
    model = llama()
    with pytest.raises(ValueError, match="choose pattern coupled"):
        seven_exp.create_pruner("flap", model, sparsity=0.5)


def test_units_of_each_layer_compete_among_themselves():
    model = llama()
    pruner = seven_exp.create_pruner(
        "flap", model, sparsity=0.5, pattern=pattern_of(model), scope="per_layer"
    )
    pruner.prune(tokens(), loss_fn)
    kept = alive(model)
    for i in range(DEPTH):
        counts = [sum(unit[:2] == (kind, i) for unit in kept) for kind in ("head", "neuron")]
        assert counts == [1, INNER // 2]


def gradients_of(model, batches):
    """The gradients of each batch in float64: one mapping per batch."""
    exact, found = copy.deepcopy(model).double(), []
    for ids in batches:
        exact.zero_grad()
        loss_fn(exact, ids).backward()
        found.append({name: w.grad.numpy().copy() for name, w in exact.named_parameters()})
    return found


@pytest.mark.parametrize("second_order", [False, True])
def test_llm_pruner_sums_the_change_of_the_loss_over_coupled_weights(second_order):
    model, sparsity = llama(), 0.5
    weights, gradients = weights_of(model), gradients_of(model, tokens())

    def change(name):
        w = weights[f"model.layers.{i}.{name}.weight"]
        each = np.stack([g[f"model.layers.{i}.{name}.weight"] for g in gradients])
        half = w**2 * (each**2).mean(0) / 2 if second_order else 0.0
        return np.abs(w * each.mean(0) - half)

    kept = set()
    for i in range(DEPTH):
        rows = [change(f"self_attn.{p}_proj").reshape(2, -1).sum(1) for p in "qkv"]
        heads = sum(rows) + change("self_attn.o_proj").sum(0).reshape(2, -1).sum(1)
        rows = [change(f"mlp.{p}_proj").sum(1) for p in ("gate", "up")]
        neurons = sum(rows) + change("mlp.down_proj").sum(0)
        kept |= {("head", i, int(heads.argmax()))}
        kept |= {("neuron", i, int(j)) for j in np.argsort(-neurons)[: INNER // 2]}
    pruner = seven_exp.create_pruner(
        "llm_pruner", model, sparsity=sparsity, pattern=pattern_of(model), second_order=second_order
    )
    pruner.prune(tokens(), loss_fn)
    assert alive(model) == kept
    assert pruner.sparsity == sparsity
    smaller(model)


def test_blocks_that_are_excluded_stay_whole():
    model = llama()
    pruner = seven_exp.create_pruner(
        "llm_pruner", model, sparsity=0.5, pattern=pattern_of(model), exclude=["model.layers.0"]
    )
    pruner.prune(tokens(), loss_fn)
    sizes = {unit[:2] for unit in alive(model)}
    assert sum(unit[1] == 0 for unit in alive(model)) == 2 + INNER
    assert sizes == {(kind, i) for kind in ("head", "neuron") for i in range(DEPTH)}


PLAIN = {"attention_bias": False, "mlp_bias": False}


@torch.no_grad()
def influence(model, batches):
    """1 - the mean cosine between a block's input and its output, from the model's own states."""
    bare, cosines = copy.deepcopy(model), []
    bare.model.norm = torch.nn.Identity()
    for ids in batches:
        states = bare(ids, output_hidden_states=True).hidden_states
        x = np.stack([state.double().numpy() for state in states])
        x /= np.linalg.norm(x, axis=-1, keepdims=True)
        cosines.append((x[:-1] * x[1:]).sum(-1))
    return 1 - np.mean(cosines, axis=(0, 2, 3))


@pytest.mark.parametrize("seed", [0, 1])
def test_short_gpt_removes_the_blocks_that_turn_their_inputs_least(seed, tmp_path):
    import transformers

    model = llama(seed, num_hidden_layers=5, **PLAIN)
    expected = influence(model, tokens())
    pruner = seven_exp.create_pruner("short_gpt", model, sparsity=0.4, pattern="depth")
    pruner.prune(tokens(), loss_fn)
    for name, score in pruner.scores.items():
        block = int(name.split(".")[2])
        if pruner.masks[name].any():
            np.testing.assert_allclose(score.numpy(), expected[block], rtol=1e-5)
    gone = {int(name.split(".")[2]) for name, mask in pruner.masks.items() if not mask.any()}
    assert gone == set(np.argsort(expected)[:2].tolist())
    assert all(mask.all() or not mask.any() for mask in pruner.masks.values())
    small, (part,) = smaller(model)
    kept = tuple(sorted(set(range(5)) - gone))
    assert (part.name, part.unit, part.before, part.after, part.kept) == (
        *("model.layers", "blocks", 5, 3, kept),
    )
    assert len(small.model.layers) == small.config.num_hidden_layers == 3
    assert model.config.num_hidden_layers == 5
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits_of(again), logits_of(small), rtol=0, atol=0)
    # The cache of keys and values has one entry for each block that is left.
    prompt, options = tokens(1)[0][:1], {"max_new_tokens": 4, "do_sample": False}
    assert torch.equal(again.generate(prompt, **options), small.generate(prompt, **options))
    with torch.no_grad():
        cache = small(prompt, use_cache=True).past_key_values
    assert cache.get_seq_length(2) == prompt.shape[1]
    assert len(cache) == 3


def test_kinds_of_layers_stay_with_their_blocks():
    import transformers

    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    config = transformers.Qwen2Config(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=4, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=30, use_sliding_window=True, sliding_window=3,
        layer_types=kinds, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.model.layers[2].parameters():
            if weight.dim() > 1:
                weight.zero_()
    small, _ = smaller(model)
    assert small.config.layer_types == [kinds[i] for i in (0, 1, 3)]


def test_blocks_of_experts_go_with_their_routers():
    import transformers

    config = transformers.MixtralConfig(
        hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=30, num_local_experts=4, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    pruner = seven_exp.create_pruner("short_gpt", model, sparsity=0.33, pattern="depth")
    pruner.prune(tokens(), loss_fn)
    small, (part,) = smaller(model)
    assert (part.unit, part.before, part.after) == ("blocks", 3, 2)
    assert small.config.num_hidden_layers == 2


def test_a_block_whose_biases_still_speak_stays():
    model = llama()
    with torch.no_grad():
        for weight in model.model.layers[1].parameters():
            if weight.dim() > 1:
                weight.zero_()
    small, shrunk = smaller(model)
    assert len(small.model.layers) == small.config.num_hidden_layers == DEPTH
    assert "blocks" not in {part.unit for part in shrunk}


def test_whole_blocks_need_their_pattern_and_compete_with_one_another():
    model = llama(**PLAIN)
    with pytest.raises(ValueError, match="choose pattern depth"):
        seven_exp.create_pruner("short_gpt", model, sparsity=0.5)
    with pytest.raises(ValueError, match="choose global"):
        seven_exp.create_pruner(
            "short_gpt", model, sparsity=0.5, pattern="depth", scope="per_layer"
        )
    with pytest.raises(ValueError, match="which is in no block"):
        seven_exp.create_pruner("magnitude", torch.nn.Linear(3, 4), sparsity=0.5, pattern="depth")
    layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    pruner = seven_exp.create_pruner("short_gpt", layers, sparsity=0.5, pattern="depth", exclude=[])
    with pytest.raises(ValueError, match="differ in shape: it is for the blocks of Transformers"):
        pruner.prune([torch.ones(2, 3)], lambda model, batch: model(batch).sum())
