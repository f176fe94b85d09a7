"""Language models whose weights stay in their files: each block is read when it is needed.

The model is built on the meta device. `Shards` knows which file holds which parameter.
"""

import copy
import importlib.util
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seven_exp.messages import one_line
from seven_exp.models.hub import source

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


@dataclass(frozen=True)
class Shards:
    """The safetensors files of a model.

    Attributes:
        folder: Holds them.
        files: Parameter name -> (file, name in the file).
        tied: Name of a parameter without a file -> the parameter that it shares its weight with.
    """

    folder: Path
    files: Mapping[str, tuple[str, str]]
    tied: Mapping[str, str] = field(default_factory=dict)

    def read(
        self, names: Iterable[str], like: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        """Copies of some parameters on the CPU, file by file.

        Args:
            names: Parameters of the model; a name without a file is skipped.
            like: Tensors of the dtypes that they are converted to, by name.

        Raises:
            ValueError: A file is broken.
        """
        for tensors, name, key in self._open(names):
            # A copy, because the file's pages stay in memory while they are viewed.
            yield name, tensors.get_tensor(key).to(like[name].dtype, copy=True)

    def check(self, like: Mapping[str, Tensor]) -> None:
        """Check that all files are whole and hold tensors of these shapes, by their headers.

        Raises:
            ValueError: They don't.
        """
        for tensors, name, key in self._open(self.files):
            shape, own = tuple(tensors.get_slice(key).get_shape()), tuple(like[name].shape)
            if shape != own:
                raise ValueError(
                    f"model.name: {self.folder / self.files[name][0]} holds {name} in shape "
                    f"{shape}, but the model's has {own}: give the model's own config.json"
                )

    def _open(self, names: Iterable[str]) -> Iterator[tuple[Any, str, str]]:
        """For each name an open file, the name, and its name in the file."""
        from safetensors import SafetensorError, safe_open

        wanted: dict[str, list[str]] = defaultdict(list)
        for name in names:
            if name in self.files:
                wanted[self.files[name][0]].append(name)
        for file, members in wanted.items():
            try:
                with safe_open(self.folder / file, "pt") as tensors:
                    held = set(tensors.keys())
                    for name in members:
                        if self.files[name][1] not in held:
                            raise ValueError(
                                f"model.name: {self.folder / file} holds no {self.files[name][1]}, "
                                f"which {INDEX} places there: download the model again"
                            )
                        yield tensors, name, self.files[name][1]
            except (OSError, SafetensorError) as error:
                reason = one_line(error)
                raise ValueError(
                    f"model.name: {self.folder / file} can't be read ({reason:.100}): download it "
                    "again"
                ) from error


def shards_in(folder: Path) -> dict[str, str] | None:
    """Name of a tensor -> its file; None if the folder holds no safetensors.

    Raises:
        ValueError: The index is broken, or a file that it names is missing.
    """
    from safetensors import SafetensorError, safe_open

    if (folder / INDEX).is_file():
        try:
            files: dict[str, str] = json.loads((folder / INDEX).read_bytes())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"model.name: {folder / INDEX} is broken: download the model again"
            ) from error
        missing = sorted({file for file in files.values() if not (folder / file).is_file()})
        if missing:
            raise ValueError(
                f"model.name is '{folder}': {missing[0]} is missing ({len(missing)} of "
                f"{len(set(files.values()))} files): download the model again"
            )
        return files
    if not (folder / SINGLE).is_file():
        return None
    try:
        with safe_open(folder / SINGLE, "pt") as tensors:
            return dict.fromkeys(tensors.keys(), SINGLE)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"model.name: {folder / SINGLE} is broken: download it again") from error


def check_folder(name: str, config: Any) -> None:
    """Check, without reading weights, that a checkpoint is complete and not quantised.

    Args:
        name: Name of the model; a hub id is checked by its configuration alone.
        config: Its configuration.

    Raises:
        ValueError: It is not; the message says what to do.
    """
    if getattr(config, "quantization_config", None):
        kind = dict(config.quantization_config).get("quant_method", "some method")
        raise ValueError(
            f"model.name is '{name}': its weights are quantised ({kind}) and can't be pruned: give "
            "the checkpoint that it was made from"
        )
    if Path(name).expanduser().is_dir():
        shards_in(Path(name).expanduser())


