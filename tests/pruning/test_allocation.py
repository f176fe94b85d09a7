"""Scopes, floors and patterns: which weights compete, and which are pruned together."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seven_exp
from seven_exp.pruning.allocation import (
    OWL,
    SCOPES,
    alpha_densities,
    erk_densities,
    exact_counts,
    hill_exponent,
    lamp_shares,
    outlier_share,
    owl_densities,
)
from seven_exp.pruning.patterns import parse_pattern
from seven_exp.pruning.select import first_of_rows, top_units

shapes_of = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=6)


@given(shapes=shapes_of, density=st.floats(0.01, 1.0))
def test_erk_densities_follow_the_law_and_add_up(shapes, density):
    found = erk_densities(density, shapes)
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(d * n for d, n in zip(found, sizes, strict=True))
    assert total == pytest.approx(density * sum(sizes), rel=1e-9)
    assert all(0 < d <= 1 for d in found)
    # one eps for all layers that are not dense, and dense ones would exceed 1 with it
    eps = [d * n / sum(s) for d, n, s in zip(found, sizes, shapes, strict=True) if d < 1]
    if eps:
        assert max(eps) == pytest.approx(min(eps), rel=1e-9)
        for d, n, s in zip(found, sizes, shapes, strict=True):
            if d == 1:
                assert eps[0] * sum(s) / n >= 1 - 1e-9


def test_erk_by_hand():
    # densities eps * 20/100 and eps * 200/10000: eps (20 + 200) = 0.1 * 10100
    eps = 1010 / 220
    assert erk_densities(0.1, [(10, 10), (100, 100)]) == pytest.approx([eps * 0.2, eps * 0.02])
    # a layer that would exceed 1 is dense, and the other one takes the rest
    assert erk_densities(0.5, [(2, 2), (100, 100)]) == pytest.approx(
        [1.0, (0.5 * 10004 - 4) / 10000]
    )


def magnitudes_pruned(model, **settings):
    pruner = seven_exp.create_pruner("magnitude", model, **settings)
    pruner.prune()
    return pruner


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(16, 12))


@pytest.mark.parametrize("scope", [scope for scope in SCOPES if SCOPES[scope] is not OWL])
@settings(max_examples=10)
@given(sparsity=st.floats(0.0, 0.95))
def test_counts_of_every_scope(scope, sparsity):
    pruner = magnitudes_pruned(net(), sparsity=sparsity, scope=scope)
    masks = list(pruner.masks.values())
    shapes = [tuple(mask.shape) for mask in masks]
    sizes = [mask.numel() for mask in masks]
    kept = [int(mask.sum()) for mask in masks]
    density = 1 - sparsity
    if scope in ("global", "lamp", "alpha"):
        assert sum(kept) == int(density * sum(sizes) + 1e-6)
    elif scope == "per_layer":
        assert kept == [int(density * n + 1e-6) for n in sizes]
    elif scope == "erk":
        shares = erk_densities(density, shapes)
        assert kept == [int(d * n + 1e-6) for d, n in zip(shares, sizes, strict=True)]
    else:
        assert kept == [int(density * n + 1e-6) for n in sizes]
        for mask in masks:
            low = int(density * mask[0].numel() + 1e-6)
            assert set(mask.flatten(1).sum(1).tolist()) <= {low, low + 1}


@pytest.mark.parametrize(
    ("kept", "mask"),
    [
        (2, [[1, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 0]]),
        (4, [[1, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]),
        (5, [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]]),
        (6, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]),
        (7, [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0]]),
    ],
)
def test_the_rows_with_the_best_next_weights_keep_one_more(kept, mask):
    layer = nn.Linear(4, 3, bias=False)
    layer.weight.data = torch.tensor([[4.0, -3, 2, 1], [0.8, 0.7, 0.6, 0.5], [-9, 8, 7, 0.1]])
    settings = {"sparsity": 1 - kept / 12, "scope": "per_row", "exclude_defaults": False}
    pruner = magnitudes_pruned(nn.Sequential(layer), **settings)
    assert pruner.masks["0.weight"].int().tolist() == mask


@given(
    st.integers(1, 5), st.integers(1, 6), st.integers(0, 7), st.integers(0, 6), st.integers(0, 9999)
)
def test_first_of_rows_is_a_stable_sort_of_each_row(rows, columns, k, more, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (rows, columns)).astype(np.float32)
    allowed = rng.random((rows, columns)) < 0.7
    k = min(k, columns - 1) if more else k
    found = first_of_rows(torch.from_numpy(scores), k, torch.from_numpy(allowed), more).numpy()
    expected, following = set(), []
    for row, (score, places) in enumerate(zip(scores, allowed, strict=True)):
        ranked = sorted(np.flatnonzero(places), key=lambda i: (-score[i], i))
        expected |= {(row, i) for i in ranked[:k]}
        following += [(-score[i], row, i) for i in ranked[k : k + 1]]
    expected |= {(row, i) for _, row, i in sorted(following)[:more]}
    assert set(zip(*np.nonzero(found), strict=True)) == expected


def test_a_floor_keeps_every_layer_alive():
    model = net()
    model[0].weight.data.mul_(1e-3)
    with pytest.warns(UserWarning, match=r"0\.weight has lost all its weights"):
        magnitudes_pruned(net_scaled := net_with(model), sparsity=0.9)
    assert net_scaled[0].weight.abs().sum() == 0
    floored = magnitudes_pruned(model, sparsity=0.9, min_density=0.05)
    sizes = [mask.numel() for mask in floored.masks.values()]
    kept = [int(mask.sum()) for mask in floored.masks.values()]
    assert all(k >= int(0.05 * n) for k, n in zip(kept, sizes, strict=True))
    assert kept[0] == int(0.05 * sizes[0])
    assert sum(kept) == int(0.1 * sum(sizes) + 1e-6)


def net_with(model):
    other = net()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "4:8", "1:2"])
@pytest.mark.parametrize("name", ["magnitude", "magnitude_dyn", "random"])
def test_n_of_m_keeps_the_best_of_each_group(name, pattern):
    n, m = map(int, pattern.split(":"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Conv2d(8, 8, 3))
    dense = [layer.weight.detach().clone() for layer in model]
    window = {"end_step": 6} if name == "magnitude_dyn" else {}
    pruner = seven_exp.create_pruner(name, model, sparsity=1 - n / m, pattern=pattern, **window)
    if window:
        for _ in range(6):
            pruner.step()
    else:
        pruner.prune()
    for weight, mask in zip(dense, pruner.masks.values(), strict=True):
        groups = mask.movedim(1, -1).reshape(-1, m)
        assert (groups.sum(1) == n).all()
        if name != "random":
            sizes = weight.abs().movedim(1, -1).reshape(-1, m)
            worst_kept = sizes.masked_fill(~groups, torch.inf).amin(1)
            best_gone = sizes.masked_fill(groups, -torch.inf).amax(1)
            assert (worst_kept > best_gone).all()


def test_blocks_go_whole_and_the_weakest_first():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 12), nn.Linear(12, 8))
    dense = [layer.weight.detach().clone() for layer in model]
    pruner = magnitudes_pruned(model, sparsity=0.5, pattern="4x4")
    means, kept = [], []
    for weight, mask in zip(dense, pruner.masks.values(), strict=True):
        for rows, columns in itertools.product(
            range(0, weight.shape[0], 4), range(0, weight.shape[1], 4)
        ):
            block = mask[rows : rows + 4, columns : columns + 4]
            assert block.all() or not block.any()
            means.append(weight[rows : rows + 4, columns : columns + 4].abs().mean().item())
            kept.append(bool(block.all()))
    # 12 + 6 blocks of one size: half of them, those of the largest means
    assert sum(kept) == 9
    assert min(m for m, k in zip(means, kept, strict=True) if k) > max(
        m for m, k in zip(means, kept, strict=True) if not k
    )


def test_rows_go_whole():
    pruner = magnitudes_pruned(net(), sparsity=0.5, pattern="rows", scope="per_layer")
    for mask in pruner.masks.values():
        rows = mask.flatten(1)
        assert (rows.all(1) | ~rows.any(1)).all()
        assert int(rows.any(1).sum()) == mask.shape[0] // 2


def test_units_of_different_sizes_never_exceed_the_budget():
    scores = [torch.tensor([[9.0, 9.0, 9.0], [1.0, 1.0, 1.0]]), torch.tensor([[5.0], [4.0]])]
    units = [torch.tensor([[0], [1]]), torch.tensor([[2], [3]])]
    every = [torch.ones_like(s, dtype=torch.bool) for s in scores]
    # by mean: unit 0 (3 weights), 2 (1), 3 (1), 1 (3)
    for k, expected in ((2, set()), (3, {0}), (4, {0, 2}), (6, {0, 2, 3}), (8, {0, 1, 2, 3})):
        masks = top_units(scores, units, k, every)
        kept = {int(u) for m, n in zip(masks, units, strict=True) for u in n.expand(m.shape)[m]}
        assert kept == expected


def test_layers_that_share_units_have_one_sparsity():
    def pruned(**sparsities):
        layer = nn.TransformerEncoderLayer(16, 4, 16)
        settings = {"sparsity": 0.5, "pattern": "heads", "misfits": "dense"}
        return seven_exp.create_pruner("magnitude", layer, sparsities=sparsities, **settings)

    words = r"in_proj_weight has 0\.5 and .*out_proj.weight 0\.75, but they share units of .* heads"
    with pytest.raises(ValueError, match=words), pytest.warns(UserWarning, match="stay dense"):
        pruned(**{"*out_proj*": 0.75})
    with pytest.warns(UserWarning, match="stay dense"):
        pruner = pruned(**{"self_attn.*": 0.75})
    pruner.prune()
    assert pruner.sparsity == 0.75


def test_heads_go_whole_through_all_their_weights():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(12, 3, batch_first=True)
    with torch.no_grad():
        # the second head is the weakest
        for part in range(3):
            attention.in_proj_weight[12 * part + 4 : 12 * part + 8] *= 0.01
        attention.out_proj.weight[:, 4:8] *= 0.01
    pruner = magnitudes_pruned(attention, sparsity=1 / 3, pattern="heads")
    projections, out = pruner.masks["in_proj_weight"], pruner.masks["out_proj.weight"]
    for part in range(3):
        rows = projections[12 * part : 12 * part + 12].all(1)
        assert rows.tolist() == [True] * 4 + [False] * 4 + [True] * 4
    assert out.all(0).tolist() == [True] * 4 + [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pattern": "3:2"}, "unknown pattern '3:2'"),
        ({"pattern": "blocks"}, "unknown pattern 'blocks'"),
        ({"pattern": "2:4", "sparsity": 0.7}, "means a sparsity of 0.5"),
        ({"pattern": "2:4", "scope": "erk"}, "scope 'erk' does not fit"),
        ({"pattern": "3:5", "sparsity": 0.4}, r"0\.weight.*not a multiple of 5"),
        ({"pattern": "5x5"}, r"does not tile 0\.weight of 12x16"),
        ({"pattern": "rows", "scope": "per_row"}, "scope 'per_row'"),
        ({"pattern": "heads"}, r"does not fit 0\.weight, which is not an nn.MultiheadAttention's"),
        ({"min_density": 0.6}, "more than the final density"),
        ({"min_density": 1.0}, "min_density is 1.0"),
        ({"min_density": 0.1, "pattern": "rows"}, "removes whole units"),
        ({"min_density": 0.1, "scope": "per_row"}, "scope 'per_row' fixes what each layer keeps"),
        ({"min_density": 0.1, "scope": "erk"}, "scope 'erk' fixes what each layer keeps"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(settings, words):
    with pytest.raises(ValueError, match=words):
        seven_exp.create_pruner(
            "magnitude", nn.Sequential(nn.Linear(16, 12)), **{"sparsity": 0.5, **settings}
        )


def test_patterns_compare_by_what_they_are():
    assert parse_pattern("2:4") == parse_pattern("2:4") != parse_pattern("1:4")


def test_layers_with_a_sparsity_of_their_own():
    model = net()
    pruner = magnitudes_pruned(model, sparsity=0.5, sparsities={"0": 0.25, "2.weight": 0.75})
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    assert kept == {"0.weight": 288 * 3 // 4, "1.weight": 32, "2.weight": 192 // 4}


def test_layers_of_one_sparsity_compete_among_themselves():
    model = net()
    with torch.no_grad():
        model[0].weight.fill_(100.0)
    pruner = magnitudes_pruned(model, sparsity=0.5, sparsities={"[01].weight": 0.1})
    kept = {name: int(mask.sum()) for name, mask in pruner.masks.items()}
    assert kept["2.weight"] == 96
    assert kept["0.weight"] == 288
    assert kept["1.weight"] == int(0.9 * (288 + 64) + 1e-6) - 288


def test_a_sparsity_for_nobody_is_a_mistake():
    with pytest.raises(ValueError, match="sparsities pattern 'encodr' matches no"):
        magnitudes_pruned(net(), sparsity=0.5, sparsities={"encodr": 0.1})


def test_scope_lamp_is_lamp_for_magnitude_and_counts_negative_scores_from_the_lowest():
    one, two = net(), net()
    by_scope = magnitudes_pruned(one, sparsity=0.8, scope="lamp")
    by_name = seven_exp.create_pruner("lamp", two, sparsity=0.8)
    by_name.prune()
    assert all(torch.equal(mask, by_name.masks[layer]) for layer, mask in by_scope.masks.items())
    score = torch.tensor([[-3.0, 1.0], [0.0, -1.0]])
    # counted from -3: 0, 4, 3, 2
    expected = torch.tensor([[0.0, 1.0], [9 / 25, 4 / 29]])
    torch.testing.assert_close(lamp_shares(score), expected)
    without = lamp_shares(score, torch.tensor([[True, False], [True, True]]))
    torch.testing.assert_close(without[1], torch.tensor([1.0, 4 / 13]))


def test_a_floor_leaves_a_pattern_whole():
    model = nn.Sequential(nn.Linear(16, 12, bias=False))
    magnitudes_pruned(model, sparsity=0.5, pattern="2:4", min_density=0.5)
    assert set((model[0].weight != 0).reshape(-1, 4).sum(1).tolist()) == {2}


@pytest.mark.parametrize("settings", [{"scope": "per_row"}, {"pattern": "rows"}])
def test_rows_of_a_transposed_convolution_are_its_inputs(settings):
    model = nn.Sequential(nn.ConvTranspose2d(8, 4, 2))
    with pytest.raises(ValueError, match=r"0\.weight is transposed"):
        seven_exp.create_pruner("magnitude", model, sparsity=0.5, exclude=[], **settings)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({}, "min_density keeps"),
        ({"min_density": 0.01}, "a larger min_density keeps"),
        ({"scope": "per_row"}, "a sparsity of its own keeps"),
    ],
)
def test_a_lost_layer_is_told_with_what_helps(settings, cure):
    model = nn.Sequential(nn.Linear(40, 40, bias=False), nn.Linear(40, 1, bias=False))
    model[1].weight.data.mul_(1e-3)
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.98, exclude=[], **settings)
    with pytest.warns(UserWarning, match=rf"1\.weight has lost all its weights; {cure} some"):
        pruner.prune()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_score_has_no_share_and_takes_none(broken):
    score = torch.tensor([3.0, broken, 1.0, 2.0])
    shares = lamp_shares(score)
    assert shares.tolist() == pytest.approx([1.0, 0.0, 1 / 14, 4 / 13])


def test_shares_do_not_depend_on_the_scale_of_the_scores():
    score = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for scale in (2.0**-90, 2.0**60):
        assert torch.equal(lamp_shares(score * scale), lamp_shares(score))


@given(
    st.lists(st.tuples(st.integers(1, 500), st.floats(-0.5, 1.5)), min_size=1, max_size=8),
    st.floats(0.01, 1.0),
)
def test_counts_of_any_densities_are_exact_in_total(layers, density):
    sizes, shares = zip(*layers, strict=True)
    counts = exact_counts(shares, sizes, density)
    assert sum(counts) == int(density * sum(sizes) + 1e-6)
    assert all(0 <= count <= n for count, n in zip(counts, sizes, strict=True))
    # One shift for all layers, to within a weight, except where it is clipped.
    kept = list(zip(counts, sizes, shares, strict=True))
    least = max(((k - 1) / n - d for k, n, d in kept if k > 0), default=-math.inf)
    most = min(((k + 1) / n - d for k, n, d in kept if k < n), default=math.inf)
    assert least <= most + 1e-9


@given(shapes=shapes_of, density=st.floats(0.3, 0.7), seed=st.integers(0, 99))
def test_densities_of_measured_scopes_follow_their_numbers_and_keep_the_mean(shapes, density, seed):
    sizes = [math.prod(shape) for shape in shapes]
    numbers = np.random.default_rng(seed).random(len(sizes)).tolist()
    spread = max(numbers) - min(numbers)
    for law in (owl_densities, alpha_densities):
        found = law(density, sizes, numbers)
        assert np.average(found, weights=sizes) == pytest.approx(density)
        if spread == 0:
            assert found == pytest.approx([density] * len(sizes))
            continue
        place = (np.array(numbers) - min(numbers)) / spread
        if law is owl_densities:
            # 2 * 0.08 from the lowest share of outliers to the highest, linear in between.
            np.testing.assert_allclose(np.array(found) - min(found), 0.16 * place, atol=1e-12)
        else:
            # Sparsities at 0.7 to 1.3 of a common one.
            sparsity = 1 - np.array(found)
            common = sparsity / (0.7 + 0.6 * place)
            np.testing.assert_allclose(common, common[0])


def test_outliers_and_exponents_by_numpy():
    rng = np.random.default_rng(0)
    block = [rng.lognormal(0, 1.5, (12, 9)), rng.lognormal(0.3, 1.5, (7, 30))]
    flat = np.concatenate([matrix.flatten() for matrix in block])
    share = np.count_nonzero(flat > 5 * flat.mean()) / flat.size
    assert 0 < share == outlier_share([torch.from_numpy(matrix) for matrix in block])
    exponents = []
    for matrix in block:
        eigenvalues = np.sort(
            np.linalg.eigvalsh(matrix @ matrix.T if len(matrix) < 9 else matrix.T @ matrix)
        )
        n, k = len(eigenvalues), len(eigenvalues) // 2
        logs = [math.log(eigenvalues[n - i] / eigenvalues[n - k - 1]) for i in range(1, k + 1)]
        exponents.append(1 + k / sum(logs))
    found = hill_exponent([torch.from_numpy(matrix) for matrix in block])
    assert found == pytest.approx(np.mean(exponents), rel=1e-5)
    assert hill_exponent([torch.ones(3, 1)]) == 1


class Step(nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


class Deep(nn.Module):
    """Four blocks with inputs of growing outliers, and a layer in front of them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(16, 12)
        self.blocks = nn.ModuleList(Step() for _ in range(4))
        with torch.no_grad():
            for i, block in enumerate(self.blocks):
                block.up.weight[:, 0] *= 1 + 4 * i
                block.down.weight *= 1 + 3 * torch.rand(12, 20) ** (1 + 4 * i)

    def forward(self, x):
        x = self.first(x).tanh()
        for block in self.blocks:
            x = block(x)
        return x


