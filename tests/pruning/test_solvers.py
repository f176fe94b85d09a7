"""Solvers and scores of post-training methods against their formulas in float64 NumPy."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning import NoEvidenceError
from seven_exp.pruning.criteria.moments import factors

SAMPLES, INPUTS, OUTPUTS = 40, 8, 5


def calibrated(seed, inputs=INPUTS, outputs=OUTPUTS):
    """Correlated inputs with means, a weight, and the dampened H = 2 X^T X / n."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, inputs)) @ (np.eye(inputs) + rng.random((inputs, inputs)))
    x += rng.standard_normal(inputs)
    hessian = 2 / SAMPLES * x.T @ x
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(inputs)
    return x, rng.standard_normal((outputs, inputs)), hessian


def pruned(name, x, weight, sparsity=0.5, **settings):
    """The mask and the weight of one linear layer, pruned on two batches."""
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weight))
    pruner = seven_exp.create_pruner(name, model, sparsity=sparsity, exclude=[], **settings)
    pruner.prune([torch.from_numpy(x) for x in np.array_split(x, 2)], lambda m, b: m(b).sum())
    assert pruner.check().ok
    return pruner.masks["weight"].numpy(), model.weight.detach().numpy()


def largest(scores, kept):
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.flatten(), kind="stable")[:kept]] = True
    return mask.reshape(scores.shape)


def largest_of_groups(scores, n, m):
    groups = scores.reshape(-1, m)
    mask = np.zeros(groups.shape, bool)
    np.put_along_axis(mask, np.argsort(-groups, axis=1, kind="stable")[:, :n], True, axis=1)
    return mask.reshape(scores.shape)


def least(hessian, weight, mask):
    """The weight on the mask with the least error tr (W' - W) H (W' - W)^T."""
    moved = np.zeros_like(weight)
    for row, (w, kept) in enumerate(zip(weight, mask, strict=True)):
        inner = hessian[np.ix_(kept, kept)]
        moved[row, kept] = np.linalg.solve(inner, hessian[kept] @ w)
    return moved


def error(hessian, weight, moved):
    shift = moved - weight
    return np.einsum("ij,jk,ik->i", shift, hessian, shift)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0])
def test_ria_is_relative_to_the_weights_of_its_input_and_of_its_output(power):
    x, weight, _ = calibrated(0)
    size = np.abs(weight)
    relative = size / size.sum(0) + size / size.sum(1, keepdims=True)
    scores = relative * np.linalg.norm(x, axis=0) ** power
    mask, found = pruned("ria", x, weight, power=power)
    np.testing.assert_array_equal(mask, largest(scores, 20))
    np.testing.assert_array_equal(found, weight * mask)
    mask, _ = pruned("ria", x, weight, power=power, pattern="2:4")
    np.testing.assert_array_equal(mask, largest_of_groups(scores, 2, 4))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_thanos_with_one_block_is_the_optimum_on_wanda_s_mask(seed, pattern):
    x, weight, hessian = calibrated(seed)
    scores = np.abs(weight) * np.linalg.norm(x, axis=0)
    expected = largest(scores, 20) if pattern == "unstructured" else largest_of_groups(scores, 2, 4)
    mask, found = pruned("thanos", x, weight, pattern=pattern)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(found, least(hessian, weight, mask), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    ("pattern", "block"), [("unstructured", 3), ("2:4", 4), ("unstructured", 1)]
)
def test_thanos_chooses_and_solves_block_by_block(pattern, block):
    """By the inverse of the remaining H, computed anew in front of each block."""
    x, weight, hessian = calibrated(4)
    norms = np.linalg.norm(x, axis=0)
    w, mask, gone = weight.copy(), np.ones(weight.shape, bool), 0
    for start in range(0, INPUTS, block):
        stop = min(start + block, INPUTS)
        scores = np.abs(w[:, start:]) * norms[start:]
        if pattern == "unstructured":
            ahead = largest(scores, scores.size - (20 - gone))
        else:
            ahead = largest_of_groups(scores, 2, 4)
        mask[:, start:stop] = ahead[:, : stop - start]
        gone += int((~mask[:, start:stop]).sum())
        inverse = np.linalg.inv(hessian[start:, start:])
        for row in range(OUTPUTS):
            q = np.flatnonzero(~mask[row, start:stop])
            pull = np.linalg.solve(inverse[np.ix_(q, q)], w[row, start + q])
            w[row, start:] -= pull @ inverse[q]
    found_mask, found = pruned("thanos", x, weight, pattern=pattern, block=block)
    np.testing.assert_array_equal(found_mask, mask)
    np.testing.assert_allclose(found, w * mask, rtol=1e-8, atol=1e-10)
    assert mask.sum() == 20


