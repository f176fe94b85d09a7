"""Properties of every pruner, for any criterion."""

import copy
import inspect
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seven_exp
from seven_exp.pruning import (
    PRUNERS,
    SCHEDULES,
    NoEvidenceError,
    Solver,
    State,
    StayGone,
    build_method,
    read_by,
)
from seven_exp.pruning.method import needs_model, regrows, starts_sparse

# Methods that need a pattern of their own are for Transformers: tests/test_structured.py.
PLAIN = [name for name in PRUNERS if name not in ("flap", "short_gpt")]
PRUNING = [name for name in PLAIN if PRUNERS[name].prunes]
# lambda determines the sparsity; the requested one is an upper bound.
EMERGENT = ["soft_movement"]
# A random draw does not follow its weight when layers or neurons change places.
DETERMINISTIC = [
    name for name in PRUNING if name != "random" and not starts_sparse(build_method(name, {}))
]


def net(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    # Tanh, not ReLU: an inactive unit's gradients tie at zero, and position decides ties.
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 7), nn.Tanh(), nn.Linear(7, 5)
    ).to(dtype)


PRUNABLE = 27 + 84 + 35


def batches(count=6, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(8, 1, 4, 4, generator=generator).to(dtype),
            torch.randint(5, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def optimizer_for(model):
    # Momentum and decay are what would bring pruned weights back.
    return torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def needed(name, optimizer):
    """The optimizer, for the pruners that read it."""
    return {"optimizer": optimizer} if "optimizer" in read_by(name) else {}


def train(model, name, *, sparsity=0.6, steps=12, tail=5, watch=None, optimizer=None, **settings):
    """A short run of any pruner in the loop that the documentation shows."""
    optimizer = optimizer or optimizer_for(model)
    when = settings.get("when") or PRUNERS[name].when
    window = {"begin_step": 2, "end_step": steps} if when == "during" else {}
    pruner = seven_exp.create_pruner(
        name, model, sparsity=sparsity, **window, **needed(name, optimizer), **settings
    )
    if when == "before":
        pruner.prune(batches(), loss_fn)
    supply = batches()
    for t in range(steps + tail):
        if when == "after" and t == steps:
            pruner.prune(batches(), loss_fn)
        loss_fn(model, supply[t % len(supply)]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        if watch:
            watch(pruner)
    return pruner


def zeros(model):
    return {n: p.detach() == 0 for n, p in model.named_parameters() if p.ndim > 1}


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["global", "per_layer"])
@pytest.mark.parametrize("name", PRUNING)
@settings(max_examples=6)
@given(sparsity=st.floats(0.0, 0.97))
def test_the_final_count_is_exact(name, scope, sparsity):
    model = net()
    pruner = train(model, name, sparsity=sparsity, scope=scope, steps=10, tail=2)
    sizes = {"global": [PRUNABLE], "per_layer": [27, 84, 35]}[scope]
    kept = [int(mask.sum()) for mask in pruner.masks.values()]
    counts = [sum(kept)] if scope == "global" else kept
    wanted = [int((1 - sparsity) * n + 1e-6) for n in sizes]
    if name in EMERGENT:
        assert all(count >= least for count, least in zip(counts, wanted, strict=True))
    else:
        assert counts == wanted
    assert pruner.sparsity == pytest.approx(1 - sum(kept) / PRUNABLE)
    assert pruner.layer_counts == {
        layer: (mask.numel(), int(mask.sum())) for layer, mask in pruner.masks.items()
    }


@pytest.mark.parametrize(
    ("name", "when"),
    [(name, PRUNERS[name].when) for name in PRUNING]
    + [(name, "before") for name in PRUNING if PRUNERS[name].when == "after"],
)
def test_pruned_weights_are_exactly_zero_after_every_step(name, when):
    model = net()

    def watch(pruner):
        for layer, mask in pruner.masks.items():
            weight = model.get_parameter(layer).detach()
            assert torch.equal(weight[~mask], torch.zeros(int((~mask).sum())))
            assert not torch.signbit(weight[~mask]).any()
            assert weight.isfinite().all()

    train(model, name, watch=watch, when=when)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", list(SCHEDULES))
@pytest.mark.parametrize("name", [n for n in PRUNING if regrows(build_method(n, {})) is StayGone])
def test_masks_are_nested(name, schedule):
    seen = []
    train(net(), name, schedule=schedule, watch=lambda p: seen.append(copy.deepcopy(p.masks)))
    for earlier, later in itertools.pairwise(seen):
        for layer in earlier:
            assert not (later[layer] & ~earlier[layer]).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_order_and_names_of_layers_do_not_matter(name):
    model = net()
    reordered = nn.ModuleDict({"z": model[5], "a": model[3], "m": model[0]})

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts = copy.deepcopy(reordered)

        def forward(self, x):
            hidden = self.parts["m"](x).tanh().flatten(1)
            return self.parts["z"](self.parts["a"](hidden).tanh())

    renamed = Renamed()
    one = train(model, name, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)).masks
    two = train(renamed, name, optimizer=torch.optim.SGD(renamed.parameters(), lr=0.1)).masks
    for mine, theirs in (("0", "m"), ("3", "a"), ("5", "z")):
        assert torch.equal(one[f"{mine}.weight"], two[f"parts.{theirs}.weight"])


# What is done column by column, or in blocks of neighbours, depends on their order by design.
ORDERED = ["sparsegpt", "thanos", "obert", "obert_pre"]


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name not in ORDERED])
def test_neurons_permuted_give_masks_permuted(name):
    model, permuted = net(), net()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    with torch.no_grad():
        for layer, dimension in ((3, 0), (5, 1)):
            permuted[layer].weight.copy_(model[layer].weight.index_select(dimension, order))
        permuted[3].bias.copy_(model[3].bias[order])
    # Adam's first step gives movement's scores one size and so ties: look at later ones.
    rare = {"interval": 5} if PRUNERS[name].when == "during" else {}
    one = train(model, name, optimizer=torch.optim.SGD(model.parameters(), lr=0.05), **rare)
    two = train(permuted, name, optimizer=torch.optim.SGD(permuted.parameters(), lr=0.05), **rare)
    one, two = one.masks, two.masks
    assert torch.equal(one["3.weight"][order], two["3.weight"])
    assert torch.equal(one["5.weight"][:, order], two["5.weight"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNING)
def test_the_same_run_twice_gives_the_same_masks(name):
    one, two = (train(net(), name).masks for _ in range(2))
    assert all(torch.equal(one[layer], two[layer]) for layer in one)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNING)
