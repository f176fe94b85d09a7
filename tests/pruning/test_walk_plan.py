"""Memory of pruning block by block, planned on the meta device."""

import pytest
import torch
from torch import nn

from seven_exp.pruning import plan_walk

LAYERS = {"q": (4096, 4096), "k": (4096, 4096), "v": (4096, 4096), "o": (4096, 4096),
          "gate": (4096, 11008), "up": (4096, 11008), "down": (11008, 4096)}  # fmt: skip


class Block(nn.Module):
    def __init__(self, divisor: int) -> None:
        super().__init__()
        for name, (inputs, outputs) in LAYERS.items():
            self.add_module(name, nn.Linear(inputs // divisor, outputs // divisor, bias=False))


class Decoder(nn.Module):
    """The matrices of a Llama of 7B, or those divided by a number along both dimensions."""

    def __init__(self, depth: int, divisor: int = 1) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(32000, 4096 // divisor)
        self.layers = nn.ModuleList(Block(divisor) for _ in range(depth))
        self.lm_head = nn.Linear(4096 // divisor, 32000, bias=False)


def decoder(depth: int, divisor: int = 1) -> nn.Module:
    with torch.device("meta"):
        return Decoder(depth, divisor).to(torch.bfloat16)


def test_7b_in_bfloat16_fits_24_gb():
    for name in ("wanda", "sparsegpt"):
        plan = plan_walk(name, decoder(32), sequences=166, length=2048)
        assert plan.total < 24e9
        assert sum(p.numel() for p in decoder(32).parameters()) * 2 > 13e9
        assert plan.block == 2 * sum(a * b for a, b in LAYERS.values())
        assert plan.outside == 2 * 2 * 32000 * 4096
        # Four bytes for each input, or each pair of inputs, of each matrix.
        power = {"wanda": 1, "sparsegpt": 2}[name]
        assert plan.statistics == 4 * sum(inputs**power for inputs, _ in LAYERS.values())
        assert plan.inputs == 2 * 166 * 2048 * 4096 * 2


def test_depth_costs_nothing():
    plans = {plan_walk("sparsegpt", decoder(n), sequences=8, length=64) for n in (4, 8, 16)}
    assert len(plans) == 1


def test_what_has_no_blocks_or_reads_the_whole_model_is_refused():
    with pytest.raises(ValueError, match="seven_pre reads the whole model"):
        plan_walk("seven_pre", decoder(2, 64), sequences=1, length=8)
    with pytest.raises(ValueError, match="the model has no blocks"):
        plan_walk("wanda", decoder(1, 64), sequences=1, length=8)