def split(weight, hessian, choose, kept, rho=0.1):
    """ALPS's splitting, with dense inverses."""
    scale = np.sqrt(np.diag(hessian))
    h, w = hessian / np.outer(scale, scale), weight * scale
    seen, grown = choose(w**2), False
    d, v = w * seen, np.zeros_like(w)
    for i in range(1, 301):
        moved = (w @ h - v + rho * d) @ np.linalg.inv(h + rho * np.eye(len(h)))
        support = choose((moved + v / rho) ** 2)
        d = (moved + v / rho) * support
        v += rho * (moved - d)
        if i % 3 == 0:
            changed = (support != seen).sum()
            grown |= changed > 0.005 * kept
            if grown and changed == 0:
                break
            if not grown:
                rho, d, v = rho / 5, w * choose(w**2), np.zeros_like(w)
                continue
            seen = support
            rho *= 1.3 if changed > 0.1 * kept else 1.2 if changed > 0.005 * kept else 1.1
    return choose(moved**2)


CHOICES = {
    "unstructured": lambda scores: largest(scores, 20),
    "2:4": lambda scores: largest_of_groups(scores, 2, 4),
    "4:8": lambda scores: largest_of_groups(scores, 4, 8),
}


@pytest.mark.parametrize("pattern", CHOICES)
@pytest.mark.parametrize("seed", range(3))
def test_alps_is_splitting_and_then_the_optimum_on_the_support(seed, pattern):
    x, weight, hessian = calibrated(seed)
    mask, found = pruned("alps", x, weight, pattern=pattern)
    np.testing.assert_array_equal(mask, split(weight, hessian, CHOICES[pattern], 20))
    # A row has at most 8 kept weights, so 10 steps of conjugate gradients are exact.
    np.testing.assert_allclose(found, least(hessian, weight, mask), rtol=1e-6, atol=1e-8)


