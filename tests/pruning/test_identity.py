"""A pruner detects a weight that no longer belongs to the model."""

import copy
import timeit
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils import prune as torch_prune

import seven_exp
from seven_exp.pruning.identity import Anchors
from seven_exp.pruning.layers import prunable_layers


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 3)
    )


def loss_fn(model, batch):
    return model(batch).square().mean()


BATCH = torch.linspace(-1, 1, 24).reshape(4, 6)


class LowRank(nn.Module):
    """A module around another one, as adapters are."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.low = nn.Linear(8, 2, bias=False)
        self.high = nn.Linear(2, 8, bias=False)

    def forward(self, x):
        return self.base(x) + self.high(self.low(x))


class Compiled(nn.Module):
    """What ``torch.compile`` puts around a module."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, x):
        return self._orig_mod(x)


def replace(model):
    model[2][0] = nn.Linear(8, 8)


def replace_parent(model):
    model[2] = nn.Sequential(nn.Linear(8, 8), nn.Tanh())


def remove(model):
    model[2] = nn.Identity()


def adapt(model):
    model[2][0] = LowRank(model[2][0])


def reshape(model):
    model[2][0].weight = nn.Parameter(torch.zeros(8, 4))


def parametrise(model):
    parametrize.register_parametrization(model[2][0], "weight", nn.Tanh())


def mask(model):
    torch_prune.l1_unstructured(model[2][0], "weight", amount=0.5)


def wrap_tensor(model):
    class Sharded(torch.Tensor):
        pass

    weight = model[2][0].weight.detach().as_subclass(Sharded)
    model[2][0]._parameters["weight"] = nn.Parameter(weight)


FAULT = r"^2\.0\.weight (is|has|now has|does not belong) .*create the pruner after"
CHANGES = [replace, replace_parent, remove, adapt, reshape, parametrise, mask, wrap_tensor]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("act", ["step", "prune", "apply", "check", "start", "load_state_dict"])
def test_a_weight_that_is_not_the_models_is_named(change, act):
    model = net()
    name, window = ("snip", {}) if act == "prune" else ("magnitude_dyn", {"end_step": 4})
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, **window)
    state = pruner.state_dict()
    change(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    arguments = {"prune": ([BATCH], loss_fn), "load_state_dict": (state,)}.get(act, ())
    with pytest.raises(RuntimeError, match=FAULT) as error:
        getattr(pruner, act)(*arguments)
    assert "\n" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_merged_adapters_are_noticed():
    model = net()
    model[2][0] = LowRank(model[2][0])
    pruner = seven_exp.create_pruner(
        "magnitude_dyn", model, sparsity=0.5, end_step=4, exclude=["*.low", "*.high"]
    )
    pruner.step()
    merged = nn.Linear(8, 8)
    base = model[2][0]
    merged.weight.data.copy_(base.base.weight + base.high.weight @ base.low.weight)
    model[2][0] = merged
    with pytest.raises(
        RuntimeError, match=r"^2\.0\.base\.weight does not belong to the model any more"
    ):
        pruner.step()


def new_parameters(model):
    state = {name: nn.Parameter(value.clone()) for name, value in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def hook(model):
    model[2].register_forward_hook(lambda module, inputs, outputs: outputs)


def compile_a_part(model):
    model[2] = Compiled(model[2])


LEGITIMATE = [
    lambda model: model.to(torch.float64),
    lambda model: model.to(torch.bfloat16),
    lambda model: model.to(memory_format=torch.preserve_format),
    lambda model: model.eval().requires_grad_(False),
    new_parameters,
    hook,
    compile_a_part,
    copy.deepcopy,
]


@pytest.mark.parametrize("change", LEGITIMATE)
def test_a_module_in_its_place_is_followed(change):
    model = net()
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=4)
    pruner.step()
    change(model)
    for _ in range(3):
        pruner.step()
    found = pruner.check(model)
    assert found.ok
    assert found == pruner.check()
    assert found.zeros_prunable == pruner.sparsity == 0.5


def test_that_a_copy_is_trained_instead_is_said():
    """The pruner can't detect the copy; it detects that its own model does not change."""
    model = net()
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=9)
    twin = copy.deepcopy(model)
    for trained, warns in ((model, False), (twin, True)):
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.1)
        for _ in range(2):
            loss_fn(trained, BATCH).backward()
            optimizer.step()
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                pruner.step()
            optimizer.zero_grad()
        assert ["not for a copy of it" in str(w.message) for w in said] == [True] * warns
        assert all(w.filename == __file__ for w in said)


def test_steps_that_a_scaler_skips_and_frozen_weights_are_no_copies(recwarn):
    model = net()
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=9)
    for _ in range(2):  # no optimizer step: the gradients had overflown
        loss_fn(model, BATCH).backward()
        pruner.step()
    model.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = None
    pruner.step()
    pruner.step()
    assert not recwarn


def test_channels_last_is_followed():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 3))
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=4)
    pruner.step()
    model.to(memory_format=torch.channels_last)
    for _ in range(3):
        pruner.step()
    assert pruner.check().ok
    assert pruner.check().zeros_prunable == 0.5


def test_a_pruner_copied_with_its_model_prunes_the_copy():
    model = net()
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=4)
    twin, its_pruner = copy.deepcopy((model, pruner))
    for _ in range(4):
        its_pruner.step()
    assert its_pruner.check(twin).zeros_prunable == 0.5
    assert pruner.check(model).zeros_prunable == 0


def test_a_model_emptied_to_the_meta_device_is_said():
    model = net()
    pruner = seven_exp.create_pruner("magnitude_dyn", model, sparsity=0.5, end_step=4)
    model.to("meta")
    with pytest.raises(RuntimeError, match=r"0\.weight has moved from the cpu to the meta device"):
        pruner.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["seven_dyn", "movement", "straight_through"])
def test_a_model_moved_to_another_device_takes_the_pruners_state_along(name):
    found = []
    for device in ("cpu", "cuda"):
        model = net()
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, end_step=6)
        for step in range(6):
            if step == 3:
                model.to(device)
            for i, parameter in enumerate(model.parameters()):
                torch.manual_seed(100 * step + i)
                parameter.grad = torch.randn(parameter.shape).to(parameter.device)
            pruner.step()
        found.append({layer: mask.cpu() for layer, mask in pruner.masks.items()})
    assert all(torch.equal(mask, found[1][layer]) for layer, mask in found[0].items())


def test_looking_costs_microseconds():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(50)))
    anchors = Anchors(model, prunable_layers(model))
    seconds = min(timeit.repeat(anchors.check, number=5, repeat=9)) / 5
    assert seconds / 100 < 20e-6


def test_weights_tied_after_creation_are_named():
    """Two masks of one parameter would together prune more than was asked for."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    pruner = seven_exp.create_pruner("random", model, sparsity=0.5)
    model[1].weight = model[0].weight
    with pytest.raises(RuntimeError, match=r"0\.weight and 1\.weight are now one parameter"):
        pruner.prune()
    assert model[0].weight.all()
