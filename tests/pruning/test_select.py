"""Selection is exact to the count, and ties fall in a known order."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seven_exp.pruning import select
from seven_exp.pruning.select import kept_count, top_k_masks

# Few distinct values make many ties; the wide ones cover every exponent and sign.
VALUES = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan")]),
    st.floats(width=32, allow_nan=False),
)

FEW = [0, select._FEW_KEYS]
"""Up to how many keys are ranked at once, and not digit by digit."""


@st.composite
def problems(draw, dtype):
    sizes = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    scores = [draw(hnp.arrays(dtype, n, elements=VALUES)) for n in sizes]
    candidates = [draw(hnp.arrays(bool, n)) for n in sizes]
    k = draw(st.integers(0, int(sum(c.sum() for c in candidates))))
    return scores, candidates, k


def by_sorting(scores, candidates, k):
    flat = np.concatenate(scores).astype(np.float64)
    allowed = np.concatenate(candidates)
    ranked = sorted(
        (i for i in range(flat.size) if allowed[i]),
        key=lambda i: (np.isnan(flat[i]), -flat[i] if not np.isnan(flat[i]) else 0.0, i),
    )
    mask = np.zeros(flat.size, bool)
    mask[ranked[:k]] = True
    return mask


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("few", FEW)
@given(data=st.data())
def test_same_as_a_stable_sort(few, dtype, data):
    scores, candidates, k = data.draw(problems(dtype))
    with mock.patch.object(select, "_FEW_KEYS", few):
        masks = top_k_masks(
            [torch.from_numpy(s) for s in scores], k, [torch.from_numpy(c) for c in candidates]
        )
    np.testing.assert_array_equal(torch.cat(masks).numpy(), by_sorting(scores, candidates, k))


def test_close_float64_scores_are_told_apart():
    scores = torch.tensor([1.0, 1.0 + 2**-52, 1.0], dtype=torch.float64)
    assert top_k_masks([scores], 1)[0].tolist() == [False, True, False]


@pytest.mark.parametrize("k", [1, 777, 5000, 9999])
def test_many_scores_of_all_layouts(k):
    torch.manual_seed(0)
    scores = [
        torch.randn(50, 100).t(),
        torch.randn(25, 4, 5, 10).to(memory_format=torch.channels_last),
    ]
    masks = top_k_masks(scores, k)
    kept = torch.cat([s[m] for s, m in zip(scores, masks, strict=True)])
    gone = torch.cat([s[~m] for s, m in zip(scores, masks, strict=True)])
    assert kept.numel() == k
    assert kept.min() > gone.max()


def test_bf16_scores():
    scores = torch.arange(10).bfloat16()
    assert top_k_masks([scores], 3)[0].nonzero().flatten().tolist() == [7, 8, 9]


@pytest.mark.parametrize("k", [-1, 4])
def test_impossible_counts_are_refused(k):
    with pytest.raises(ValueError, match="can't keep"):
        top_k_masks([torch.zeros(3)], k)


def test_kept_count_is_not_fooled_by_binary_fractions():
    assert kept_count(1 - 0.9, 240) == 24
    assert kept_count(1 - 0.7, 10) == 3
    assert kept_count(0.1, 239) == 23
    assert kept_count(1.0, 7) == 7
    # every percent of every size up to 2,000, against exact integer arithmetic
    for n in range(1, 2000, 7):
        for percent in range(100):
            assert kept_count(1 - percent / 100, n) == n * (100 - percent) // 100


def sorted_masks(scores, k, candidates):
    """The definition: a stable sort of all candidates, NaN last."""
    flat = torch.cat([s.flatten() for s in scores]).double()
    allowed = torch.cat([c.flatten() for c in candidates])
    # Below minus infinity come NaN, then what is barred.
    keys = torch.where(flat.isnan(), -1e300, flat.clamp(-1e200, 1e200))
    order = keys.masked_fill(~allowed, -torch.inf).argsort(descending=True, stable=True)
    mask = torch.zeros_like(allowed)
    mask[order[:k]] = True
    return mask


LARGE = {
    "smooth": lambda n: torch.randn(n),
    "coarse": lambda n: torch.round(torch.randn(n) * 8),
    "mostly zero": lambda n: torch.randn(n).clamp(min=1.0) - 1.0,
    "one value": lambda n: torch.full((n,), 0.25),
    "rising": lambda n: torch.arange(n).float(),
    "broken": lambda n: torch.where(torch.rand(n) < 0.4, torch.nan, torch.randn(n)),
    "endless": lambda n: torch.where(torch.rand(n) < 0.4, -torch.inf, torch.inf),
    # The sample sees every stride-th score only: nothing of this is in it.
    "hidden": lambda n: torch.where(torch.arange(n) % (max(1, n // 2**14) | 1) == 0, 0.0, 1.0),
}


@pytest.mark.parametrize("density", [0.0, 0.001, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", LARGE)
def test_large_selections_are_those_of_a_stable_sort(kind, density):
    torch.manual_seed(0)
    flat = LARGE[kind](300_007)
    scores = [part.clone() for part in flat.split([100_000, 7, 200_000])]
    scores[2] = scores[2].view(400, 500)
    candidates = [torch.rand_like(score) < 0.8 for score in scores]
    k = int(density * sum(int(c.sum()) for c in candidates))
    masks = top_k_masks(scores, k, candidates)
    assert torch.equal(torch.cat([m.flatten() for m in masks]), sorted_masks(scores, k, candidates))


def test_a_sample_is_enough_where_scores_are_ordinary(monkeypatch):
    monkeypatch.setattr(select, "_by_digits", None)
    torch.manual_seed(0)
    for k in (1, 1000, 150_000, 299_990):
        (mask,) = top_k_masks([torch.randn(300_000)], k)
        assert int(mask.sum()) == k


@given(hnp.arrays(np.float32, st.integers(1, 40), elements=VALUES), st.integers(0, 1000))
def test_ascending_is_a_stable_sort(scores, seed):
    allowed = np.random.default_rng(seed).random(len(scores)) < 0.8
    order = select.ascending(torch.from_numpy(scores), torch.from_numpy(allowed)).tolist()
    ranks = np.where(np.isnan(scores), -np.inf, scores)
    certain = [
        i for i in np.argsort(ranks, kind="stable") if allowed[i] and not np.isnan(scores[i])
    ]
    assert [i for i in order if i in certain] == certain
    below = [*np.flatnonzero(~allowed), *np.flatnonzero(allowed & np.isnan(scores))]
    assert order[: len(below)] == below