def test_no_step_of_alps_s_conjugate_gradients_increases_a_row_s_error():
    x, weight, hessian = calibrated(1, inputs=24)
    found = [pruned("alps", x, weight, solve_steps=steps) for steps in range(7)]
    assert all(np.array_equal(mask, found[0][0]) for mask, _ in found)
    errors = [error(hessian, weight, moved) for _, moved in found]
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-12)).all()
    best = error(hessian, weight, least(hessian, weight, found[0][0]))
    assert (errors[-1] >= best * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", ["sparsegpt", "thanos"])
def test_alps_ends_at_the_optimum_of_a_mask_that_others_only_come_near(name):
    """On one mask, here that of competing layers, no weight has a lower error than ALPS's."""
    x, weight, hessian = calibrated(2)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = (nn.Linear(8, 5, bias=False, dtype=torch.float64) for _ in "ab")
            for layer, factor in ((self.one, 1.0), (self.two, 1.5)):
                layer.weight.data.copy_(factor * torch.from_numpy(weight))

        def forward(self, x):
            return self.one(x) + self.two(x)

    errors = {}
    for method in ("alps", name):
        model = Two()
        pruner = seven_exp.create_pruner(method, model, sparsity=0.5, scope="global", exclude=[])
        pruner.prune([torch.from_numpy(x)], lambda m, b: m(b).sum())
        found, mask = model.one.weight.detach().numpy(), pruner.masks["one.weight"].numpy()
        optimum = least(hessian, weight, mask)
        errors[method] = error(hessian, weight, found).sum() / error(hessian, weight, optimum).sum()
    assert errors["alps"] == pytest.approx(1, abs=1e-9)
    assert errors[name] >= 1 - 1e-12


def inverse_factor(hessian):
    """U of H^-1 = U^T U, in float64."""
    return np.linalg.cholesky(np.linalg.inv(hessian)).T


def test_factors_lose_no_more_than_their_sums_have_lost():
    """The rounding of a float32 H, summed in two orders, moves U as much as float32 factors do."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((128, 96))).float()
    x[:, :2] *= 30
    ours, other = x.T @ x, x.flip(0).double().T @ x.flip(0).double()
    for hessian in (ours, other):
        hessian.diagonal().add_(0.01 * hessian.diagonal().mean())
    truth = inverse_factor(other.numpy())
    lost = np.linalg.norm(inverse_factor(ours.double().numpy()) - truth)
    assert 0 < np.linalg.norm(factors(ours[None])[0].double().numpy() - truth) < 3 * lost


@pytest.mark.parametrize("name", ["sparsegpt", "thanos"])
def test_inputs_that_determine_no_solution_are_named_with_a_way_out(name):
    model = nn.Linear(64, 4)
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[], dampening=1e-12)
    with pytest.raises(NoEvidenceError, match=r"solve weight.*raise pruner\.dampening"):
        pruner.prune([torch.randn(8, 64)], lambda m, b: m(b).sum())


def exchanged(weight, x, mask, threshold, cycles=50, m=None):
    """DSnoT by loops over rows and cycles."""
    mean, var, norms = x.mean(0), x.var(0), np.linalg.norm(x, axis=0)
    mask = mask.copy()
    for row, w in zip(mask, weight, strict=True):
        change, cost = w * mean, np.abs(w) * norms
        gone, kept = set(np.flatnonzero(~row)), set(np.flatnonzero(row))
        e = change[~row].sum()
        for _ in range(cycles):
            sign = 1 if e > 0 else -1
            back = [j for j in gone if sign * change[j] > 0]
            if abs(e) <= threshold or not back:
                break
            j = max(back, key=lambda j: sign * change[j] / var[j])
            if m is None:
                away = [i for i in kept if sign * change[i] < 0]
            else:
                away = [i for i in kept if i // m == j // m]
            if not away:
                break
            i = min(away, key=lambda i: cost[i])
            after = e + change[i] - change[j]
            if m and after * sign <= 0:
                break
            gone.remove(j)
            kept.remove(i)
            row[j], row[i], e = True, False, after
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("start", ["wanda", "magnitude", "sparsegpt"])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_dsnot_exchanges_within_rows(start, pattern, seed):
    x, weight, _ = calibrated(seed, inputs=16, outputs=24)
    settings = {"pattern": pattern, "scope": "per_row"}
    first, _ = pruned(start, x, weight, **settings)
    m = None if pattern == "unstructured" else int(pattern[-1])
    expected = exchanged(weight, x, first, 1e-3, m=m)
    mask, found = pruned("dsnot", x, weight, start=start, threshold=1e-3, **settings)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_array_equal(found, weight * mask)
    assert not np.array_equal(mask, first), "the case must hold an exchange"
    np.testing.assert_array_equal(mask.sum(1), first.sum(1))


class Named(nn.Module):
    """Attention that is known by its name alone."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(16, 16)})
        self.linear1 = nn.Linear(16, 16)

    def forward(self, x):
        return self.linear1(self.self_attn["q_proj"](x) + 1)


@pytest.mark.parametrize(
    ("model", "attention", "others"),
    [
        (Named, ["self_attn.q_proj.weight"], ["linear1.weight"]),
        (
            lambda: nn.TransformerEncoderLayer(16, 2, 16, batch_first=True),
            ["self_attn.in_proj_weight", "self_attn.out_proj.weight"],
            ["linear1.weight", "linear2.weight"],
        ),
    ],
)
def test_dsnot_exchanges_in_attention_alone(model, attention, others):
    torch.manual_seed(0)
    dense, x = model().eval(), torch.rand(4, 8, 16)

    def exchanged_in(**settings):
        masks = []
        for name, own in (("magnitude", {"scope": "per_row"}), ("dsnot", settings)):
            twin = copy.deepcopy(dense)
            pruner = seven_exp.create_pruner(
                name, twin, sparsity=0.5, exclude_defaults=False, **own
            )
            pruner.prune([x], lambda m, b: m(b).sum())
            masks.append(pruner.masks)
        first, last = masks
        return [name for name in first if not torch.equal(first[name], last[name])]

    assert exchanged_in(start="magnitude") == attention
    assert exchanged_in(start="magnitude", everywhere=True) == attention + others


def test_dsnot_without_cycles_is_its_start():
    x, weight, _ = calibrated(0)
    np.testing.assert_array_equal(
        pruned("dsnot", x, weight, cycles=0)[0], pruned("wanda", x, weight)[0]
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"start": "snip"}, "start is 'snip': choose a pruner that reads inputs or weights alone"),
        ({"start": "gblm"}, "start is 'gblm': choose"),
        ({"start": "dsnot"}, "start is 'dsnot': choose"),
        ({"start": "wnda"}, "did you mean 'wanda'"),
        ({"pattern": "rows", "scope": "per_layer"}, "pattern 'rows' removes whole units: choose"),
    ],
)
def test_dsnot_refuses_what_it_can_t_refine(settings, words):
    with pytest.raises(ValueError, match=words):
        seven_exp.create_pruner("dsnot", nn.Linear(8, 8), sparsity=0.5, exclude=[], **settings)