def test_state_goes_on_where_it_was(name, tmp_path):
    """Saved and loaded before every step, a run ends with the same masks, scores and weights."""
    straight_model, broken_model = net(), net()
    straight = train(straight_model, name)

    def reload(pruner):
        path = tmp_path / "state.pt"
        torch.save(pruner.state_dict(), path)
        pruner._masks.set([torch.ones_like(mask) for mask in pruner.masks.values()])
        pruner.state, pruner._t = State(), 0
        pruner.load_state_dict(torch.load(path, weights_only=True))

    resumed = train(broken_model, name, watch=reload)
    for layer, mask in straight.masks.items():
        assert torch.equal(mask, resumed.masks[layer])
        if not isinstance(straight.method, Solver):
            assert torch.equal(straight.scores[layer], resumed.scores[layer])
    for one, two in zip(straight_model.parameters(), broken_model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"sparsity": 0.9}, "sparsities"),
        ({"scope": "per_layer"}, "scope"),
        ({"schedule": "linear"}, "schedule"),
        ({"pattern": "rows"}, "pattern"),
    ],
)
def test_state_of_other_settings_is_refused(other, words):
    settings = {"sparsity": 0.5, "end_step": 9}
    state = seven_exp.create_pruner("seven_dyn", net(), **settings).state_dict()
    pruner = seven_exp.create_pruner("seven_dyn", net(), **settings | other)
    with pytest.raises(ValueError, match=words):
        pruner.load_state_dict(state)


@pytest.mark.parametrize(("name", "interval"), [("rigl", 3), ("soft_movement", 3)])
def test_a_state_of_an_older_version_goes_on(name, interval):
    """RigL's score was called "gradient", and soft movement kept 1 - (1 - progress)^3 as "rise"."""
    own = {"tau": 0.6, "penalty": 1.0} if name == "soft_movement" else {}
    straight_model, broken_model = net(), net()
    straight = train(straight_model, name, interval=interval, **own)

    def reload(pruner):
        state = pruner.state_dict()
        if name == "rigl" and state["state"]:
            state["state"] = {"gradient": state["state"]["score"]}
        progress = state["numbers"].pop("progress", None)
        if name == "soft_movement" and progress is not None:
            state["numbers"]["rise"] = 1 - (1 - progress) ** 3
        pruner.state = State()
        pruner.load_state_dict(state)

    resumed = train(broken_model, name, interval=interval, watch=reload, **own)
    for layer, mask in straight.masks.items():
        assert torch.equal(mask, resumed.masks[layer])
        assert torch.equal(straight.scores[layer], resumed.scores[layer])
    assert any(not mask.all() for mask in straight.masks.values())


