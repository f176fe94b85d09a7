"""Masks: one bit per weight, for any layout of the weights."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seven_exp.pruning import pack_bits, unpack_bits
from seven_exp.pruning.kernels import compiled, fused
from seven_exp.pruning.masks import Masks


@pytest.fixture(params=["compiled", "plain"])
def path(request, monkeypatch):
    """Run the test with the compiled and with the PyTorch kernels, on small tensors, too."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "compiled_for", lambda *_, **__: None)
    elif compiled.library() is None:
        pytest.skip("needs a C compiler")
    return request.param


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1023, 1024, 1025, 5000, (1 << 18) + 3])
def test_bits_are_those_of_numpy(n):
    mask = torch.rand(n, generator=torch.Generator().manual_seed(n)) < 0.3
    (bits,), (count,) = fused.pack([mask])
    np.testing.assert_array_equal(bits.numpy(), np.packbits(mask.numpy(), bitorder="little"))
    assert count == int(mask.sum())
    (again,) = fused.unpack([bits], [n])
    assert again.dtype == torch.bool
    assert torch.equal(again, mask)


@given(st.lists(st.booleans(), max_size=40))
def test_packing_and_back(places):
    mask = torch.tensor(places, dtype=torch.bool)
    assert torch.equal(unpack_bits(pack_bits(mask), mask.shape), mask)
    # A part of a larger tensor starts anywhere in memory.
    assert torch.equal(unpack_bits(pack_bits(mask[1:]), mask[1:].shape), mask[1:])


@pytest.mark.usefixtures("path")
def test_masks_and_weights_of_any_layout():
    torch.manual_seed(0)
    weights = [
        torch.randn(5, 3, 3, 3).to(memory_format=torch.channels_last),
        torch.randn(7, 9).t(),
        torch.randn(4, 11),
        torch.randn(6, 10)[:, 1:6],
    ]
    masks = [torch.rand(weight.shape) < 0.5 for weight in weights]
    before = [weight.clone() for weight in weights]
    kept = Masks(weights)
    assert all(mask.all() for mask in kept.unpacked())
    kept.set(masks)
    assert kept.kept == [int(mask.sum()) for mask in masks]
    assert [bits.numel() for bits in kept.bits] == [17, 8, 6, 4]
    kept.apply(weights)
    for mask, own, weight, old in zip(masks, kept.unpacked(), weights, before, strict=True):
        assert torch.equal(own, mask)
        assert torch.equal(weight, torch.where(mask, old, 0.0))

    # The model's memory format may change after its masks were chosen.
    again = [weight.contiguous().clone() for weight in before]
    kept.apply(again)
    assert all(torch.equal(one, two) for one, two in zip(again, weights, strict=True))
