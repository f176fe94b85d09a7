"""The block walk: published masks, two passes per block, and each block's captured inputs."""

import threading
import weakref
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional

import seven_exp
from seven_exp.pruning.evidence import NoEvidenceError
from seven_exp.pruning.structure import blocks_of

GOLDEN = Path(__file__).parent.parent / "golden" / "block_walk.safetensors"


class Block(nn.Module):
    """Attention with one head and a gated feed-forward part, as in the recorded decoder."""

    def __init__(self, width, inner):
        super().__init__()
        for name in "qkvo":
            setattr(self, name, nn.Linear(width, width, bias=False))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.passes = 0

    def forward(self, x):
        self.passes += 1
        assert not torch.is_grad_enabled()
        h = self.norm1(x)
        heads = [f(h).unsqueeze(1) for f in (self.q, self.k, self.v)]
        attended = functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.o(attended.squeeze(1))
        h = self.norm2(x)
        return x + self.down(functional.silu(self.gate(h)) * self.up(h))


class Decoder(nn.Module):
    def __init__(self, depth=4, width=64, inner=192, vocabulary=96):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Block(width, inner) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


def loss(model, tokens):
    return functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())


def small(depth=3):
    torch.manual_seed(0)
    return Decoder(depth, 8, 12, 20), [torch.randint(20, (2, 5)) for _ in range(3)]


@pytest.mark.parametrize(
    ("setting", "settings"),
    [
        ("wanda_50", {"sparsity": 0.5}),
        ("wanda_75", {"sparsity": 0.75}),
        ("wanda_2_4", {"sparsity": 0.5, "pattern": "2:4"}),
        ("wanda_4_8", {"sparsity": 0.5, "pattern": "4:8"}),
        ("sparsegpt_50", {"sparsity": 0.5}),
        ("sparsegpt_75", {"sparsity": 0.75}),
        ("sparsegpt_2_4", {"sparsity": 0.5, "pattern": "2:4"}),
    ],
)
def test_masks_of_a_whole_model_are_those_of_the_public_implementations(setting, settings):
    recorded, model = load_file(GOLDEN), Decoder()
    start = {n.removeprefix("weights."): t for n, t in recorded.items() if n.startswith("weights.")}
    model.load_state_dict(start)
    pruner = seven_exp.create_pruner(setting.split("_")[0], model, **settings)
    pruner.prune(list(recorded["calibration"]), loss)
    theirs = [recorded[f"{setting}.mask.{name}"].bool() for name in pruner.masks]
    pairs = list(zip(pruner.masks.values(), theirs, strict=True))
    both, either = (sum(int(f(*pair).sum()) for pair in pairs) for f in (torch.mul, torch.add))
    assert both / either >= 0.99
    sizes = [mask.numel() for mask, _ in pairs]
    kept = [int((1 - settings["sparsity"]) * size) for size in sizes]
    assert [int(mask.sum()) for mask, _ in pairs] == kept
    assert pruner.check().ok


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("order", ["blocks", "layers"])
def test_a_block_runs_at_most_twice_for_a_batch(name, order):
    model, batches = small()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, order=order)
    pruner.prune(batches, loss)
    assert all(block.passes <= 2 * len(batches) for block in model.layers)
    assert pruner.sparsity == 0.5


def captured(model, batches):
    """The inputs' norms of each linear map, as hooks of its own see them in a plain pass."""
    squares, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def add(_, args, name=f"{name}.weight"):
                inputs = args[0].flatten(0, -2).float()
                squares[name] = squares.get(name, 0) + inputs.square().sum(0)

            hooks.append(module.register_forward_pre_hook(add))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    return {name: total.sqrt() for name, total in squares.items()}


@pytest.mark.parametrize("order", ["blocks", "layers"])
def test_a_block_gets_what_the_pruned_ones_before_it_give(order, wanda_scores):
    model, batches = small()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    scores = wanda_scores(model)
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5, order=order, scope="per_layer")
    pruner.prune(batches, loss)
    masks = pruner.masks
    seen = {name: (score / start[name].abs())[0] for name, score in scores.items()}
    for i in range(3):
        mixed, _ = small()
        for name, parameter in mixed.named_parameters():
            later = name.startswith("layers.") and int(name.split(".")[1]) >= i
            if name in masks and not later:
                parameter.data = start[name] * masks[name]
        expected = captured(mixed, batches)
        names = [name for name in masks if name.startswith(f"layers.{i}.")]
        if order == "layers":
            names = [name for name in names if name.split(".")[2] in "qkv"]
        for name in names:
            torch.testing.assert_close(seen[name], expected[name])


