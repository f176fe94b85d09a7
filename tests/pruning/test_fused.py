"""Compiled and PyTorch kernels give the same bits, and both match an independent statement."""

import errno
import os
import shutil
import subprocess

import numpy as np
import pytest
import torch
from preloaded import python
from torch import nn

import seven_exp
from seven_exp.pruning.kernels import compiled, fused
from seven_exp.pruning.masks import Masks

needs_a_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc") or " ") is None, reason="needs a C compiler"
)
# Odd sizes, a channels-last kernel, one tensor beyond a thread's share and one of a cache.
SHAPES = [(7, 3), (33, 5, 3, 3), (1025,), (300, 1001)]


def tensors(draw=torch.randn, **kwargs):
    made = [draw(shape, **kwargs) for shape in SHAPES]
    made[1] = made[1].to(memory_format=torch.channels_last)
    return made


@pytest.fixture(params=["compiled", "plain"])
def path(request, monkeypatch):
    """Run the test with the compiled and with the PyTorch kernels."""
    if request.param == "plain":
        monkeypatch.setattr(fused, "library", no_library)
    elif compiled.library() is None:
        pytest.skip("needs a C compiler")
    return request.param


def no_library():
    return None


def both(monkeypatch, work):
    """What ``work`` returns, compiled and plain."""
    assert compiled.library() is not None
    one = work()
    monkeypatch.setattr(fused, "library", no_library)
    two = work()
    monkeypatch.undo()
    return one, two


def random_scores():
    torch.manual_seed(0)
    # Coarse, so that there are ties.
    scores = [torch.round(t * 64) / 64 for t in tensors()]
    scores[0][0, 0], scores[3][5, 5] = float("nan"), float("inf")
    return scores, [t < 0.7 for t in tensors(torch.rand)]


@needs_a_compiler
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_seven_is_the_same_to_the_bit(monkeypatch, threads, moments):
    def work():
        torch.manual_seed(1)
        weights = tensors()
        state = [tensors(torch.zeros, dtype=d) for d in (moments, moments, torch.float32)]
        for t in range(5):
            # Denormal, ordinary and overflowing sizes.
            grads = [g * 10.0**e for g, e in zip(tensors(), (-30, -3, 0, 15), strict=True)]
            grads[0][0, 1], grads[3][1, 1] = float("nan"), -float("inf")
            fused.seven(fused.SevenStep(weights, grads, *state, 2.0**-9, (0.8, 0.9), t))
        return state

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        one, two = both(monkeypatch, work)
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip(one, two, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a.flatten().view(torch.int8), b.flatten().view(torch.int8))


@pytest.mark.parametrize("with_candidates", [True, False])
def test_partition_counts_and_gathers(path, with_candidates):
    scores, candidates = random_scores()
    given = candidates if with_candidates else None
    low, high = 0.25, 0.5
    found = fused.partition(scores, given, low, high, room=100_000)
    flat = np.concatenate([s.flatten().numpy() for s in scores])
    if with_candidates:
        flat = flat[np.concatenate([c.flatten().numpy() for c in candidates])]
    assert found.candidates == flat.size
    assert found.above == (flat > high).sum()
    assert (found.at_high, found.at_low) == ((flat == high).sum(), (flat == low).sum())
    inside = np.sort(flat[(flat > low) & (flat < high)])
    np.testing.assert_array_equal(np.sort(found.between.numpy()), inside)
    exactly = fused.partition(scores, given, low, high, room=inside.size)
    np.testing.assert_array_equal(np.sort(exactly.between.numpy()), inside)
    assert fused.partition(scores, given, low, high, room=inside.size - 1).between is None


