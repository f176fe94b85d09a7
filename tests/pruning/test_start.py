"""No weight is touched before pruning starts, and states are restored in any order."""

import copy

import pytest
import torch
from test_pruner import PLAIN, batches, loss_fn, needed, net, optimizer_for

import seven_exp
from seven_exp.pruning import PRUNERS, Solver, StayGone, build_method
from seven_exp.pruning.method import regrows, starts_sparse

SOLVERS = [n for n in PLAIN if isinstance(build_method(n, {}), Solver)]
RETURNING = [n for n in PRUNERS if regrows(build_method(n, {})) is not StayGone]
SPARSE = [name for name in PRUNERS if starts_sparse(build_method(name, {}))]


def pruner_of(name, model, optimizer):
    window = {"end_step": 9} if PRUNERS[name].when == "during" else {}
    if PRUNERS[name].when == "before":
        window = {"rounds": 2}
    settings = {} if not PRUNERS[name].prunes else {"exclude": []}
    return seven_exp.create_pruner(
        name, model, sparsity=0.6, **window, **settings, **needed(name, optimizer)
    )


def train(model, optimizer, pruner, steps):
    """Some of the steps of a training; what prunes outside training does so before the first."""
    for t in steps:
        if t == 0 and pruner.when != "during":
            pruner.prune(batches(), loss_fn)
        loss_fn(model, batches()[t % 6]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("name", PLAIN)
def test_creating_a_pruner_changes_no_weight(name):
    model = net()
    pruner = pruner_of(name, model, optimizer_for(model))
    assert all(map(torch.equal, weights(model), weights(net())))
    assert pruner.sparsity == 0
    pruner.load_state_dict(copy.deepcopy(pruner.state_dict()))
    assert all(map(torch.equal, weights(model), weights(net())))


ORDERS = [
    ("create", "model", "optimizer", "pruner"),
    ("model", "create", "pruner", "optimizer"),
    ("create", "pruner", "optimizer", "model"),
    ("optimizer", "create", "model", "pruner"),
]


@pytest.mark.slow
@pytest.mark.parametrize("done", [0, 4])
@pytest.mark.parametrize("name", PLAIN)
def test_states_are_restored_in_any_order(name, done):
    model = net()
    optimizer = optimizer_for(model)
    pruner = pruner_of(name, model, optimizer)
    train(model, optimizer, pruner, range(done))
    states = copy.deepcopy([x.state_dict() for x in (model, optimizer, pruner)])
    train(model, optimizer, pruner, range(done, 9))

    for order in ORDERS:
        other = net(seed=7)
        its_optimizer, its_pruner = optimizer_for(other), None
        for what in order:
            if what == "create":
                its_pruner = pruner_of(name, other, its_optimizer)
            elif what == "model":
                other.load_state_dict(states[0])
            elif what == "optimizer":
                its_optimizer.load_state_dict(copy.deepcopy(states[1]))
            else:
                its_pruner.load_state_dict(copy.deepcopy(states[2]))
        train(other, its_optimizer, its_pruner, range(done, 9))
        assert all(map(torch.equal, weights(model), weights(other))), order
        for layer, mask in pruner.masks.items():
            assert torch.equal(mask, its_pruner.masks[layer])
            if name not in SOLVERS:
                assert torch.equal(pruner.scores[layer], its_pruner.scores[layer])


@pytest.mark.parametrize("name", RETURNING)
def test_what_returns_is_of_the_weights_that_were_loaded(name):
    """A pruner starts from weights that are loaded after its creation."""
    start, ends = net(seed=3).state_dict(), []
    for load_first in (True, False):
        model = net()
        if load_first:
            model.load_state_dict(start)
        optimizer = optimizer_for(model)
        pruner = pruner_of(name, model, optimizer)
        model.load_state_dict(start)
        train(model, optimizer, pruner, range(9))
        ends.append(weights(model))
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("name", SPARSE)
def test_a_sparse_start_is_drawn_at_the_first_step_or_when_asked_for(name):
    late, early, dense = net(), net(), net()
    one = pruner_of(name, late, optimizer_for(late))
    two = pruner_of(name, early, optimizer_for(early))
    two.start()
    assert two.check().ok
    drawn = two.masks
    # ERK keeps int(density * n) of each layer: short by less than one weight a layer.
    assert 0.6 <= two.sparsity < 0.6 + 3 / sum(size for size, _ in two.layer_counts.values())
    for layer, mask in drawn.items():
        weight, whole = early.get_parameter(layer), dense.get_parameter(layer)
        assert torch.equal(weight.detach(), whole.detach() * mask)
    two.start()
    assert all(torch.equal(mask, drawn[layer]) for layer, mask in two.masks.items())
    for pruner, model in ((one, late), (two, early)):
        loss_fn(model, batches()[0]).backward()
        pruner.step()
    assert one.sparsity == two.sparsity
    assert one.check().ok
    born = [(one.masks[layer] & ~mask).sum() for layer, mask in drawn.items()]
    gone = [(mask & ~one.masks[layer]).sum() for layer, mask in drawn.items()]
    assert born == gone


@pytest.mark.parametrize("name", SPARSE)
def test_older_states_of_a_sparse_start_are_not_drawn_anew(name):
    model = net()
    pruner = pruner_of(name, model, optimizer_for(model))
    pruner.start()
    state = copy.deepcopy(pruner.state_dict())
    del state["started"]
    other = net()
    its_pruner = pruner_of(name, other, optimizer_for(other))
    its_pruner.load_state_dict(state)
    its_pruner.start()
    for layer, mask in pruner.masks.items():
        assert torch.equal(mask, its_pruner.masks[layer])
