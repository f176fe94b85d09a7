"""The dense start: trained once by the framework, cached by hash, shared by all runs."""

import json
import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seven_exp.files.atomic import disk_errors, replacing
from seven_exp.files.locks import held
from seven_exp.training.checkpoints import digest_of

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

    A disk that is full by then costs a warning, not the training.

    Raises:
        OSError: It is not there, and the folder can't be written.
    """
    path = folder / f"{key}.safetensors"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(FileLock(folder / f"{key}.lock")))
        except OSError as error:
            # What others have put there can be read all the same.
            if (state := _read(path)) is not None:
                return state
            reason = error.strerror or error
            raise OSError(f"cache_dir: can't write to '{folder}': {reason}") from error
        if (state := _read(path)) is not None:
            return state
        state = {name: tensor.detach().cpu().clone() for name, tensor in build().items()}
        metadata = {
            "identity": json.dumps(identity, sort_keys=True),
            "sha256": digest_of(sorted(state.items())),
        }
        try:
            with replacing(path) as partial, disk_errors():
                save_file(state, partial, metadata=metadata)
        except OSError as error:
            reason = error.strerror or " ".join(str(error).split())
            log.warning(
                "cache_dir: the pretrained start can't be kept in '%s' (%s): the run goes on, and "
                "the next one trains it anew",
                *(folder, reason),
            )
        return state


def _read(path: Path) -> State | None:
    """The tensors of a cache file; None where there is none or it is broken."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sha256 = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        log.warning("the cached start %s is broken (%s): training it anew", path, error)
        return None
    if sha256 is None:
        log.warning("the cached start %s is of an older version and has no checksum", path)
    elif sha256 != digest_of(sorted(state.items())):
        reason = "its contents are not those that were written"
        log.warning("the cached start %s is broken (%s): training it anew", path, reason)
        return None
    return state