def dense_scores(model, x):
    """|W| ||X|| of every layer in the dense model."""
    scores, hooks = {}, []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):

            def see(m, args, name=name):
                norms = args[0].double().norm(dim=0)
                scores[f"{name}.weight"] = (m.weight.double().abs() * norms).detach().numpy()

            hooks.append(module.register_forward_pre_hook(see))
    model(x)
    for hook in hooks:
        hook.remove()
    return scores


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "alps"])
def test_owl_gives_blocks_with_more_outliers_more_weights(name):
    model, x = Deep(), torch.randn(50, 16)
    scores = dense_scores(model, x)
    blocks = {"first": ["first.weight"]}
    blocks |= {i: [f"blocks.{i}.{part}.weight" for part in ("up", "down")] for i in range(4)}
    shares = {}
    for names in blocks.values():
        flat = np.concatenate([scores[name].flatten() for name in names])
        shares |= dict.fromkeys(names, np.count_nonzero(flat > 5 * flat.mean()) / flat.size)
    assert len(set(shares.values())) > 2
    sizes = {layer: scores[layer].size for layer in shares}
    place = {
        layer: (s - min(shares.values())) / np.ptp(list(shares.values()))
        for layer, s in shares.items()
    }
    mean = np.average([place[layer] for layer in sizes], weights=list(sizes.values()))
    densities = {layer: 0.5 + 0.16 * (p - mean) for layer, p in place.items()}

    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, scope="owl", exclude=[])
    pruner.prune([x[:30], x[30:]], lambda m, b: m(b).sum())
    counts = {layer: int(mask.sum()) for layer, mask in pruner.masks.items()}
    assert sum(counts.values()) == int(0.5 * sum(sizes.values()))
    for layer, count in counts.items():
        assert abs(count - densities[layer] * sizes[layer]) < 1
    rows = torch.cat([mask.sum(1) - mask.sum() // len(mask) for mask in pruner.masks.values()])
    # Wanda compares within rows: none differs by more than a weight from the others of its layer.
    assert (set(rows.tolist()) <= {0, 1}) == (name == "wanda")


@pytest.mark.parametrize("name", ["magnitude", "wanda", "pruner_zero"])
def test_alpha_gives_blocks_with_lower_exponents_more_weights(name):
    model, x = Deep(), torch.randn(50, 16)
    exponents = [hill_exponent([model.first.weight])]
    for block in model.blocks:
        exponents.append(hill_exponent([block.up.weight, block.down.weight]))
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, scope="alpha", exclude=[])
    pruner.prune([x], lambda m, b: m(b).square().sum())
    densities = [pruner.masks["first.weight"].float().mean()]
    for i in range(4):
        own = [pruner.masks[f"blocks.{i}.{part}.weight"] for part in ("up", "down")]
        densities.append(torch.cat([mask.flatten() for mask in own]).float().mean())
    assert np.argsort(exponents).tolist() == np.argsort(densities)[::-1].tolist()
    total = sum(mask.numel() for mask in pruner.masks.values())
    assert sum(int(mask.sum()) for mask in pruner.masks.values()) == total // 2


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("magnitude", {"scope": "owl"}, "'owl' measures the inputs .* magnitude does not read"),
        ("pruner_zero", {"scope": "owl"}, "choose wanda or another pruner that does, or scope alp"),
        ("seven_dyn", {"scope": "alpha", "end_step": 5}, "but seven_dyn prunes during training"),
        ("wanda", {"scope": "owl", "rounds": 2}, "measures the dense model once, but rounds is 2"),
        ("wanda", {"scope": "owl", "pattern": "2:4"}, "scope 'owl' does not fit it"),
        ("wanda", {"scope": "owls"}, "did you mean 'owl'"),
    ],
)  # fmt: skip
def test_a_measured_scope_says_what_it_can_t_do(name, settings, words):
    with pytest.raises(ValueError, match=words):
        seven_exp.create_pruner(name, Deep(), sparsity=0.5, exclude=[], **settings)