def open_shards(name: str, model: nn.Module) -> Shards | None:
    """The files of a model, if each of its parameters is a tensor in a local file.

    Args:
        name: Name of the model: a local folder, or a hub id, which is downloaded.
        model: On the meta device.

    Returns:
        None if the weights must be converted on loading, are in another format, or differ where
        the configuration ties them.

    Raises:
        ValueError: A file is missing or broken, or is of another model.
    """
    place = source("model.name", name)
    if not Path(place).is_dir():
        place = _downloaded(place)
    held = shards_in(Path(place))
    if held is None:
        return None
    prefix = getattr(model, "base_model_prefix", "")
    tied, files = _tied(model), {}
    for own in model.state_dict():
        names = [own, own.removeprefix(f"{prefix}."), f"{prefix}.{own}"]
        found = next((name for name in names if name in held), None)
        if found is not None:
            files[own] = held[found], found
        elif own not in tied:
            return None
    shards, state = Shards(Path(place), files, tied), model.state_dict()
    shards.check(state)
    for own, other in tied.items():
        if own in files and other in files:
            one, two = (value for _, value in shards.read([own, other], state))
            if not torch.equal(one, two):
                return None  # transformers leaves them apart
            del files[own]
    return shards


def _downloaded(name: str) -> str:
    """The folder of a hub id's safetensors files, in the hub's cache.

    Raises:
        ValueError: They can't be downloaded.
    """
    from huggingface_hub import snapshot_download

    try:
        return str(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:
        reason = one_line(error)
        raise ValueError(
            f"model.name is '{name}': its weights can't be downloaded ({reason:.100}): give a "
            "local folder, model.name=PATH"
        ) from error


def _tied(model: nn.Module) -> dict[str, str]:
    """Name of a parameter -> the one that it shares its weight with."""
    names: Any = getattr(model, "_tied_weights_keys", None) or {}
    tied = getattr(getattr(model, "config", None), "tie_word_embeddings", False)
    return dict(names) if tied and isinstance(names, dict) else {}


def on_meta(config: Any, dtype: str) -> nn.Module:
    """A causal language model without weights; buffers that no checkpoint holds have values."""
    import transformers
    from accelerate import init_empty_weights

    auto: Any = transformers.AutoModelForCausalLM
    with init_empty_weights(include_buffers=False):
        model: Any = auto.from_config(config, dtype=getattr(torch, dtype))
    model.tie_weights()  # each parameter was replaced by one of its own
    whole: nn.Module = model.eval().requires_grad_(False)
    return whole


def bare_model(config: Any, dtype: torch.dtype) -> nn.Module:
    """A causal language model on the meta device, buffers included: for counting alone."""
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    config = copy.deepcopy(config)
    config.pad_token_id = None  # otherwise some models search their inputs for it
    with torch.device("meta"):
        model: nn.Module = auto.from_config(config, dtype=dtype)
    return model.eval()


def can_stream() -> bool:
    """Whether the package that builds models without weights is installed."""
    return importlib.util.find_spec("accelerate") is not None


def place(model: nn.Module, values: Iterable[tuple[str, Tensor]], device: torch.device) -> None:
    """Give parameters and buffers their values on a device."""
    for name, value in values:
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        value = value.to(device)
        if attribute in owner._parameters:
            owner._parameters[attribute] = nn.Parameter(value, requires_grad=False)
        else:
            owner._buffers[attribute] = value


def clear(model: nn.Module, names: Iterable[str]) -> None:
    """Free the values of parameters and buffers; their shapes and dtypes stay."""
    state = model.state_dict()
    place(
        model, [(n, torch.empty_like(state[n], device="meta")) for n in names], torch.device("meta")
    )
