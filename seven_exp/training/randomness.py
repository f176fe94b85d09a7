"""The generators that a process draws from, as a state that can be saved and put back."""

import random
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """Where Python's, NumPy's and torch's generators are, CPU and CUDA."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generator_states(states: dict[str, Any]) -> None:
    """Put `generator_states` back; those of devices that are not here are left out."""
    random.setstate(states["python"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(states["torch"])
    for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, device)
