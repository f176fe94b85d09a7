"""Checkpoints: saved state is restored, altered files are detected, and no code is executed."""

import math
import random

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from seven_exp.training.checkpoints import (
    BrokenCheckpointError,
    Checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from seven_exp.training.randomness import generator_states, set_generator_states


def test_containers_come_back_as_they_were(tmp_path):
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "tensors": [torch.tensor(2.5), torch.zeros(0), torch.ones(3, dtype=torch.bfloat16)],
        "bits": torch.tensor([1, 255], dtype=torch.uint8),
        "view": torch.arange(10)[2:5], "transposed": shared.t(), "twice": (shared, shared),
        "numbers": {0: 0.1 + 0.2, 1: -0.0, "inf": math.inf, "big": 2**60, None: True},
        "words": ["ä\n", ()],
    }  # fmt: skip
    write_checkpoint(tmp_path / "x.safetensors", state)
    read = read_checkpoint(tmp_path / "x.safetensors")
    assert repr(read) == repr(state)  # types of containers and of keys too
    assert read["tensors"][2].dtype == torch.bfloat16
    assert torch.equal(read["transposed"], shared.t())
    assert math.copysign(1, read["numbers"][1]) == -1
    assert read["twice"][0] is read["twice"][1]


def test_what_is_no_tensor_number_or_string_is_refused(tmp_path):
    with pytest.raises(TypeError, match="can't hold a Linear"):
        write_checkpoint(tmp_path / "x.safetensors", {"model": nn.Linear(1, 1)})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["size", "header", "tensors", "end"])
def test_every_altered_byte_is_noticed(tmp_path, place):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.arange(64.0), "step": 7})
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    bytes_at = {
        "size": range(8),
        "header": range(8, 8 + len(data[8 : 8 + header].rstrip())),
        "tensors": range(8 + header, len(data)),
        "end": [len(data)],
    }
    for i in bytes_at[place]:
        altered = bytearray(data) + b" "
        altered[i] ^= 1
        path.write_bytes(altered if place == "end" else altered[:-1])
        try:
            read = read_checkpoint(path)
        except BrokenCheckpointError:
            continue
        # For example the letter case of an exponent, which does not change the content.
        assert read["step"] == 7
        assert torch.equal(read["w"], torch.arange(64.0))


@pytest.mark.slow
def test_a_file_cut_off_anywhere_is_noticed(tmp_path):
    path = tmp_path / "x.safetensors"
    write_checkpoint(path, {"w": torch.arange(64.0)})
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(BrokenCheckpointError):
            read_checkpoint(path)


def test_a_foreign_file_is_no_checkpoint(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors")
    torch.save({"w": torch.ones(2)}, tmp_path / "y.safetensors")
    for name in "xyz":
        with pytest.raises(BrokenCheckpointError):
            read_checkpoint(tmp_path / f"{name}.safetensors")


def test_the_last_few_stay_and_a_broken_one_gives_way_to_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path, "abc", keep=3)
    assert checkpoints.latest() is None
    for step in (5, 10, 15, 1000, 20):
        checkpoints.save(step, {"w": torch.tensor(step)})
    names = [f"step-{step:08d}.safetensors" for step in (15, 20, 1000)]
    assert sorted(p.name for p in tmp_path.iterdir()) == names

    newest = tmp_path / names[-1]
    newest.write_bytes(newest.read_bytes()[:-1])
    for half in (".step-00002000.1.partial.safetensors", ".tmpoLDroi"):
        (tmp_path / half).write_bytes(b"half")
    state = checkpoints.latest()
    assert (state["step"], int(state["w"])) == (20, 20)
    assert caplog.text.count("is broken") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == names[:-1]

    assert Checkpoints(tmp_path, "def", keep=3).latest() is None
    checkpoints.clear()
    assert not tmp_path.exists()


def test_generators_go_on_where_they_were():
    def draw():
        return random.random(), np.random.normal(), torch.rand(3).tolist(), torch.randn(1).item()

    torch.randn(1)
    np.random.normal()  # leaves the second of a pair behind
    states = generator_states()
    first = draw()
    draw()
    set_generator_states(states)
    assert draw() == first
