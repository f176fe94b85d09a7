"""Zeros are counted in the model itself, and in copies of it."""

import copy

import pytest
import torch
from test_identity import Compiled
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import seven_exp
from seven_exp.pruning import LayerCheck


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def pruned(model, sparsity=0.75):
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=sparsity, include=["0", "2"])
    pruner.prune()
    return pruner


def test_a_report_counts_what_is_there():
    model = net()
    pruner = pruned(model)
    masked = {name: int((~mask).sum()) for name, mask in pruner.masks.items()}
    model[4].bias.data.zero_()
    kept = pruner.masks["0.weight"].flatten().nonzero()[0]
    model[0].weight.data.view(-1)[kept] = 0.0
    gone = (~pruner.masks["2.weight"]).flatten().nonzero()[:3]
    model[2].weight.data.view(-1)[gone] = torch.tensor([[1.0], [torch.nan], [-0.0]])
    found = pruner.check()
    assert found.layers == {
        "0.weight": LayerCheck(48, masked["0.weight"], masked["0.weight"] + 1, 0),
        "2.weight": LayerCheck(64, masked["2.weight"], masked["2.weight"] - 2, 2),
    }
    total = 48 + 8 + 64 + 8 + 24 + 3
    assert (found.parameters, found.zeros) == (total, 84 + 1 - 2 + 3)
    assert found.zeros_total == (84 + 1 - 2 + 3) / total
    assert found.zeros_prunable == (84 + 1 - 2) / 112
    assert not found.ok
    with pytest.raises(RuntimeError, match=r"2 of \d+ pruned weights of 2\.weight are not zero"):
        found.raise_for_mismatch()
    pruner.apply()
    assert pruner.check().ok
    pruner.check().raise_for_mismatch()


def test_shared_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5)
    pruner.prune()
    assert (pruner.check().parameters, pruner.check().zeros) == (16, 8)


class Holder(nn.Module):
    """A user's module around the model, as trainers have them."""

    def __init__(self, model):
        super().__init__()
        self.network = model


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: m,
        AveragedModel,
        nn.DataParallel,
        Compiled,
        lambda m: AveragedModel(Compiled(m)),
        Holder,
        lambda m: m.to(torch.bfloat16),
    ],
)
def test_a_copy_is_checked_and_pruned_by_the_names_of_its_parameters(wrap):
    model = net()
    pruner = pruned(model)
    twin = wrap(net())
    assert pruner.check(twin).zeros_prunable == 0
    assert not pruner.check(twin).ok
    dense = {name: p.detach().clone() for name, p in twin.named_parameters()}
    pruner.apply(twin)
    found = pruner.check(twin)
    assert found.ok
    assert found.zeros_prunable == pruner.sparsity == 0.75
    own = dict(model.named_parameters())
    for (name, now), (_, before) in zip(twin.named_parameters(), dense.items(), strict=True):
        plain = name.replace("_orig_mod.", "").removeprefix("module.").removeprefix("network.")
        mask = pruner.masks.get(plain, torch.ones_like(own[plain], dtype=torch.bool))
        assert torch.equal(now, before * mask)


def test_a_copy_may_lie_otherwise_in_memory():
    model, twin = nn.Sequential(nn.Conv2d(4, 8, 3)), nn.Sequential(nn.Conv2d(4, 8, 3))
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.5)
    pruner.prune()
    twin.to(memory_format=torch.channels_last)
    pruner.apply(twin)
    assert torch.equal(twin[0].weight != 0, pruner.masks["0.weight"])


def test_what_is_no_copy_is_refused_by_name():
    pruner = pruned(net())
    other = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5))
    for act in (pruner.apply, pruner.check):
        with pytest.raises(ValueError, match=r"the model has no 2\.weight"):
            act(nn.Sequential(nn.Linear(6, 8)))
        with pytest.raises(ValueError, match=r"2\.weight has shape \(5, 8\) in this model"):
            act(other)
        with pytest.raises(ValueError, match="several copies, 'one' and 'two'"):
            act(nn.ModuleDict({"one": net(), "two": net()}))


def test_averages_of_training_are_dense_until_the_masks_are_applied():
    model = net()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.9, end_step=20)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(25):
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        average.update_parameters(model)
    assert not pruner.check(average).ok
    pruner.apply(average)
    assert pruner.check(average).zeros_prunable == pruner.sparsity


class Swapping(torch.optim.SGD):
    """As schedule-free optimizers do: ``eval()`` puts averages into the parameters, in place."""

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("mean", p.clone())
            mean.lerp_(p, 0.1)

    @torch.no_grad()
    def eval(self):
        for p in self.param_groups[0]["params"]:
            p.copy_(self.state[p]["mean"])


def test_an_optimizer_that_swaps_weights_in_place_is_seen_and_mended():
    model = net()
    optimizer = Swapping(model.parameters(), lr=0.1)
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.9, end_step=20)
    for _ in range(25):
        model(torch.randn(4, 6)).square().mean().backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
    optimizer.eval()
    assert not pruner.check().ok
    pruner.apply()
    assert pruner.check().zeros_prunable == pruner.sparsity


def test_a_report_is_a_value():
    pruner = pruned(net())
    one, two = pruner.check(), pruner.check(copy.deepcopy(net()))
    assert one == pruner.check()
    assert one != two
    with pytest.raises(AttributeError):
        one.zeros = 3
