"""transformers' pretrained models: encoders and GPT-2 for text, ViT and DeiT for images.

No wrapper: parameters keep transformers' own names, so a saved model loads there unchanged.
"""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

from torch import nn

from seven_exp.models.hub import NAMES, from_source, source
from seven_exp.models.loading import mark_new_head
from seven_exp.models.registry import MODELS
from seven_exp.tasks import Head

_AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "spans": "AutoModelForQuestionAnswering",
    "language_modelling": "AutoModelForCausalLM",
    "images": "AutoModelForImageClassification",
}

_HEAD_DROPOUT = {"distilbert": "seq_classif_dropout", "deberta-v2": "cls_dropout"}
"""Model type -> name of the dropout before its classifier, where it isn't BERT's name."""

_OF_IMAGES = ("vit_hf", "deit")


def config_of(name: str, kind: str) -> Any:
    """A model's configuration, if transformers has its architecture for this task.

    Args:
        name: Name of the model; see `seven_exp.models.hub.source`.
        kind: A `Head`, or "images".

    Raises:
        ValueError: It can't be loaded, or is of another kind.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    config = from_source(transformers.AutoConfig, "model.name", name)
    fits = type(config) in getattr(transformers, _AUTO[kind])._model_mapping
    # transformers has encoders as language models, too, but they see the token to predict.
    if kind == "language_modelling" and config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        fits = False
    if not fits:
        what = {"images": "images", "language_modelling": "causal language modelling"}
        raise ValueError(
            f"model.name is '{name}': {config.model_type} has no model for "
            f"{what.get(kind, f'{kind} of text')}; choose another model or data set"
        )
    return config


Dtype = Literal["float32", "bfloat16", "float16"]


def _build(
    name: str,
    kind: str,
    config: Any,
    pretrained: bool,
    dtype: Dtype = "float32",
    *,
    biases: bool = False,
) -> nn.Module:
    """A model; with ``biases``, those that the files lack are new."""
    import transformers
    from transformers.utils import logging

    auto = getattr(transformers, _AUTO[kind])
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model: nn.Module
    if pretrained:
        # A head for other classes is new; a language model has no part that may be.
        model, found = from_source(
            *(auto, "model.name", name),
            config=config, ignore_mismatched_sizes=True, dtype=dtype, output_loading_info=True,
        )  # fmt: skip
        new = (key for key in found["missing_keys"] if not (biases and key.endswith(".bias")))
        lacking = [*new, *(key for key, *_ in found["mismatched_keys"])]
        if lacking and kind == "language_modelling":
            raise ValueError(
                f"model.name is '{name}': its files have no {min(lacking)} of the shape in its "
                f"config.json ({len(lacking)} weights): give the model's own config.json, or "
                "download it again"
            )
        if lacking:
            mark_new_head(model)
    else:
        model = auto.from_config(config, dtype=dtype)
        if kind == "language_modelling":
            model = generating(model, name)
    return model.train()


def generating(model: Any, name: str) -> Any:
    """A model made from a configuration, with its source's settings of generation, if it has any.

    Among them are the tokens that end a text, of which chat models have several.
    """
    import transformers

    place, kind = source("model.name", name), transformers.GenerationConfig
    with contextlib.suppress(OSError):
        model.generation_config = kind.from_pretrained(place)
    return model


def text_model(name: str) -> Callable[..., nn.Module]:
    """The factory of a text model."""

    def build(  # noqa: PLR0913  flat keywords are the user's contract
        num_classes: int,
        vocab_size: int,
        max_length: int,
        head: Head,
        *,
        pretrained: bool = True,
        dtype: Dtype = "float32",
        head_dropout: float | None = None,
        biases: bool = False,
    ) -> nn.Module:
        """A pretrained Transformer with a new head.

        Raises:
            ValueError: It can't be loaded, the tokenizer does not fit it, its head has no dropout
                of its own, or its linear maps can't have biases.
        """
        config = fitting_config(name, head, vocab_size, max_length, biases=biases)
        if head != "language_modelling":
            config.num_labels = num_classes
        if head_dropout is not None:
            _set_head_dropout(config, name, head_dropout)
        return _build(name, head, config, pretrained, dtype, biases=biases)

    return build


def _set_head_dropout(config: Any, name: str, value: float) -> None:
    own = _HEAD_DROPOUT.get(config.model_type, "classifier_dropout")
    if own == "classifier_dropout" and not hasattr(config, own):
        raise ValueError(f"model.head_dropout: '{name}' has no dropout of its head; leave it out")
    setattr(config, own, value)


def fitting_config(
    name: str, head: Head, vocab_size: int, max_length: int, *, biases: bool = False
) -> Any:
    """A text model's configuration, if the tokens fit it.

    Args:
        name: Name of the model.
        head: Its task.
        vocab_size: Number of the tokenizer's tokens.
        max_length: Tokens of a sequence.
        biases: Whether all linear maps of attention and MLPs have biases; new ones are zeros.

    Raises:
        ValueError: It can't be loaded, the tokenizer does not fit it, or its architecture has no
            such biases.
    """
    config = config_of(name, head)
    if biases:
        _add_biases(config, name)
    if vocab_size > config.vocab_size:
        raise ValueError(
            f"model.name is '{name}': it knows {config.vocab_size:,} tokens and the tokenizer "
            f"has {vocab_size:,}: give the model's own by dataset.tokenizer"
        )
    places = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        places -= config.pad_token_id + 1  # position ids start after the padding's
    if max_length > places:
        raise ValueError(
            f"dataset.max_length is {max_length}: '{name}' reads at most {places} tokens"
        )
    # A language model needs no padding, and is saved with the configuration that it came with.
    if head != "language_modelling" and config.pad_token_id is None:
        ends = config.eos_token_id
        config.pad_token_id = ends[0] if isinstance(ends, list) else ends
    return config


def _add_biases(config: Any, name: str) -> None:
    found = [key for key in ("attention_bias", "mlp_bias") if hasattr(config, key)]
    if not found:
        raise ValueError(
            f"model.biases is true: transformers' {config.model_type}, which '{name}' is, has no "
            "such biases; choose false"
        )
    for key in found:
        setattr(config, key, True)


def image_model(name: str) -> Callable[..., nn.Module]:
    """The factory of an image model."""

    def build(
        num_classes: int,
        image_size: int,
        channels: int,
        *,
        pretrained: bool = True,
        dtype: Dtype = "float32",
    ) -> nn.Module:
        """A model of images with a new head if the number of classes differs.

        Raises:
            ValueError: It can't be loaded, or the images do not fit it.
        """
        config = config_of(name, "images")
        own = getattr(config, "image_size", None)  # convolutional models have none
        if pretrained and own not in (None, image_size):
            raise ValueError(
                f"model.name is '{name}': its weights are for images of {own} pixels "
                f"a side, not {image_size}: dataset.image_size={own}"
            )
        if pretrained and channels != config.num_channels:
            raise ValueError(
                f"model.name is '{name}': its weights are for images of {config.num_channels} "
                f"channels, not {channels}: choose another data set or model.pretrained=false"
            )
        patch = getattr(config, "patch_size", 1)
        if own is not None and isinstance(patch, int) and image_size % patch:
            raise ValueError(
                f"model.name is '{name}': images of {image_size} pixels a side can't be cut into "
                f"patches of {patch}"
            )
        config.num_labels, config.num_channels = num_classes, channels
        if own is not None:
            config.image_size = image_size
        return _build(name, "images", config, pretrained, dtype)

    return build


for _name in NAMES:
    MODELS.add(_name, image_model(_name) if _name in _OF_IMAGES else text_model(_name))
