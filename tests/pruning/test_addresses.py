"""Kernels only get memory of the dtype, size and layout that they expect."""

import ctypes
import os
import shutil
import warnings
from contextlib import contextmanager

import pytest
import torch
from test_pruner import PLAIN
from torch import nn

import seven_exp
from seven_exp.pruning import read_by
from seven_exp.pruning.kernels import compiled, fused
from seven_exp.pruning.kernels.addresses import Address, address, layers_of
from seven_exp.pruning.registry import PRUNERS

needs_a_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CC", "cc") or " ") is None, reason="needs a C compiler"
)


class Own(torch.Tensor):
    """A subclass, whose elements may lie anywhere."""


def negated():
    """The imaginary part of a conjugate: its memory holds the opposite."""
    made = torch.randn(6, dtype=torch.complex64).conj().imag
    assert made.is_neg()
    return made


MISFITS = {
    "dtype": lambda: torch.zeros(6, dtype=torch.bfloat16),
    "too small": lambda: torch.zeros(5),
    "too large": lambda: torch.zeros(7),
    "device": lambda: torch.zeros(6, device="meta"),
    "expanded": lambda: torch.zeros(1).expand(6),
    "slice": lambda: torch.zeros(2, 4)[:, :3],
    "steps": lambda: torch.zeros(12)[::2],
    "sparse": lambda: torch.zeros(6).to_sparse(),
    "subclass": lambda: torch.zeros(6).as_subclass(Own),
    "negated": negated,
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_a_misfit_has_no_address(misfit):
    tensor = MISFITS[misfit]()
    with pytest.raises(TypeError, match=r"needs 6 x torch\.float32"):
        address(tensor, torch.float32, 6)
    assert layers_of(([torch.zeros(6)], torch.float32), ([tensor], torch.float32)) is None


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(6), torch.zeros(2, 3).t(), nn.Parameter(torch.zeros(8)[2:]), torch.zeros(6, 1)],
)
def test_dense_memory_has_one(tensor):
    assert address(tensor, torch.float32, 6).value == tensor.data_ptr()


def test_columns_that_do_not_belong_together_are_refused():
    whole, flags = torch.zeros(4, 6), torch.zeros(4, 6, dtype=torch.bool)
    single = (torch.float32, torch.float32)
    fits = [([whole], torch.float32), ([flags], torch.bool), (None, torch.bool)]
    assert layers_of(*fits) is not None
    buffer = torch.zeros(40)
    for one, other in (
        (whole, torch.zeros(4, 5)),
        (whole, torch.zeros(6, 4).t()),
        (torch.zeros(6, 4).t(), torch.zeros(6, 4)),
        (whole, whole),
        (buffer[:24], buffer[16:]),
    ):
        columns = zip(([one], [other]), single, strict=True)
        assert layers_of(*columns) is None, (one.shape, other.shape)
    layers = layers_of(*fits)
    with pytest.raises(TypeError, match="one memory order"):
        layers.alike([torch.zeros(6, 4).t()], torch.float32)
    with pytest.raises(TypeError, match=r"needs 3 x torch\.uint8"):
        layers.bits([torch.zeros(2, dtype=torch.uint8)])


@pytest.mark.slow
@needs_a_compiler
def test_c_takes_no_other_pointer():
    library, layers = compiled.library(), layers_of(([torch.ones(9).bool()], torch.bool))
    totals = layers.totals()
    library.count(*layers.arguments, totals, 1)
    assert list(totals) == [9]
    number, sizes, column = layers.arguments
    for wrong in (1234, ctypes.c_void_p(1234), (ctypes.c_void_p * 1)(1234)):
        with pytest.raises(ctypes.ArgumentError):
            library.count(number, sizes, wrong, totals, 1)
    with pytest.raises(ctypes.ArgumentError):
        library.count(number, sizes, column, (ctypes.c_int32 * 1)(), 1)
    with pytest.raises(TypeError, match="not an Address"):
        Address.from_param(1234)


class Model(nn.Sequential):
    """A convolution, an empty and some odd linear layers; enough weights for the one pass."""

    def __init__(self):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nothing to initialise
            empty = nn.Linear(0, 5)
        convolution = nn.Conv2d(33, 65, 3)
        super().__init__(convolution, nn.Linear(301, 257), empty, nn.Linear(7, 3), nn.Linear(1, 1))


