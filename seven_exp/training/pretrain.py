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
from seven_exp.messages import one_line
from seven_exp.training.checkpoints import digest_of

log = logging.getLogger(__name__)

State = dict[str, Tensor]


def cached_start(
    folder: Path, key: str, build: Callable[[], State], identity: Mapping[str, Any]
) -> State:
    """The state dict cached under ``key``; the first process builds it while others wait.

    If the disk is full, a warning replaces the cache file, and the training is not lost.

    Args:
        folder: Folder of the cache.
        key: Hash of ``identity``.
        build: Trains the model and returns its state dict.
        identity: Everything that determines the result; stored beside the tensors for reference.

    Raises:
        OSError: It is not cached, and the folder can't be written.
    """
    path = folder / f"{key}.safetensors"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(held(FileLock(folder / f"{key}.lock")))
        except OSError as error:
            # Existing files can be read even if the folder can't be written.
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
            reason = error.strerror or one_line(error)
            log.warning(
                "cache_dir: can't save the pretrained start in '%s' (%s): the run continues, and "
                "the next one trains it again",
                *(folder, reason),
            )
        return state


def _read(path: Path) -> State | None:
    """The tensors of a cache file; None if there is none or it is broken."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            state: State = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sha256 = (file.metadata() or {}).get("sha256")
    except SafetensorError as error:
        log.warning("the cached start %s is broken (%s): training it again", path, error)
        return None
    if sha256 is None:
        log.warning("the cached start %s is from an older version and has no checksum", path)
    elif sha256 != digest_of(sorted(state.items())):
        reason = "its contents are not those that were written"
        log.warning("the cached start %s is broken (%s): training it again", path, reason)
        return None
    return state