def test_state_of_other_shapes_is_refused():
    one, two = (nn.Sequential(nn.Linear(*shape)) for shape in ((6, 4), (4, 6)))
    state = seven_exp.create_pruner("magnitude", one, sparsity=0.5).state_dict()
    with pytest.raises(ValueError, match="shapes"):
        seven_exp.create_pruner("magnitude", two, sparsity=0.5).load_state_dict(state)


@pytest.mark.parametrize("name", ["seven_dyn", "taylor_dyn", "platon", "movement", "rigl", "obert"])
def test_a_step_without_gradients_is_a_mistake(name):
    model = net()
    optimizer = optimizer_for(model)
    pruner = seven_exp.create_pruner(
        name, model, sparsity=0.5, end_step=9, exclude=[], **needed(name, optimizer)
    )
    loss_fn(model, batches()[0]).backward()
    optimizer.step()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="call step\\(\\) after backward"):
        pruner.step()


@pytest.mark.parametrize("name", ["grasp", "synflow"])
def test_what_looks_at_the_model_cannot_do_so_in_a_step(name):
    with pytest.raises(RuntimeError, match="call prune\\(\\) first"):
        seven_exp.create_pruner(name, net(), sparsity=0.5).step()


@pytest.mark.parametrize("name", ["snip", "seven_pre", "grasp", "fisher_pre"])
def test_a_loss_that_is_not_finite_ranks_nothing(name):
    model, batch = net(), batches()[0]
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5)
    with pytest.raises(FloatingPointError, match="nan"):
        pruner.prune([(batch[0] * torch.nan, batch[1])], loss_fn)
    assert pruner.sparsity == 0


def test_a_model_may_be_cast_later():
    model = net()
    pruner = seven_exp.create_pruner(
        "movement", model, sparsity=0.5, end_step=9, exclude=[], schedule="linear"
    )
    model.to(torch.bfloat16)
    for batch in batches(9, torch.bfloat16):
        loss_fn(model, batch).backward()
        pruner.step()
    assert pruner.sparsity == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "schedule", "words"),
    [
        ("seven_dyn", "alternating", "never lets a pruned weight return"),
        ("rigl", "cubic", "choose constant"),
    ],
)
def test_a_schedule_that_makes_no_sense_here_is_told(name, schedule, words):
    model = net()
    settings = {"end_step": 9, "schedule": schedule, **needed(name, optimizer_for(model))}
    with pytest.warns(UserWarning, match=words):
        seven_exp.create_pruner(name, model, sparsity=0.5, **settings)


def test_state_of_another_pruner_is_refused():
    state = seven_exp.create_pruner("snip", net(), sparsity=0.5).state_dict()
    with pytest.raises(ValueError, match="does not fit"):
        seven_exp.create_pruner("magnitude", net(), sparsity=0.5).load_state_dict(state)


@pytest.mark.parametrize("name", PRUNING)
def test_the_model_stays_an_ordinary_one(name):
    model = net()
    keys = list(model.state_dict())
    pruner = train(model, name)
    assert list(model.state_dict()) == keys
    assert not any(module._forward_hooks for module in model.modules())
    clone = copy.deepcopy(model)
    x = batches()[0][0]
    assert torch.equal(clone(x), model(x))
    twin_model, twin = copy.deepcopy((model, pruner))
    assert torch.equal(twin.masks["3.weight"], pruner.masks["3.weight"])
    assert twin.layers[0].module is twin_model[0]


STEPPING = [name for name in PRUNING if not needs_model(build_method(name, {}))]


