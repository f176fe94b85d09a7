"""The memory plan equals what pruners then hold."""

import math

import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning import PRUNERS, Elementwise, Ranking, plan_memory, read_by
from seven_exp.pruning.memory import held_bytes

# The others prune units, which this net lacks.
PRUNED = sorted(set(PRUNERS) - {"flap", "short_gpt"})


def net(device="cpu", dtype=torch.float32):
    layers = [nn.Linear(50, 27), nn.ReLU(), nn.Linear(27, 33, bias=False), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(33, 5)).to(device, dtype)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PRUNED)
def test_what_is_planned_is_what_is_held(name, dtype):
    plan = plan_memory(name, net("meta", dtype), ranks=3)
    assert (plan.prunable, plan.total) == (50 * 27 + 27 * 33 + 33 * 5, plan.prunable + 27 + 5)
    model, settings, held = net(dtype=dtype), {}, []
    batches = [torch.randn(8, 50, dtype=dtype) for _ in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if "optimizer" in read_by(name):
        settings["optimizer"] = optimizer
    if PRUNERS[name].when == "during":
        settings["end_step"] = 4
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, **settings)
    if PRUNERS[name].when == "during":
        for _ in batches:
            for parameter in model.parameters():
                parameter.grad = 1e-4 * torch.randn_like(parameter)
            optimizer.step()
            pruner.step()
            held.append(held_bytes(pruner))
    else:
        pruner.prune(batches, lambda model, batch: model(batch).square().mean())
        held.append(held_bytes(pruner))
    assert len(set(held)) == 1
    assert held[-1] == pytest.approx(plan.per_weight * plan.prunable)
    if not isinstance(pruner.method, Ranking) or not isinstance(pruner.method.score, Elementwise):
        return  # ranks can't share it
    # Of 27, 33 and 5 rows the first of three ranks holds 9, 11 and 2; masks fill whole bytes.
    rows, own = [27 * 50, 33 * 27, 5 * 33], [9 * 50, 11 * 27, 2 * 33]
    masks, of_rank = (sum(math.ceil(n / 8) for n in sizes) for sizes in (rows, own))
    state = (held[-1] - masks) * sum(own) / sum(rows)
    assert plan.per_rank == pytest.approx(of_rank + state)


def test_seven_holds_three_numbers_and_a_bit():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64))
    assert plan_memory("seven_dyn", model).per_weight == 3 * 4 + 1 / 8
    assert plan_memory("seven_dyn", model, moments="bfloat16").per_weight == 4 + 2 * 2 + 1 / 8


def test_a_model_of_billions_costs_nothing_to_plan():
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(16384, 16384) for _ in range(26)))
    assert plan_memory("seven_dyn", model, ranks=8).prunable > 6.9e9
