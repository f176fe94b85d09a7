"""SEVEN's kernel for GPUs: interpreted by Triton, compiled for GPUs, and on one if there is."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from seven_exp.pruning.kernels import fused
from seven_exp.pruning.kernels.seven_step import SevenStep

pytest.importorskip("triton")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def interpreted():
    """The kernel as Python that runs on a CPU."""
    path = Path(fused.__file__).with_name("gpu_pass.py")
    spec = importlib.util.spec_from_file_location("interpreted_gpu_pass", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        spec.loader.exec_module(module)
    return module


def steps(sizes, weight, grad, moment, device="cpu"):
    """A few steps of one run, on gradients that also overflow, vanish and are broken."""
    torch.manual_seed(0)
    weights = [torch.randn(n).to(device, weight) for n in sizes]
    state = [
        [torch.zeros(n, dtype=dtype, device=device) for n in sizes]
        for dtype in (moment, moment, torch.float32)
    ]
    for t in range(3):
        torch.manual_seed(t)
        grads = [torch.randn(n) * 10.0 ** (4 * i - 7) for i, n in enumerate(sizes)]
        grads[0][:3] = torch.tensor([float("nan"), float("-inf"), 0.0])
        yield SevenStep(
            weights, [g.to(device, grad) for g in grads], *state, 2.0**-9, (0.8, 0.9), t
        )


def bits(step):
    return torch.cat([t.flatten().cpu().view(torch.uint8) for c in step.tensors[2:] for t in c])


@pytest.mark.parametrize("sizes", [(4096, 1024, 16), (1030, 7, 2049)], ids=["aligned", "odd"])
@pytest.mark.parametrize(("weight", "grad"), [(FLOATS[0], FLOATS[0]), FLOATS[:2], FLOATS[1:]])
def test_interpreted_it_is_the_pass_of_a_cpu(interpreted, sizes, weight, grad):
    kernel, plain = (steps(sizes, weight, grad, torch.float32) for _ in range(2))
    for one, other in zip(kernel, plain, strict=True):
        assert interpreted.takes(one)
        interpreted.seven(one)
        fused.seven(other)
        assert torch.equal(bits(one), bits(other))


def test_interpreted_it_keeps_bfloat16(interpreted):
    kinds = (torch.float32, torch.float32, torch.bfloat16)
    one, other = (next(iter(steps((1030, 7, 2049), *kinds))) for _ in range(2))
    interpreted.seven(one)
    fused.seven(other)
    assert all(map(torch.equal, one.score, other.score))
    for mine, theirs in zip(one.m + one.v, other.m + other.v, strict=True):
        # The interpreter cuts off where a GPU rounds.
        up = theirs.view(torch.int16).int() - mine.view(torch.int16).int()
        assert set(up.tolist()) <= {0, 1}


def test_it_takes_what_it_knows(interpreted):
    (first, *_) = steps((32, 64), *FLOATS[:1] * 3)
    assert interpreted.takes(first)
    double = [tensor.double() for tensor in first.score]
    assert not interpreted.takes(first._replace(score=double))
    assert not interpreted.takes(first._replace(weights=[first.weights[0], double[1]]))
    assert not interpreted.takes(first._replace(m=[m.bfloat16() for m in first.m]))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("moment", ["fp32", "bf16"])
def test_compiled_it_rounds_after_every_operation(moment, aligned, architecture):
    import triton.language as tl
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from seven_exp.pruning.kernels import gpu_pass

    names = gpu_pass._step.arg_names
    signature = dict.fromkeys(names[:4], "*i64") | {"layers": "i64"}
    signature |= dict.fromkeys(names[5:12], "fp32") | dict.fromkeys(names[12:], "constexpr")
    types = {"weight_type": tl.float32, "grad_type": tl.float32, "moment_type": tl.dtype(moment)}
    source = ASTSource(
        gpu_pass._step, signature, constexprs={**types, "aligned": aligned, "block": 1024}
    )
    try:
        made = compile_kernel(
            source,
            target=GPUTarget("cuda", architecture, 32),
            options={"enable_fp_fusion": False},
        )
    except RuntimeError as error:
        pytest.skip(f"this Triton can't compile without a GPU: {error}")
    code = made.asm["ptx"]
    assert {"div.rn.f32", "sqrt.rn.f32"} <= set(re.findall(r"(?:div|sqrt)[.\w]+", code))
    assert not re.search(r"\bfma\.|\.ftz|\.approx", code)
    assert ("cvt.rn.bf16" in code) == (moment == "bf16")
    # Where tensors lie well, 16 bytes at a time, of eight numbers of a thread.
    wide = re.findall(r"(ld|st)\.global\.v4", code)
    expected = (10, 6) if moment == "fp32" else (8, 4)
    assert (wide.count("ld"), wide.count("st")) == (expected if aligned else (0, 0))


def wrong(step):
    step.score[0].add_(1e-3)


def broken(step):
    raise RuntimeError("no such instruction")


@pytest.mark.parametrize(
    ("kernel", "why"), [(wrong, "gives other bits"), (broken, "no such instruction")]
)
def test_a_kernel_that_fails_its_trial_is_not_used(kernel, why):
    with pytest.warns(UserWarning, match=why):
        assert not fused._proven(kernel, torch.device("cpu"), (torch.float32,) * 5)
    assert fused._proven(fused.seven, torch.device("cpu"), (torch.float32,) * 5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("sizes", [(4096, 1024, 16), (1030, 7, 2049)], ids=["aligned", "odd"])
@pytest.mark.parametrize("moment", FLOATS[:2])
def test_a_gpu_gives_the_bits_of_a_cpu(sizes, moment):
    kinds = (torch.float32, torch.float32, moment)
    for one, other in zip(steps(sizes, *kinds, "cuda"), steps(sizes, *kinds), strict=True):
        assert fused._gpu_kernel(one) is not None
        fused.seven(one)
        fused.seven(other)
        assert torch.equal(bits(one), bits(other))
