"""The values that pruned weights return with, and the optimizer's moments at pruned positions."""

import copy
import gc

import pytest
import torch
from torch import nn

import seven_exp

BEGIN, END, STEPS = 2, 22, 26
LR, SPARSITY = 0.3, 0.7
TAU, PENALTY = 0.4, 0.3

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.5),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "nesterov, decay": lambda p: torch.optim.SGD(
        p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.02, weight_decay=0.5),
    "adam, amsgrad": lambda p: torch.optim.Adam(p, lr=0.02, amsgrad=True),
}
HYPERPARAMETERS = {
    "movement": {"lr": LR},
    "soft_movement": {"lr": LR, "tau": TAU, "penalty": PENALTY},
    "straight_through": {},
}
DENSE = list(HYPERPARAMETERS)


def net(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(7, 9, bias=False), nn.Tanh(), nn.Linear(9, 4, bias=False))
    return model.double()


def batch(t):
    generator = torch.Generator().manual_seed(100 + t)
    x = torch.randn(12, 7, generator=generator, dtype=torch.float64)
    return x, torch.randint(4, (12,), generator=generator)


def loss_fn(model, data):
    return nn.functional.cross_entropy(model(data[0]), data[1])


def best(scores, count):
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.flatten().argsort(descending=True, stable=True)[:count]] = True
    return mask.view_as(scores)


def wanted(t):
    return SPARSITY * (1 - (1 - (t - BEGIN + 1) / (END - BEGIN)) ** 3)


def chosen_anew(name, scores, dense, t):
    """The masks of step t, stated independently."""
    if name == "soft_movement":
        rise = 1 - (1 - (t - BEGIN + 1) / (END - BEGIN)) ** 3
        return [s.sigmoid() > TAU * rise for s in scores]
    ranks = scores if name == "movement" else [w.abs() for w in dense]
    if name == "movement":
        return [best(s, int((1 - wanted(t)) * s.numel() + 1e-6)) for s in ranks]
    together = torch.cat([rank.flatten() for rank in ranks])
    mask = best(together, int((1 - wanted(t)) * together.numel() + 1e-6))
    return [
        m.view_as(s) for m, s in zip(mask.split([s.numel() for s in ranks]), ranks, strict=True)
    ]


def by_the_paper(name, make, *, interval=1):
    """Dense weights W in a model that computes with W * M; yields the masks and W after each step.

    Movement (Sanh et al., arXiv 2005.07683, eqs. 1 and 2): S has the gradient dL/dW' * W, W the
    gradient dL/dW' * M. Straight-through magnitude (Lin et al., arXiv 2006.07253, eq. 6): W has the
    gradient dL/dW'.
    """
    dense = [layer.weight.detach().clone().requires_grad_() for layer in (net()[0], net()[2])]
    scores = [torch.zeros_like(w, requires_grad=True) for w in dense]
    masks = [torch.ones_like(w, dtype=torch.bool) for w in dense]
    optimizer, adam = make(dense), torch.optim.Adam(scores, lr=LR)
    rise = 0.0
    for t in range(STEPS):
        used = [(w.detach() * m).requires_grad_() for w, m in zip(dense, masks, strict=True)]
        x, y = batch(t)
        loss = nn.functional.cross_entropy((x @ used[0].T).tanh() @ used[1].T, y)
        slopes = torch.autograd.grad(loss, used)
        for w, s, g, m in zip(dense, scores, slopes, masks, strict=True):
            chance = s.detach().sigmoid()
            push = PENALTY * rise * chance * (1 - chance) / s.numel() / len(scores)
            s.grad = g * w.detach() + (push if name == "soft_movement" else 0)
            w.grad = g.clone() if name == "straight_through" else g * m
        optimizer.step()
        if BEGIN <= t < END:
            adam.step()
            if (t - BEGIN + 1) % interval == 0:
                masks = chosen_anew(
                    name, [s.detach() for s in scores], [w.detach() for w in dense], t
                )
                rise = 1 - (1 - (t - BEGIN + 1) / (END - BEGIN)) ** 3
        yield masks, [w.detach() for w in dense]


def pruner_of(name, model, optimizer=None, **settings):
    settings = {"begin_step": BEGIN, "end_step": END, "sparsity": SPARSITY, **settings}
    if name == "soft_movement":
        settings["sparsity"] = 0.98
    return seven_exp.create_pruner(
        name, model, exclude=[], optimizer=optimizer, **HYPERPARAMETERS.get(name, {}), **settings
    )


def train(model, optimizer, pruner, steps=range(STEPS), backward=None):
    for t in steps:
        (backward or (lambda data: loss_fn(model, data).backward()))(batch(t))
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        yield list(pruner.masks.values()), [layer.weight.detach() for layer in (model[0], model[2])]