def test_a_solver_s_scores_are_not_kept():
    model, batches = small()
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    pruner.prune(batches, loss)
    with pytest.raises(
        RuntimeError, match="wanda keeps no scores: it computes them from each layer's inputs"
    ):
        _ = pruner.scores


def test_what_competes_across_blocks_is_measured_in_the_dense_model():
    model, batches = small()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    expected = captured(model, batches)
    for block in model.layers:
        block.passes = 0
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5, scope="global")
    pruner.prune(batches, loss)
    assert [block.passes for block in model.layers] == [len(batches)] * 3
    scores = {n: start[n].abs() * expected[n] for n in pruner.masks}
    flat = torch.cat([score.flatten() for score in scores.values()])
    lowest = flat.sort(descending=True).values[len(flat) // 2 - 1]
    for name, mask in pruner.masks.items():
        assert torch.equal(mask, scores[name] >= lowest)


def test_memory_is_that_of_one_block_whatever_the_depth():
    def peak(depth):
        """The most inputs of layers and blocks alive at a time."""
        model, batches = small(depth)
        inputs, counts = [], []

        def count(module, args):
            inputs.append(weakref.ref(args[0]))
            counts.append(len({id(x()) for x in inputs if x() is not None}))

        for module in model.layers.modules():
            if isinstance(module, Block | nn.Linear):
                module.register_forward_pre_hook(count)
        seven_exp.create_pruner("sparsegpt", model, sparsity=0.5).prune(batches, loss)
        return max(counts)

    assert peak(9) == peak(3)


def test_nothing_of_the_walk_remains():
    model, batches = small()
    model.train()
    state = torch.random.get_rng_state()

    def noisy(model, tokens):
        torch.rand(3)
        return loss(model, tokens)

    seven_exp.create_pruner("sparsegpt", model, sparsity=0.5).prune(batches, noisy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("broken", [0, 2])
def test_an_error_in_a_pass_arrives_and_ends_the_others(broken):
    model, batches = small()
    calls = []

    def failing(model, tokens):
        model.embed_tokens(tokens)
        calls.append(tokens)
        if len(calls) == broken + 1:
            raise FloatingPointError("of this batch")
        return loss(model, tokens)

    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    with pytest.raises(FloatingPointError, match="of this batch"):
        pruner.prune(batches, failing)
    assert all(mask.all() for mask in pruner.masks.values())
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not any("forward" in vars(module) for module in model.modules())


def test_a_loss_that_calls_no_layer_is_an_error():
    model, batches = small()
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    with pytest.raises(NoEvidenceError, match="wanda has captured no layer's inputs"):
        pruner.prune(batches, lambda m, tokens: tokens.sum())


def test_an_order_that_is_none_is_refused():
    with pytest.raises(ValueError, match="unknown order 'block': did you mean 'blocks'"):
        seven_exp.create_pruner("wanda", small()[0], sparsity=0.5, order="block")


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    return LlamaForCausalLM(config), lambda m, x: m(x).logits.square().mean()


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    return model, lambda m, x: m(x, attention_mask=(x > 3).long()).logits.square().mean()


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=30, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    return GPT2LMHeadModel(config), lambda m, x: m(x).logits.square().mean()


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=30, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return model, lambda m, x: m(input_ids=x, decoder_input_ids=x[:, :4]).logits.square().mean()


def vit():
    model = torchvision.models.VisionTransformer(
        image_size=8, patch_size=4, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=24
    )
    nn.init.normal_(model.heads.head.weight)
    return model, lambda m, x: m(images(x, 8)).square().mean()


def encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    model = nn.Sequential(nn.Embedding(30, 16), nn.TransformerEncoder(layer, 3))
    return model, lambda m, x: m(x).square().mean()


def mobilenet():
    model = torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.2)
    return model, lambda m, x: m(images(x, 32)).square().mean()


def images(x, size):
    return torch.sin(x.sum(1).view(-1, 1, 1, 1) * torch.arange(3 * size**2).view(3, size, size))


MODELS = {f.__name__: f for f in (llama, bert, gpt2, t5, vit, encoder, mobilenet)}
BLOCKS = {"llama": 3, "bert": 3, "gpt2": 3, "t5": 6, "vit": 3, "encoder": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.filterwarnings("ignore:.*weights in matrices are prunable")
@pytest.mark.filterwarnings("error:.*stay dense")
def test_all_kinds_of_models_are_walked(kind, name):
    torch.manual_seed(0)
    model, loss_fn = MODELS[kind]()
    batches = [torch.randint(30, (2, 9)) for _ in range(2)]
    blocks = [b for b in blocks_of(model) if any(p.dim() > 1 for p in b.parameters())]
    assert len(blocks) == BLOCKS.get(kind, len(blocks))
    passes = dict.fromkeys(blocks, 0)
    for block in blocks:
        forward = block.forward

        def counted(*args, block=block, forward=forward, **kwargs):
            passes[block] += 1
            return forward(*args, **kwargs)

        block.forward = counted
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5)
    pruner.prune(batches, loss_fn)
    assert all(0 < count <= 2 * len(batches) for count in passes.values())
    rows = {"wanda": 0.12, "sparsegpt": 0.01}
    assert abs(pruner.sparsity - 0.5) < rows[name]
    assert pruner.check().ok
    for mask in pruner.masks.values():
        assert 0 < mask.sum() < mask.numel()
    assert all(weight.isfinite().all() for weight in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_gpt2_s_transposed_weights_are_pruned_along_their_inputs(name):
    torch.manual_seed(0)
    model, loss_fn = gpt2()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, pattern="2:4")
    pruner.prune([torch.randint(30, (2, 9))], loss_fn)
    for mask in pruner.masks.values():
        inputs, outputs = mask.shape
        assert (mask.view(inputs // 4, 4, outputs).sum(1) == 2).all()


def test_groups_of_a_convolution_are_judged_by_their_own_inputs():
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 8, 1, groups=2, bias=False)
    x = torch.randn(5, 8, 3, 3)
    x[:, 4] *= 100
    pruner = seven_exp.create_pruner("wanda", convolution, sparsity=0.5, exclude=[])
    before = convolution.weight.detach().clone()
    pruner.prune([x], lambda m, batch: m(batch).sum())
    fed = x.square().sum((0, 2, 3)).sqrt().view(2, 1, 4)
    scores = before.view(2, 4, 4).abs() * fed
    best = scores.topk(2, dim=2).indices
    expected = torch.zeros(2, 4, 4, dtype=torch.bool).scatter_(2, best, True)
    assert torch.equal(pruner.masks["weight"].view(2, 4, 4), expected)


def test_what_a_model_uses_again_is_judged_by_all_its_uses():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 6), torch.randn(9, 6)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x).tanh())

    before = layer.weight.detach().clone()
    with torch.no_grad():
        fed = torch.cat([x, layer(x).tanh()]).norm(dim=0)
    pruner = seven_exp.create_pruner("wanda", Loop(), sparsity=0.5)
    pruner.prune([x], lambda m, batch: m(batch).sum())
    best = (before.abs() * fed).topk(3, dim=1).indices
    expected = torch.zeros(6, 6, dtype=torch.bool).scatter_(1, best, True)
    assert torch.equal(pruner.masks["layer.weight"], expected)


