"""A model's logits, whatever it wraps them in."""

from typing import Any

import torch
from torch import Tensor


def logits_of(outputs: Any) -> Tensor:
    """The logits of a forward pass.

    Args:
        outputs: A tensor, which is taken as it is; or one of transformers' outputs. Of a span
            model's two, start and end are stacked to shape (batch, length, 2).
    """
    if isinstance(outputs, Tensor):
        return outputs
    if "start_logits" in outputs:
        return torch.stack([outputs["start_logits"], outputs["end_logits"]], dim=-1)
    logits = outputs["logits"]
    assert isinstance(logits, Tensor)
    return logits
