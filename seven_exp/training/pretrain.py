"""The dense start: trained once by the framework, cached by hash, shared by all runs."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from seven_exp.atomic import replacing

log = logging.getLogger(__name__)

State = dict[str, Tensor]


def cached_start(
    folder: Path, key: str, build: Callable[[], State], identity: Mapping[str, Any]
) -> State:
    """The state dict cached under ``key``, built by whoever comes first; others wait for it.

    Args:
        folder: Where starts are kept.
        key: Hash of ``identity``.
        build: Trains the model and returns its state dict.
        identity: All that decides the result; written beside the tensors for people to read.

    Raises:
        OSError: The folder can't be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{key}.safetensors"
    with FileLock(folder / f"{key}.lock"):
        if (state := _read(path)) is not None:
            return state
        state = {name: tensor.detach().cpu().clone() for name, tensor in build().items()}
        with replacing(path) as partial:
            save_file(state, partial, metadata={"identity": json.dumps(identity, sort_keys=True)})
        return state


def _read(path: Path) -> State | None:
    """The tensors of a cache file; None where there is none or it is broken."""
    try:
        state: State = load(path.read_bytes())
    except FileNotFoundError:
        return None
    except SafetensorError as error:
        log.warning("the cached start %s is broken (%s): training it anew", path, error)
        return None
    return state
