"""The memory plan equals what pruners then hold."""

import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning import PRUNERS, plan_memory, read_by
from seven_exp.pruning.memory import held_bytes

DURING = [n for n in PRUNERS if PRUNERS[n].when == "during" and PRUNERS[n].prunes]


def net(device="cpu"):
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64)).to(device)


@pytest.mark.parametrize("name", DURING)
def test_what_is_planned_is_what_is_held(name):
    plan = plan_memory(name, net("meta"), ranks=3)
    assert (plan.prunable, plan.total) == (2 * 64 * 128, 2 * 64 * 128 + 64 + 128)
    model = net()
    settings = {"end_step": 9}
    if "optimizer" in read_by(name):
        settings["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.1)
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, **settings)
    held = []
    for _ in range(9):
        for parameter in model.parameters():
            parameter.grad = 1e-4 * torch.randn_like(parameter)
        pruner.step()
        held.append(held_bytes(pruner))
    assert len(set(held)) == 1
    assert held[-1] == pytest.approx(plan.per_weight * plan.prunable)
    assert plan.per_rank == -(-held[-1] // 3)


def test_seven_holds_three_numbers_and_a_bit():
    assert plan_memory("seven_dyn", net("meta")).per_weight == 3 * 4 + 1 / 8
    assert plan_memory("seven_dyn", net("meta"), moments="bfloat16").per_weight == 4 + 2 * 2 + 1 / 8


def test_a_model_of_billions_costs_nothing_to_plan():
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(16384, 16384) for _ in range(26)))
    assert plan_memory("seven_dyn", model, ranks=8).prunable > 6.9e9