def test_autocast_around_the_walk_holds_in_it():
    model, batches = small()
    dtypes = set()

    def noting(model, tokens):
        logits = model(tokens)
        return logits.float().sum()

    model.layers[0].q.register_forward_hook(lambda m, args, out: dtypes.add(out.dtype))
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        pruner.prune(batches, noting)
    assert dtypes == {torch.bfloat16}


def test_autocast_gives_pruned_weights_no_old_values(wanda_scores):
    model, batches = small()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    scores = wanda_scores(model)
    pruner = seven_exp.create_pruner("wanda", model, sparsity=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        pruner.prune(batches, loss)
        mixed, _ = small()
        mixed.layers[0].load_state_dict(model.layers[0].state_dict())
        expected = captured(mixed, batches)
    for name in (name for name in pruner.masks if name.startswith("layers.1.")):
        seen = (scores[name] / start[name].abs())[0]
        torch.testing.assert_close(seen, expected[name], rtol=1e-3, atol=1e-3)


def test_blocks_run_in_the_thread_of_the_walk():
    # Libraries hold buffers for each thread that multiplies matrices.
    model, batches = small()
    threads = set()
    for layer in model.layers.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda *_: threads.add(threading.current_thread()))
    seven_exp.create_pruner("wanda", model, sparsity=0.5).prune(batches, loss)
    assert threads == {threading.current_thread()}


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
def test_half_precision_is_walked(name):
    model, batches = small()
    model.bfloat16()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5)
    pruner.prune(batches, loss)
    assert pruner.sparsity == 0.5
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())
