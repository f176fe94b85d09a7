"""SEVEN's step and mask update in one fused pass: the same bits as separate passes."""

import math
import os
import shutil

import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning.criteria.seven import Seven
from seven_exp.pruning.kernels import fused, one_pass
from seven_exp.pruning.kernels.seven_step import SevenStep
from seven_exp.pruning.masks import Masks
from seven_exp.pruning.select import top_k_masks

pytestmark = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc") or " ") is None, reason="needs a C compiler"
)
# Ends within a byte, a word and a run of 1024; one layer smaller than a byte.
SHAPES = [(301, 503), (5,), (1024, 64), (333, 3, 7)]
TOTAL = sum(map(math.prod, SHAPES))


class Layers:
    """Weights under pruning, and SEVEN's state of them."""

    def __init__(self, moments=torch.float32):
        torch.manual_seed(0)
        self.weights = [torch.randn(shape) for shape in SHAPES]
        self.state = [
            [torch.zeros(shape, dtype=dtype) for shape in SHAPES]
            for dtype in (moments, moments, torch.float32)
        ]
        self.masks = Masks(self.weights)

    def moved(self, t, *, coarse=False):
        """The step ``t``, on weights and gradients that depend on ``t`` alone."""
        torch.manual_seed(t)
        for weight in self.weights:
            change = torch.randn_like(weight)
            weight.copy_((change * 32).round() / 32) if coarse else weight.add_(change / 100)
        grads = [torch.randn_like(weight) for weight in self.weights]
        if coarse:
            grads = [(grad * 4).round() for grad in grads]
        grads[0][0, :2] = torch.tensor([float("nan"), float("inf")])
        self.weights[0][1, 1] = float("nan")
        return SevenStep(self.weights, grads, *self.state, 2.0**-9, (0.8, 0.9), t)

    def one_by_one(self, step, k):
        """The passes that the one pass stands for."""
        fused.seven(step)
        self.masks.set(top_k_masks(self.state[2], k, self.masks.unpacked()))
        self.masks.apply(self.weights)

    def tensors(self):
        return [*self.weights, *(t for part in self.state for t in part), *self.masks.bits]


def assert_same(one, other):
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        assert torch.equal(a.flatten().view(torch.uint8), b.flatten().view(torch.uint8))
    assert one.masks.kept == other.masks.kept


@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("coarse", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("threads", [1, 3])
def test_it_is_the_passes_one_by_one(moments, coarse, threads):
    one, other = Layers(moments), Layers(moments)
    before, chosen = torch.get_num_threads(), []
    torch.set_num_threads(threads)
    try:
        for t, density in enumerate((0.9, 0.899, 0.6, 0.5, 0.35)):
            k = int(density * TOTAL)
            step = one.moved(t, coarse=coarse)
            chosen.append(one_pass.seven_and_best(step, one.masks, k))
            if not chosen[-1]:
                one.masks.set(top_k_masks(one.state[2], k, one.masks.unpacked()))
                one.masks.apply(one.weights)
            other.one_by_one(other.moved(t, coarse=coarse), k)
            assert sum(one.masks.kept) == k
            assert_same(one, other)
    finally:
        torch.set_num_threads(before)
    # At first a tenth of the coarse scores is zero, and these tie where the cut lies.
    assert chosen == [not coarse, True, True, True, True]


@pytest.mark.parametrize(
    "misled", [(1e9, 2e9, 1.0), (-2.0, -1.0, 1.0), (-1.0, 1e9, 1e-4)], ids=["high", "low", "wide"]
)
def test_a_bracket_that_misses_does_no_harm(monkeypatch, misled):
    one, other = Layers(), Layers()
    for layers in (one, other):
        layers.one_by_one(layers.moved(0), TOTAL // 2)
    monkeypatch.setattr(one_pass, "bracket", lambda *_: misled)
    step = one.moved(1)
    assert one_pass.seven_and_best(step, one.masks, TOTAL // 3) is False
    fused.seven(other.moved(1))
    other.masks.apply(other.weights)
    assert_same(one, other)


def test_what_it_does_not_know_it_leaves_to_others():
    layers = Layers()
    few = Masks([torch.ones(4)])
    step = SevenStep(
        [torch.ones(4)], [torch.ones(4)], *[[torch.zeros(4)] for _ in "mvs"], 1, (0.8, 0.9), 0
    )
    assert one_pass.seven_and_best(step, few, 2) is False
    assert step.score[0].gt(0).all()
    for k in (0, TOTAL):
        step = layers.moved(0)
        assert one_pass.seven_and_best(step, layers.masks, k) is False


class Backwards(Seven):
    """Keeps what SEVEN would prune first."""

    def score(self, state, weights):
        return [-score for score in super().score(state, weights)]


def test_a_criterion_made_of_seven_has_its_own_say():
    torch.manual_seed(0)
    weights, grads = [torch.randn(300, 400)], [torch.randn(300, 400)]
    for criterion, in_one_pass in ((Seven(), True), (Backwards(), False)):
        state = criterion.init(weights)
        chosen = criterion.observe_and_choose(state, weights, grads, Masks(weights), 60_000)
        assert chosen is in_one_pass
        assert state.numbers["t"] == 1


def test_a_layer_that_dies_is_announced():
    model = nn.Sequential(nn.Linear(400, 400), nn.Linear(400, 400))
    pruner = seven_exp.create_pruner("seven_dyn", model, sparsity=0.6, end_step=2)
    # The second layer's gradients are a millionth of the first's.
    for layer, size in zip(model, (1.0, 1e-6), strict=True):
        layer.weight.grad = torch.randn(400, 400) * size
    with pytest.warns(UserWarning, match=r"1\.weight has lost all its weights") as warned:
        pruner.step()
    assert pruner.layer_counts["1.weight"] == (160_000, 0)
    assert not model[1].weight.any()
    assert {w.filename for w in warned} == {__file__}
