"""A model's tensors as a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

NAME = "model.safetensors"
"""The file name that transformers uses, too."""


def state_of(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """The state dict with each shared tensor once and floating-point ones in ``dtype``."""
    state, seen = {}, set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            kind = dtype if tensor.is_floating_point() else tensor.dtype
            state[name] = tensor.detach().to(kind).contiguous()
    return state


def write_state(folder: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as ``model.safetensors``, with the metadata that transformers requires."""
    save_file(dict(state), folder / NAME, metadata={"format": "pt"})


def read_state(folder: Path) -> dict[str, Tensor]:
    """Read what `write_state` wrote, with floating-point tensors as float32."""
    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / NAME).items()
    }