@pytest.mark.parametrize("name", STEPPING)
def test_bf16_models(name):
    model = net(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    pruner = seven_exp.create_pruner(
        name, model, sparsity=0.6, end_step=6, when="during", scope="global",
        **needed(name, optimizer),
    )  # fmt: skip
    for batch in batches(dtype=torch.bfloat16):
        loss_fn(model, batch).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    kept = sum(int(mask.sum()) for mask in pruner.masks.values())
    assert kept == (PRUNABLE if name in EMERGENT else int(0.4 * PRUNABLE))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", STEPPING)
def test_cuda_gives_the_masks_of_the_cpu(name):
    gradients = [[torch.randn_like(p) for p in net().parameters()] for _ in range(6)]
    masks = []
    for device in ("cpu", "cuda"):
        model = net().to(device)
        settings = needed(name, optimizer_for(model))
        pruner = seven_exp.create_pruner(
            name, model, sparsity=0.6, end_step=6, when="during", **settings
        )
        for step in gradients:
            for parameter, gradient in zip(model.parameters(), step, strict=True):
                parameter.grad = gradient.to(device)
            pruner.step()
        masks.append(pruner.masks)
    assert all(torch.equal(mask, masks[1][layer].cpu()) for layer, mask in masks[0].items())


@pytest.mark.slow
def test_compiled_models():
    model = net()
    compiled = torch.compile(model, backend="eager")
    eager_masks = train(net(), "seven_dyn").masks
    compiled_masks = train(compiled, "seven_dyn").masks
    assert list(compiled_masks) == ["0.weight", "3.weight", "5.weight"]
    assert all(torch.equal(eager_masks[layer], compiled_masks[layer]) for layer in eager_masks)
    assert (model[3].weight[~compiled_masks["3.weight"]] == 0).all()


def test_attention_conv1d_and_shared_weights_in_one_model():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, 8, 3, padding=1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.one = nn.Linear(8, 8)
            self.two = nn.Linear(8, 8)
            self.two.weight = self.one.weight

        def forward(self, x):
            x = self.conv(x).transpose(1, 2)
            return self.two(self.one(self.attention(x, x, x, need_weights=False)[0]))

    torch.manual_seed(0)
    model = Mixed()
    optimizer = optimizer_for(model)
    pruner = seven_exp.create_pruner("seven_dyn", model, sparsity=0.75, end_step=4)
    for _ in range(6):
        model(torch.randn(3, 2, 5)).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    assert list(pruner.masks) == [
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "one.weight",
    ]
    n = 8 * 2 * 3 + 24 * 8 + 64 + 64
    assert sum(int(m.sum()) for m in pruner.masks.values()) == n // 4
    assert all(
        int((p == 0).sum()) == int((~pruner.masks[k]).sum())
        for k, p in model.named_parameters()
        if k in pruner.masks
    )


def test_a_mask_survives_new_parameters():
    """load_state_dict(assign=True) puts other Parameter objects in place."""
    model = net()
    pruner = train(model, "magnitude_dyn")
    dense = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    model.load_state_dict({k: nn.Parameter(v) for k, v in dense.items()}, assign=True)
    pruner.step()
    assert torch.equal(model[3].weight.detach(), pruner.masks["3.weight"].float())


def test_outside_the_window_nothing_is_pruned_or_gathered():
    model = net()
    pruner = seven_exp.create_pruner("seven_dyn", model, sparsity=0.9, begin_step=3, end_step=5)
    states = []
    for _ in range(7):
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        pruner.step()
        states.append((round(pruner.sparsity, 3), pruner.state.numbers.get("t", 0)))
    full = round(1 - int(0.1 * PRUNABLE) / PRUNABLE, 3)
    half = round(1 - int((0.1 + 0.9 / 8) * PRUNABLE) / PRUNABLE, 3)
    assert states == [(0, 0), (0, 0), (0, 0), (half, 1), (full, 2), (full, 2), (full, 2)]


def test_pruning_before_training_leaves_survivors_grads_and_mode_alone():
    model = net()
    model.eval()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    pruner = seven_exp.create_pruner("seven_pre", model, sparsity=0.7, rounds=10)
    pruner.prune(batches(), loss_fn)
    assert not model.training
    for name, p in model.named_parameters():
        mask = pruner.masks.get(name, torch.ones_like(p, dtype=torch.bool))
        assert torch.equal(p.detach(), before[name] * mask)
        assert p.grad is None


def test_seven_pre_is_the_loop_of_its_rounds():
    """`prune` does what one would write by hand: a gradient at the masked model, then a step."""
    by_hand, by_prune = net(), net()
    one = seven_exp.create_pruner("seven_pre", by_hand, sparsity=0.8, rounds=9)
    supply = batches()
    for t in range(9):
        by_hand.zero_grad()
        loss_fn(by_hand, supply[t % len(supply)]).backward()
        one.step()
    two = seven_exp.create_pruner("seven_pre", by_prune, sparsity=0.8, rounds=9)
    two.prune(batches(), loss_fn)
    assert all(torch.equal(one.masks[layer], two.masks[layer]) for layer in one.masks)


def test_magnitude_after_training_waits_for_prune():
    model = net()
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5)
    pruner.step()
    assert pruner.sparsity == 0
    pruner.prune()
    assert pruner.sparsity == 0.5