def assert_alike(found, expected):
    """Masks at every step, and weights for as long as pruned ones may return."""
    returned, before = 0, None
    for t, ((masks, weights), (right, dense)) in enumerate(zip(found, expected, strict=True)):
        for mask, weight, other, w in zip(masks, weights, right, dense, strict=True):
            assert torch.equal(mask, other), t
            torch.testing.assert_close(weight, w * other, rtol=1e-9, atol=1e-12)
        whole = torch.cat([mask.flatten() for mask in masks])
        returned += 0 if before is None else int((whole & ~before).sum())
        before = whole
    assert returned > 0, "the case must hold weights that return"


@pytest.mark.parametrize("interval", [1, 4])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", DENSE)
def test_dense_weights_are_trained_as_the_paper_says(name, optimizer, interval):
    model = net()
    ours = OPTIMIZERS[optimizer](model.parameters())
    pruner = pruner_of(name, model, ours, interval=interval)
    expected = by_the_paper(name, OPTIMIZERS[optimizer], interval=interval)
    assert_alike(train(model, ours, pruner), expected)


@pytest.mark.parametrize("hooked", [True, False])
@pytest.mark.parametrize("begin", [0, 2])
def test_movement_s_slope_is_taken_at_the_forward_pass_s_weights(hooked, begin, monkeypatch):
    """With or without an optimizer, whatever was loaded into the model since, from step 0 on."""
    monkeypatch.setitem(globals(), "BEGIN", begin)
    model = net(seed=5)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = pruner_of("movement", model, optimizer if hooked else None)
    loss_fn(model, batch(77)).backward()
    optimizer.zero_grad()
    model.load_state_dict(net().state_dict())
    assert_alike(train(model, optimizer, pruner), by_the_paper("movement", OPTIMIZERS["sgd"]))


@pytest.mark.parametrize("hooked", [True, False])
def test_gradients_may_be_accumulated(hooked):
    def in_two(data):
        for part in (slice(0, 6), slice(6, 12)):
            (loss_fn(model, [d[part] for d in data]) / 2).backward()

    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = pruner_of("movement", model, optimizer if hooked else None)
    found = train(model, optimizer, pruner, backward=in_two)
    assert_alike(found, by_the_paper("movement", OPTIMIZERS["sgd"]))


@pytest.mark.parametrize("first", [0, 1])
def test_each_weight_may_have_an_optimizer_of_its_own(first):
    """The pruner knows one of two; the other layer trains by plain SGD, which needs no moments."""

    class Both:
        def __init__(self, model):
            layers = [model[0].parameters(), model[2].parameters()]
            self.each = [OPTIMIZERS["sgd"](layer) for layer in layers]

        def step(self):
            for one in (self.each[first], self.each[1 - first]):
                one.step()

        def zero_grad(self):
            for one in self.each:
                one.zero_grad()

    model = net()
    both = Both(model)
    pruner = pruner_of("movement", model, both.each[0])
    assert_alike(train(model, both, pruner), by_the_paper("movement", OPTIMIZERS["sgd"]))


@pytest.mark.parametrize("name", DENSE)
def test_a_run_goes_on_from_its_checkpoint_bit_by_bit(name):
    def fresh():
        model = net(seed=3)
        optimizer = OPTIMIZERS["adamw"](model.parameters())
        return model, optimizer, pruner_of(name, model, optimizer)

    straight = fresh()
    whole = [[w.clone() for w in weights] for _, weights in train(*straight)]
    for stop in (1, BEGIN, 9, END):
        broken = fresh()
        for _ in train(*broken, steps=range(stop)):
            pass
        saved = copy.deepcopy([part.state_dict() for part in broken])
        resumed = fresh()
        for part, state in zip(resumed, saved, strict=True):
            part.load_state_dict(state)
        tail = [[w.clone() for w in weights] for _, weights in train(*resumed, range(stop, STEPS))]
        for one, two in zip(whole[stop:], tail, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True)), stop


@pytest.mark.parametrize("name", DENSE)
def test_a_copy_of_all_three_goes_on_alike(name):
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    pruner = pruner_of(name, model, optimizer)
    for _ in train(model, optimizer, pruner, range(9)):
        pass
    twins = copy.deepcopy((model, optimizer, pruner))
    for one, two in zip(
        train(model, optimizer, pruner, range(9, STEPS)),
        train(*twins, range(9, STEPS)),
        strict=True,
    ):
        assert all(torch.equal(a, b) for a, b in zip(one[1], two[1], strict=True))


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_s_steps(name, fused):
    """Scaled by a power of two, nothing changes; a step that it skips moves no weight."""
    runs = []
    for scaled in (False, True):
        model = net().float()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=fused)
        pruner = pruner_of(name, model, optimizer)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, enabled=scaled)
        for t in range(12):
            x, y = batch(t)
            scaler.scale(loss_fn(model, (x.float(), y))).backward()
            scaler.step(optimizer)
            scaler.update()
            pruner.step()
            optimizer.zero_grad()
        runs.append((model, pruner, optimizer, scaler))
    (plain, one, *_), (model, two, optimizer, scaler) = runs
    for a, b in zip(plain.parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b)
    for layer, score in one.scores.items():
        assert torch.equal(score, two.scores[layer])
    dense = {k: v.clone() for k, v in two.state_dict()["memory"].items()}
    scaler.scale(loss_fn(model, (batch(12)[0].float() * torch.inf, batch(12)[1]))).backward()
    scaler.step(optimizer)
    scaler.update()
    two.step()
    for layer, mask in two.masks.items():
        assert torch.equal(two.state_dict()["memory"][layer], dense[layer])
        assert torch.equal(model.get_parameter(layer), dense[layer] * mask)