def gradients_of(name, alpha=None, seed=3):
    """Mask of a linear regression on three batches, with the batches' inputs and gradients."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((OUTPUTS, INPUTS))
    batches = [
        (rng.standard_normal((6, INPUTS)) * rng.random(INPUTS), rng.standard_normal((6, OUTPUTS)))
        for _ in range(3)
    ]
    model = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weight))
    own = {} if alpha is None else {"alpha": alpha}
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[], **own)
    pruner.prune(
        [tuple(map(torch.from_numpy, batch)) for batch in batches],
        lambda m, b: 0.5 * (m(b[0]) - b[1]).square().sum(),
    )
    gradients = [(x @ weight.T - y).T @ x for x, y in batches]
    norm = np.sqrt(sum(gradient**2 for gradient in gradients))
    return pruner.masks["weight"].numpy(), weight, [x for x, _ in batches], norm


@pytest.mark.parametrize("alpha", [0.0, 0.02, 100.0])
def test_gblm_adds_the_gradients_norms_to_the_inputs(alpha):
    mask, weight, inputs, norm = gradients_of("gblm", alpha)
    of_inputs = np.sqrt(sum((x**2).sum(0) for x in inputs) / len(inputs))
    scores = np.abs(weight) * of_inputs + alpha * np.abs(weight) * norm
    expected = np.stack([largest(row, INPUTS // 2) for row in scores])
    np.testing.assert_array_equal(mask, expected)


def test_pruner_zero_is_the_square_times_the_gradients_scaled_norm():
    mask, weight, _, norm = gradients_of("pruner_zero")
    scores = weight**2 * (norm - norm.min()) / (norm.max() - norm.min())
    expected = np.stack([largest(row, INPUTS // 2) for row in scores])
    np.testing.assert_array_equal(mask, expected)


def test_gblm_takes_gradients_of_frozen_weights_in_the_dense_model():
    """Blocks are pruned one after another, but the gradients are those before any pruning."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False), nn.Tanh(), nn.Linear(6, 5, bias=False))
    model.double().requires_grad_(False)
    dense = [model[i].weight.clone().requires_grad_() for i in (0, 2)]
    x, y = torch.randn(9, 8).double(), torch.randn(9, 5).double()
    hidden = (x @ dense[0].T).tanh()
    gradient = torch.autograd.grad((hidden @ dense[1].T - y).square().sum(), dense)[1]
    pruner = seven_exp.create_pruner("gblm", model, sparsity=0.5, exclude=[], alpha=1.0)
    pruner.prune([(x, y)], lambda m, b: (m(b[0]) - b[1]).square().sum())
    behind = model[0](x).tanh().norm(dim=0)
    scores = (dense[1].abs() * (behind + gradient.abs())).detach().numpy()
    expected = np.stack([largest(row, 3) for row in scores])
    np.testing.assert_array_equal(pruner.masks["2.weight"].numpy(), expected)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("alpha", [0.0, 0.1, 100.0])