@pytest.mark.parametrize("ties", [0, 1, 5, 300, 2000])
def test_best_takes_the_first_ties_in_logical_order(path, ties):
    scores, candidates = random_scores()
    masks = fused.best(scores, candidates, 0.5, ties)
    left = ties
    for mask, score, part in zip(masks, scores, candidates, strict=True):
        expected = part.flatten() & (score.flatten() > 0.5)
        equal = (part.flatten() & (score.flatten() == 0.5)).nonzero().flatten()[:left]
        expected[equal] = True
        left -= len(equal)
        assert torch.equal(mask.flatten(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_zero_means_zero(path, dtype):
    torch.manual_seed(0)
    weights = [t.to(dtype) for t in tensors()]
    for weight in weights:
        weight.flatten()[:3] = torch.tensor([float("nan"), -1.0, float("inf")], dtype=dtype)
    weights[3][0, :3] = torch.tensor([float("nan"), -1.0, float("inf")], dtype=dtype)
    masks = [t < 0.5 for t in tensors(torch.rand)]
    masks[3][0, :3] = False
    before = [weight.clone() for weight in weights]
    packed = Masks(weights)
    packed.set(masks)
    packed.apply(weights)
    for weight, old, mask in zip(weights, before, masks, strict=True):
        assert torch.equal(weight[mask].nan_to_num(), old[mask].nan_to_num())
        assert (weight[~mask] == 0).all()
        assert not torch.signbit(weight[~mask]).any()
    assert packed.kept == [int(mask.sum()) for mask in masks]


@needs_a_compiler
@pytest.mark.parametrize("name", ["seven_dyn", "taylor_dyn", "magnitude_dyn", "platon"])
def test_a_run_is_the_same_with_and_without_a_compiler(monkeypatch, name):
    def work():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(300, 500), nn.ReLU(), nn.Linear(500, 300))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        pruner = seven_exp.create_pruner(name, model, sparsity=0.8, end_step=6)
        for _ in range(8):
            model(torch.randn(16, 300)).square().mean().backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
        return pruner, model

    (one, a), (two, b) = both(monkeypatch, work)
    assert all(torch.equal(mask, two.masks[layer]) for layer, mask in one.masks.items())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    for layer, score in one.scores.items():
        assert torch.equal(score, two.scores[layer])


@pytest.fixture
def in_a_new_process(monkeypatch, tmp_path):
    """Loads the kernels as a new process would, and returns the commands that it ran."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ran, run = [], subprocess.run

    def noted(command, **options):
        ran.append(command)
        return run(command, **options)

    monkeypatch.setattr(compiled.subprocess, "run", noted)
    monkeypatch.setattr(compiled, "_ALWAYS", ("-O0", "-std=c11"))  # to compile faster

    def load():
        ran.clear()
        assert compiled.library.__wrapped__() is not None
        return list(ran)

    return load


@pytest.mark.slow
@needs_a_compiler
def test_kernels_are_compiled_once(in_a_new_process, monkeypatch, tmp_path):
    assert in_a_new_process()
    assert in_a_new_process() == []
    folder = tmp_path / "seven_exp" / "kernels"
    (file,) = folder.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700
    content = file.read_bytes()
    file.unlink()  # this process has it in its memory
    file.write_bytes(content[:1000])
    assert in_a_new_process()
    assert in_a_new_process() == []
    # Another compiler, or another version of it
    mine = tmp_path / "cc"
    mine.symlink_to(shutil.which("cc"))
    monkeypatch.setenv("CC", str(mine))
    assert in_a_new_process() == []
    mine.unlink()
    mine.write_text(f'#!/bin/sh\nexec {shutil.which("cc")} "$@"\n')
    mine.chmod(0o755)
    assert in_a_new_process()
    assert in_a_new_process() == []
    monkeypatch.setattr(compiled, "_ALWAYS", (*compiled._ALWAYS, "-O2"))
    assert in_a_new_process()


@needs_a_compiler
@pytest.mark.parametrize("reason", ["others write there", "a file is there", "the disk is full"])
def test_kernels_are_not_kept_where_that_is_not_possible_or_safe(
    in_a_new_process, monkeypatch, tmp_path, reason
):
    place = tmp_path / "seven_exp" / "kernels"
    place.parent.mkdir()
    if reason == "others write there":
        place.mkdir()
        place.chmod(0o777)
    elif reason == "the disk is full":

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(compiled.shutil, "copyfile", full)
    else:
        place.write_text("")
    for _ in range(2):
        assert in_a_new_process()
    assert place.is_file() or not list(place.iterdir())


@pytest.mark.slow
def test_no_compiler_is_no_error():
    code = "from seven_exp.pruning.kernels.compiled import library; assert library() is None"
    for compiler in ("", "no-such-compiler", shutil.which("false") or ""):
        subprocess.run([python(), "-c", code], check=True, env={**os.environ, "CC": compiler})