def test_a_closure_and_a_forgotten_step_are_mistakes():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = pruner_of("movement", model, optimizer, begin_step=0)
    for _ in train(model, optimizer, pruner, range(5)):
        pass
    with pytest.raises(RuntimeError, match="without its masks"):
        optimizer.step(lambda: loss_fn(model, batch(5)))
    loss_fn(model, batch(5)).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"after each optimizer\.step"):
        optimizer.step()
    for layer, mask in pruner.masks.items():
        assert (model.get_parameter(layer)[~mask] == 0).all()
    for _ in train(model, optimizer, pruner, range(5, 9)):
        pass


def test_a_pruner_that_is_gone_leaves_nothing_in_the_optimizer():
    model = net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    pruner = pruner_of("movement", model, optimizer, begin_step=0)
    assert optimizer._optimizer_step_pre_hooks
    assert optimizer._optimizer_step_post_hooks
    del pruner
    gc.collect()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def moments(optimizer, weight):
    return {k: v for k, v in optimizer.state[weight].items() if v.shape == weight.shape}


@pytest.mark.parametrize("optimizer", ["momentum", "adamw", "adam, amsgrad"])
@pytest.mark.parametrize("name", ["set", "rigl", "ac_dc"])
def test_from_zero_with_cleared_moments(name, optimizer):
    model = net()
    ours = OPTIMIZERS[optimizer](model.parameters())
    settings = {"begin_step": 0, "end_step": 20, "interval": 1 if name == "ac_dc" else 4}
    pruner = pruner_of(name, model, ours, **settings)
    returned = 0
    for t in range(20):
        loss_fn(model, batch(t)).backward()
        ours.step()
        before, held = pruner.masks, copy.deepcopy([moments(ours, w) for w in model.parameters()])
        pruner.step()
        ours.zero_grad()
        for (layer, mask), old in zip(pruner.masks.items(), held, strict=True):
            weight, born = model.get_parameter(layer), mask & ~before[layer]
            returned += int(born.sum())
            assert (weight[born] == 0).all()
            for key, moment in moments(ours, weight).items():
                assert torch.equal(moment, old[key].masked_fill(born, 0.0))
    assert returned >= 10


@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_platon_s_weights_return_as_the_last_step_moved_them_from_zero(optimizer):
    """Gradients and moments at pruned positions are those of the pruned model."""
    model, plain = net(), net()
    ours, theirs = (OPTIMIZERS[optimizer](m.parameters()) for m in (model, plain))
    pruner = pruner_of("platon", model)
    before, returned = pruner.masks, 0
    for t, _ in enumerate(train(model, ours, pruner)):
        theirs.zero_grad()
        loss_fn(plain, batch(t)).backward()
        theirs.step()
        for layer, mask in pruner.masks.items():
            weight, other = model.get_parameter(layer), plain.get_parameter(layer)
            other.data.masked_fill_(~mask, 0.0)
            assert torch.equal(weight, other)
            for key, moment in moments(ours, weight).items():
                assert torch.equal(moment, theirs.state[other][key])
            returned += int((weight[mask & ~before[layer]] != 0).sum())
        before = pruner.masks
    assert returned > 0


def test_outside_training_weights_return_with_their_own_value_and_no_moment_changes():
    model = net()
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    loss_fn(model, batch(0)).backward()
    optimizer.step()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    held = copy.deepcopy(optimizer.state_dict()["state"])
    pruner = seven_exp.create_pruner("force", model, sparsity=0.8, rounds=6, exclude=[])
    returned, before = 0, pruner.masks
    for t in range(6):
        pruner.prune([batch(t)], loss_fn, rounds=1)
        for layer, mask in pruner.masks.items():
            assert torch.equal(model.get_parameter(layer), start[layer] * mask)
            returned += int((mask & ~before[layer]).sum())
        before = pruner.masks
    assert returned > 0
    for one, two in zip(held.values(), optimizer.state_dict()["state"].values(), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)