def test_wanda_pp_adds_the_gradients_of_a_layer_s_output_norm(alpha):
    """For one layer, d||X W'|| / dW = W X'X / ||X W'||."""
    rng = np.random.default_rng(5)
    weight = rng.standard_normal((OUTPUTS, INPUTS))
    batches = [rng.standard_normal((6, INPUTS)) * rng.random(INPUTS) for _ in range(3)]
    model = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weight))
    pruner = seven_exp.create_pruner("wanda_pp", model, sparsity=0.5, exclude=[], alpha=alpha)
    pruner.prune([torch.from_numpy(x) for x in batches], lambda m, b: m(b).square().sum())
    gradients = [weight @ x.T @ x / np.linalg.norm(x @ weight.T) for x in batches]
    regional = np.sqrt(np.mean([gradient**2 for gradient in gradients], axis=0))
    norms = np.linalg.norm(np.concatenate(batches), axis=0)
    scores = np.abs(weight) * (norms + alpha * regional)
    expected = np.stack([largest(row, INPUTS // 2) for row in scores])
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), expected)


def test_wanda_pp_takes_gradients_within_each_block_behind_the_pruned_ones():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(6, 8, bias=False), nn.Linear(8, 6, bias=False)

        def forward(self, x):
            return (x + self.down(self.up(x).tanh()),)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([Block(), Block()])

        def forward(self, x):
            for block in self.layers:
                (x,) = block(x)
            return x

    torch.manual_seed(0)
    model = Model().double().requires_grad_(False)
    dense = [(block.up.weight.clone(), block.down.weight.clone()) for block in model.layers]
    batches = [torch.randn(5, 6).double() for _ in range(3)]
    pruner = seven_exp.create_pruner("wanda_pp", model, sparsity=0.5, exclude=[], alpha=0.7)
    pruner.prune(batches, lambda m, x: m(x).square().sum())
    for number, (up, down) in enumerate(dense):
        before = [x if number == 0 else model.layers[0](x)[0] for x in batches]
        hidden = [(x @ up.T).tanh() for x in before]
        totals = [0.0, 0.0]
        for x in before:
            free = [w.clone().requires_grad_() for w in (up, down)]
            norm = (x + (x @ free[0].T).tanh() @ free[1].T).norm()
            found = torch.autograd.grad(norm, free)
            totals = [total + g**2 for total, g in zip(totals, found, strict=True)]
        for name, weight, inputs, total in zip(
            ("up", "down"), (up, down), (before, hidden), totals, strict=True
        ):
            norms = torch.cat(inputs).norm(dim=0)
            scores = (weight.abs() * (norms + 0.7 * (total / 3).sqrt())).numpy()
            expected = np.stack([largest(row, weight.shape[1] // 2) for row in scores])
            found = pruner.masks[f"layers.{number}.{name}.weight"].numpy()
            np.testing.assert_array_equal(found, expected)
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["thanos", "alps", "ria", "dsnot"])
def test_weights_of_unused_inputs_go_first_and_nothing_breaks(name):
    x, weight, _ = calibrated(0)
    x[:, [2, 5]] = 0
    mask, found = pruned(name, x, weight, 0.25)
    np.testing.assert_array_equal(mask, ~np.isin(np.arange(8), [2, 5])[None].repeat(OUTPUTS, 0))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, weight * mask, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["thanos", "alps", "ria", "dsnot", "gblm", "wanda_pp"])
def test_a_convolution_is_a_linear_map_of_patches(name):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False).double()
    images = torch.randn(3, 4, 5, 5).double()
    linear = nn.Linear(36, 6, bias=False).double()
    linear.weight.data.copy_(conv.weight.detach().flatten(1))
    patches = nn.functional.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1)
    found = []
    for model, inputs in ((conv, images), (linear, patches)):
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[])
        pruner.prune([inputs], lambda m, b: m(b).square().sum())
        found.append((pruner.masks["weight"].flatten(1), model.weight.detach().flatten(1)))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-8, atol=1e-10)
    model = nn.Conv2d(8, 4, 3, bias=False)
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, pattern="2:4")
    pruner.prune([torch.randn(5, 8, 6, 6)], lambda m, b: m(b).square().sum())
    assert (pruner.masks["weight"].view(4, 2, 4, 3, 3).sum(2) == 2).all()
