"""Muon for the hidden matrices of a model, AdamW for everything else, as one optimizer."""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

AVAILABLE = hasattr(torch.optim, "Muon")


class Muon(torch.optim.Optimizer):
    """torch's Muon (Jordan et al., 2024) on some matrices, and torch's AdamW on the rest.

    Muon's rate is scaled to the size of AdamW's updates (Liu et al., arXiv 2502.16982, eq. 4), so
    both share a rate and a weight decay.

    Args:
        groups: torch's parameter groups.
        lr: Learning rate.
        matrices: Parameters for Muon, of two dimensions.
        momentum: Of Muon.
        betas: Of AdamW.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        matrices: Collection[Tensor],
        momentum: float,
        betas: tuple[float, float],
    ) -> None:
        chosen = set(map(id, matrices))

        def part(of_muon: bool) -> list[dict[str, Any]]:
            split = [
                {**group, "params": [p for p in group["params"] if (id(p) in chosen) is of_muon]}
                for group in groups
            ]
            return [group for group in split if group["params"]]

        self._parts: list[torch.optim.Optimizer] = []
        if own := part(True):
            made = torch.optim.Muon(own, lr=lr, momentum=momentum, adjust_lr_fn="match_rms_adamw")
            self._parts.append(made)
        if rest := part(False):
            self._parts.append(torch.optim.AdamW(rest, lr=lr, betas=betas))
        self._sizes = [len(one.param_groups) for one in self._parts]
        super().__init__([group for one in self._parts for group in one.param_groups], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # takes no closure
        """One step of both."""
        # The groups and the state are this object's: loading a state replaces them.
        start = 0
        for one, size in zip(self._parts, self._sizes, strict=True):
            one.param_groups, one.state = self.param_groups[start : start + size], self.state
            one.step()
            start += size
