"""SEVEN taken apart: each setting against an independent statement, and the pruners it repeats."""

import numpy as np
import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning.criteria.sensitivity import sensitivity

SHAPES = [(6, 5), (4, 6)]
STEPS = 7
EVIDENCE = {
    "weight": lambda w, g: abs(w),
    "taylor": lambda w, g: abs(w * g),
    "squared": lambda w, g: (w * g) ** 2,
    "signed": lambda w, g: g,
}


def draws(seed):
    # Heavy tails, so that the factor varies from weight to weight.
    rng = np.random.default_rng(seed)
    return [[0.005 * rng.standard_t(3, shape) for shape in SHAPES] for _ in range(STEPS)]


def scores(weights, gradients, **settings):
    score = sensitivity(**settings).score
    layers = [torch.from_numpy(w) for w in weights]
    state = score.init(layers)
    for grads in gradients:
        score.update(state, layers, [torch.from_numpy(g.copy()) for g in grads])
    return [s.numpy() for s in score.score(state, layers)]


def factors(gradients):
    """SEVEN's factor of one layer after each step, in float64."""
    m = v = 0.0
    for t, g in enumerate(gradients):
        m, v = 0.8 * m + 0.2 * abs(g), 0.9 * v + 0.1 * g**2
        yield (m / (1 - 0.8 ** (t + 1))) / np.sqrt(v / (1 - 0.9 ** (t + 1)))


def in_numpy(w, gradients, evidence, memory, power):
    """The score of one layer: all steps' terms at once, then their weights."""
    terms = np.array(
        [
            EVIDENCE[evidence](w, g) * f**power
            for g, f in zip(gradients, factors(gradients), strict=True)
        ]
    )
    ages = np.arange(STEPS)[::-1].reshape(-1, 1, 1)
    weight = {"last": ages == 0, "average": 0.3 * 0.7**ages, "sum": ages >= 0}[memory]
    total = (weight * terms).sum(axis=0)
    return abs(w * total) if evidence == "signed" else total


@pytest.mark.parametrize("power", [-2.0, 0.0, 1.0, 4.0])
@pytest.mark.parametrize("memory", ["last", "average", "sum"])
@pytest.mark.parametrize("evidence", EVIDENCE)
def test_every_part_agrees_with_its_formula(evidence, memory, power):
    weights, gradients = draws(1)[0], draws(0)
    ours = scores(weights, gradients, evidence=evidence, memory=memory, power=power, decay=0.7)
    for i, (w, score) in enumerate(zip(weights, ours, strict=True)):
        expected = in_numpy(w, [g[i] for g in gradients], evidence, memory, power)
        # The unit of the gradients is one constant per network.
        score, expected = (x / np.linalg.norm(x) for x in (score, expected))
        np.testing.assert_allclose(score, expected, rtol=1e-4)


def test_a_shuffled_factor_is_that_of_another_weight_of_the_layer():
    weights, gradients = draws(1)[0], draws(0)
    ours = scores(weights, gradients, evidence="weight", memory="last", power=1.0, shuffled=True)
    for i, (w, score) in enumerate(zip(weights, ours, strict=True)):
        *_, last = factors([g[i] for g in gradients])
        found = score / abs(w)
        np.testing.assert_allclose(np.sort(found, axis=None), np.sort(last, axis=None), rtol=1e-4)
        assert (abs(found - last) > 1e-3).mean() > 0.5


@pytest.mark.parametrize("evidence", EVIDENCE)
def test_a_weight_without_gradients_scores_finitely_at_every_power(evidence):
    weights, gradients = draws(1)[0], draws(0)
    for grads in gradients:
        grads[0][0] = 0.0
    for power in (-8.0, -1.0, 8.0):
        ours = scores(weights, gradients, evidence=evidence, power=power)
        assert all(np.isfinite(score).all() for score in ours)


def masks(name, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(columns, rows) for rows, columns in SHAPES))
    pruner = seven_exp.create_pruner(name, model, sparsity=0.6, end_step=STEPS, **settings)
    history = []
    for grads in draws(0):
        for layer, grad in zip(model, grads, strict=True):
            layer.weight.grad = torch.from_numpy(grad).float()
        pruner.step()
        history.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    return torch.stack(history)


@pytest.mark.parametrize(("power", "named"), [(1.0, "seven_dyn"), (0.0, "taylor_dyn")])
def test_it_chooses_the_masks_of_the_pruners_that_it_repeats(power, named):
    assert torch.equal(masks("sensitivity_dyn", power=power), masks(named))


def test_pruned_weights_return_only_if_asked():
    returned = {
        regrowth: bool((history[1:] & ~history[:-1]).any())
        for regrowth in ("none", "remembered", "straight_through")
        for history in [masks("sensitivity_dyn", regrowth=regrowth, memory="last")]
    }
    assert returned == {"none": False, "remembered": True, "straight_through": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evidence": "tailor"}, "evidence is 'tailor': did you mean 'taylor'"),
        ({"memory": "mean"}, "memory is 'mean'"),
        ({"regrowth": "zero"}, "regrowth is 'zero'"),
        ({"decay": 1.0}, r"decay is 1.0: choose a number in \[0, 1\)"),
    ],
)
def test_an_unknown_part_is_an_error_that_names_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        sensitivity(**settings)