def halves(model):
    model.half()


def bfloats(model):
    model.to(torch.bfloat16)


def doubles(model):
    model.double()


def channels_last(model):
    model.to(memory_format=torch.channels_last)


def transposed(model):
    model[1].weight.data = model[1].weight.data.t().contiguous().t()


def gaps(model):
    model[1].weight.data = torch.cat([model[1].weight.data] * 2, 1)[:, :301]


def shared(model):
    """Two layers of which one is a part of the other."""
    model[3].weight.data = model[1].weight.data.view(-1)[5:26].view(3, 7)


def expanded_gradient(model):
    model[1].weight.grad = torch.full((257, 1), 0.1).expand(257, 301)


def no_change(model):
    pass


CHANGES = (
    *(no_change, halves, bfloats, doubles, channels_last, transposed, gaps, shared),
    expanded_gradient,
)


@contextmanager
def defaults(dtype, device, threads=1):
    """While it lasts, torch makes tensors of another kind, and works with so many threads."""
    before = torch.get_num_threads()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_num_threads(before)


def pruned(name, change, **settings):
    """A few steps of a pruner, the model changed after the second."""
    model, kind = Model(), {"dtype": torch.float32, "device": "cpu"}
    with warnings.catch_warnings(), defaults(**{**kind, **settings}):
        warnings.simplefilter("ignore", UserWarning)  # of layers that lose all
        pruner = seven_exp.create_pruner(name, model, sparsity=0.3, end_step=6, exclude=[])
        for t in range(8):
            generator = torch.Generator().manual_seed(t)
            for parameter in model.parameters():
                draw = torch.randn(2, *parameter.shape, generator=generator, **kind)
                parameter.grad = draw[0].to(parameter.dtype)
                parameter.data.add_(draw[1].to(parameter.dtype) / 100)
            if t >= 2:
                change(model)
            pruner.step()
    return model, pruner


def assert_same(one, other):
    (model, pruner), (expected_model, expected) = one, other
    assert pruner.sparsity == expected.sparsity
    for layer, mask in expected.masks.items():
        assert torch.equal(pruner.masks[layer], mask), layer
        assert torch.equal(pruner.scores[layer], expected.scores[layer]), layer
        weight = model.get_parameter(layer)
        assert torch.equal(weight, expected_model.get_parameter(layer)), layer
        assert not weight[~mask].any()


def no_library():
    return None


@pytest.mark.slow
@needs_a_compiler
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["seven_dyn", "magnitude_dyn"])
def test_a_changed_model_is_pruned_as_by_pytorch(monkeypatch, name, change):
    assert compiled.library() is not None
    found = pruned(name, change, threads=3)
    monkeypatch.setattr(fused, "library", no_library)
    assert_same(found, pruned(name, change))


@needs_a_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["seven_dyn", "magnitude_dyn"])
def test_the_passes_state_the_dtypes_of_their_buffers(name, dtype):
    assert compiled.library() is not None
    found = pruned(name, no_change, dtype=dtype, device="meta")
    assert_same(found, pruned(name, no_change))


def small():
    """A model, its optimizer and a batch."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 10))
    inputs, targets = torch.randn(32, 16), torch.randint(10, (32,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, inputs, targets


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def trained(name, model, optimizer, batch):
    spec = PRUNERS[name]
    arguments = {"end_step": 6} if spec.when == "during" else {"rounds": 2}
    arguments = {key: value for key, value in arguments.items() if key in read_by(name)}
    if "optimizer" in read_by(name):
        arguments["optimizer"] = optimizer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=["2"], **arguments)
        if spec.when != "during":
            pruner.prune([batch, batch], loss_of)
        for _ in range(6):
            loss_of(model, batch).backward()
            optimizer.step()
            pruner.step()
            optimizer.zero_grad()
    return pruner


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_the_defaults_of_torch_change_nothing(name):
    model, optimizer, *batch = small()
    other, other_optimizer, *_ = small()
    expected = trained(name, model, optimizer, batch)
    with defaults(torch.bfloat16, "meta"):
        found = trained(name, other, other_optimizer, batch)
    assert found.sparsity == expected.sparsity
    for layer, mask in expected.masks.items():
        assert torch.equal(found.masks[layer], mask)
    for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
