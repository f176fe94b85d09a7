"""SEVEN against an independent statement of its formula, and its invariances."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import seven_exp
from seven_exp.pruning.criteria.seven import Seven

SHAPES = [(6, 5), (4, 6), (3, 4)]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(s[1], s[0]) for s in SHAPES)).to(dtype)


def evidence(steps, seed=0, scale=0.005):
    rng = np.random.default_rng(seed)
    return [[scale * rng.standard_normal(s) for s in SHAPES] for _ in range(steps)]


def seven_in_numpy(weights, gradients, sparsity, alpha_1, alpha_2):
    """The recurrence in float64, all layers in one vector; masks after every step."""
    w = np.concatenate([x.ravel() for x in weights])
    n, steps, density = w.size, len(gradients), 1 - sparsity
    m, v, score, mask = np.zeros(n), np.zeros(n), np.zeros(n), np.ones(n, bool)
    masks = []
    for t, layers in enumerate(gradients):
        g = np.concatenate([x.ravel() for x in layers])
        m = alpha_1 * m + (1 - alpha_1) * abs(g)
        v = alpha_2 * v + (1 - alpha_2) * g**2
        steadiness = (m / (1 - alpha_1 ** (t + 1))) / (np.sqrt(v / (1 - alpha_2 ** (t + 1))) + 1e-9)
        score = np.where(mask, score + abs(w * g * steadiness), 0)
        k = int((density + (1 - density) * (1 - (t + 1) / steps) ** 3) * n + 1e-9)
        order = np.argsort(-score, kind="stable")
        mask = np.zeros(n, bool)
        mask[order[:k]] = True
        w = w * mask
        masks.append(mask)
    return masks


def run(model, gradients, name="seven_dyn", factor=1.0, **settings):
    pruner = seven_exp.create_pruner(name, model, sparsity=0.7, end_step=len(gradients), **settings)
    masks = []
    for layers in gradients:
        for layer, gradient in zip(model, layers, strict=True):
            layer.weight.grad = torch.from_numpy(factor * gradient).to(layer.weight.dtype)
        pruner.step()
        masks.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]).numpy())
    return masks


@pytest.mark.parametrize("alphas", [(0.8, 0.9), (0.0, 0.5), (0.95, 0.8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_the_formula_in_float64(dtype, alphas):
    model = net(dtype)
    weights = [layer.weight.detach().double().numpy() for layer in model]
    gradients = evidence(12)
    expected = seven_in_numpy(weights, gradients, 0.7, *alphas)
    masks = run(model, gradients, alpha_1=alphas[0], alpha_2=alphas[1])
    for ours, theirs in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@given(exponent=st.integers(-100, 100))
def test_scale_of_the_loss_by_powers_of_two_is_exactly_irrelevant(exponent):
    gradients = evidence(8)
    plain = run(net(), gradients)
    scaled = run(net(), gradients, factor=2.0**exponent)
    np.testing.assert_array_equal(plain, scaled)


@pytest.mark.parametrize("factor", [1e-7, 1e-3, 1 / 3, 10.0, 65536 * 1.5])
def test_scale_of_the_loss_is_irrelevant(factor):
    gradients = evidence(8)
    np.testing.assert_array_equal(run(net(), gradients), run(net(), gradients, factor=factor))


def test_scale_of_the_weights_is_irrelevant():
    gradients = evidence(8)
    model = net()
    for layer in model:
        layer.weight.data.mul_(8.0)
    np.testing.assert_array_equal(run(net(), gradients), run(model, gradients))


def test_steady_gradients_are_kept_before_noisy_ones_of_equal_sensitivity():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data.fill_(1.0)
    pruner = seven_exp.create_pruner(
        "seven_dyn", model, sparsity=0.5, end_step=20, schedule="one_shot", interval=20
    )
    for t in range(20):
        # The same sum of |g|; the first weight's gradient comes in bursts.
        model[0].weight.grad = torch.tensor([[2.0 * (t % 2), 1.0]])
        pruner.step()
    assert pruner.masks["0.weight"].tolist() == [[False, True]]


def test_bf16_scores_are_float32_and_finite():
    masks = run(net(torch.bfloat16), evidence(8))
    assert masks[-1].sum() == int(0.3 * 66 + 1e-9)


def test_zero_gradients_at_first_do_no_harm():
    gradients = [[np.zeros(s) for s in SHAPES]] * 2 + evidence(8)
    pruner_masks = run(net(), gradients)
    assert pruner_masks[-1].sum() == 19


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_a_broken_gradient_neither_protects_nor_condemns_its_weight(broken):
    gradients = evidence(8)
    gradients[2] = [layer.copy() for layer in gradients[2]]
    gradients[2][0][0, 0] = broken
    missing = evidence(8)
    missing[2] = [layer.copy() for layer in missing[2]]
    missing[2][0][0, 0] = 0.0
    np.testing.assert_array_equal(run(net(), gradients), run(net(), missing))


def test_moments_in_bfloat16_follow_those_in_float32_within_their_rounding():
    """Each step rounds by 2^-9 at most, and forgets a fifth and a tenth of it at the next."""
    states = []
    for moments in ("float32", "bfloat16"):
        score, weights = Seven(moments=moments), [layer.weight.detach() for layer in net()]
        state = score.init(weights)
        for layers in evidence(40):
            score.observe(state, weights, [torch.from_numpy(g).float() for g in layers])
        states.append(state)
    exact, rounded = states
    assert {t.dtype for name in ("m", "v") for t in rounded[name]} == {torch.bfloat16}
    for name, forgotten in (("m", 0.2), ("v", 0.1)):
        for a, b in zip(exact[name], rounded[name], strict=True):
            torch.testing.assert_close(b.float(), a, rtol=2**-8 / forgotten, atol=1e-12)
    for a, b in zip(exact["score"], rounded["score"], strict=True):
        torch.testing.assert_close(b, a, rtol=2**-8 / 0.2, atol=0)


def test_moments_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        seven_exp.create_pruner("seven_dyn", net(), sparsity=0.5, end_step=3, moments="bfloat")


@pytest.mark.parametrize("alphas", [{"alpha_1": 1.0}, {"alpha_2": -0.1}])
def test_decays_outside_zero_to_one_are_refused(alphas):
    with pytest.raises(ValueError, match=next(iter(alphas))):
        seven_exp.create_pruner("seven_dyn", net(), sparsity=0.5, end_step=3, **alphas)