def test_dense_keeps_everything():
    pruner = train(net(), "dense", sparsity=0.9)
    assert pruner.sparsity == 0
    assert pruner.target == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "magnitud"}, "unknown pruner 'magnitud': did you mean 'magnitude'"),
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"sparsity": 1.3}, "sparsity is 1.3"),
        ({"sparsity": "abc"}, "sparsity is 'abc'"),
        ({"sparsity": float("nan")}, "sparsity is nan"),
        ({"schedule": "cubik"}, "did you mean 'cubic'"),
        ({"scope": "globl"}, "did you mean 'global'"),
        ({"end_step": None}, "give end_step"),
        ({"begin_step": 9}, "never reach its target"),
        ({"interval": 100}, "interval is 100"),
        ({"alpha1": 0.5}, "did you mean 'alpha_1'"),
        ({"when": "now"}, "when"),
    ],
)
def test_mistakes_are_named(settings, words):
    arguments = {"name": "seven_dyn", "sparsity": 0.5, "end_step": 9, **settings}
    with pytest.raises(ValueError, match=words):
        seven_exp.create_pruner(arguments.pop("name"), net(), **arguments)


@pytest.mark.slow
def test_a_frozen_weight_has_no_gradient_in_training_but_one_for_pruning_outside_it():
    model, free = net(), net()
    model[3].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"3\.weight is frozen"):
        seven_exp.create_pruner("seven_dyn", model, sparsity=0.5, end_step=5)
    seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=5).step()
    pruners = []
    for name in ("snip", "grasp", "synflow", "seven_pre"):
        for one in (model, free):
            one.load_state_dict(net().state_dict())
            pruners.append(seven_exp.create_pruner(name, one, sparsity=0.5))
            pruners[-1].prune(batches(), loss_fn)
        frozen_masks, masks = (pruner.masks for pruner in pruners[-2:])
        assert all(torch.equal(mask, frozen_masks[layer]) for layer, mask in masks.items())
    assert not model[3].weight.requires_grad


def test_pruning_before_training_needs_batches():
    pruner = seven_exp.create_pruner("snip", net(), sparsity=0.5)
    with pytest.raises(ValueError, match="needs batches"):
        pruner.prune()
    with pytest.raises(ValueError, match="no batches"):
        pruner.prune([], loss_fn)
    with pytest.raises(ValueError, match="no batches left"):
        seven_exp.create_pruner("seven_pre", net(), sparsity=0.5).prune(iter(batches()), loss_fn)


def test_during_has_no_prune():
    with pytest.raises(RuntimeError, match="call step"):
        seven_exp.create_pruner("seven_dyn", net(), sparsity=0.5, end_step=5).prune()


def test_every_hyperparameter_is_keyword_only():
    """So that a YAML's keys can be checked against the signature."""
    for name in PRUNERS:
        for parameter in inspect.signature(PRUNERS[name].make).parameters.values():
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert parameter.annotation is not parameter.empty


@pytest.mark.parametrize("name", ["snip", "grasp"])
@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (lambda m, b: {"loss": loss_fn(m, b)}, "returned a dict: return a scalar tensor"),
        (lambda m, b: loss_fn(m, b).item(), "returned a float: return a scalar tensor"),
        (lambda m, b: loss_fn(m, b).detach(), "has no gradient: do not detach it"),
        (lambda m, b: loss_fn(m, b).expand(3), r"of shape \(3,\): return a scalar, such as"),
        ([1], "loss_fn is a list: pass a function"),
    ],
)  # fmt: skip
def test_a_loss_that_is_none_is_named(name, loss, words):
    pruner = seven_exp.create_pruner(name, net(), sparsity=0.5)
    with pytest.raises(ValueError, match=words):
        pruner.prune(batches(), loss)
    assert pruner.sparsity == 0


def test_a_loss_of_another_model_is_named():
    other = net()
    pruner = seven_exp.create_pruner("snip", net(), sparsity=0.5)
    with pytest.raises(NoEvidenceError, match="must call the model that it receives"):
        pruner.prune(batches(), lambda _, batch: loss_fn(other, batch))


def test_a_state_dict_is_no_model_and_no_pruners_state():
    state = net().state_dict()
    with pytest.raises(ValueError, match=r"the model is a OrderedDict: pass a torch\.nn\.Module"):
        seven_exp.create_pruner("magnitude", state, sparsity=0.5)
    pruner = seven_exp.create_pruner("magnitude", net(), sparsity=0.5)
    for act in (pruner.apply, pruner.check):
        with pytest.raises(ValueError, match="the model is a OrderedDict"):
            act(state)
    with pytest.raises(ValueError, match=r"pass what pruner\.state_dict\(\) returned"):
        pruner.load_state_dict(state)


def test_name_and_model_the_wrong_way_round():
    with pytest.raises(ValueError, match="the pruner is a Sequential: give a name"):
        seven_exp.create_pruner(nn.Sequential(nn.Linear(2, 2)), "magnitude", sparsity=0.5)
