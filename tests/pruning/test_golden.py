"""The pruner reproduces the authors' implementation, mask by mask."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import seven_exp

GOLDEN = Path(__file__).parent.parent / "golden"
CASES = json.loads((GOLDEN / "cases.json").read_text())["cases"]


def model_of(shapes):
    return nn.Sequential(
        *(nn.Linear(s[1], s[0]) if len(s) == 2 else nn.Conv2d(s[1], s[0], s[2:]) for s in shapes)
    )


@pytest.mark.parametrize("name", ["seven_dyn", "seven_pre"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_replay(case, name):
    tensors = load_file(GOLDEN / case["file"])
    model = model_of(case["layer_shapes"])
    pruner = seven_exp.create_pruner(
        name,
        model,
        sparsity=case["target_ratio"],
        begin_step=0,
        end_step=case["iter_num"],
        alpha_1=case["alpha_1"],
        alpha_2=case["alpha_2"],
    )
    for t in range(case["steps"]):
        alive = [mask.clone() for mask in pruner.masks.values()]
        for i, layer in enumerate(model):
            layer.weight.data.copy_(tensors[f"L{i}.weights"][t])
            layer.weight.grad = tensors[f"L{i}.grads"][t].clone()
        gradients = [layer.weight.grad.clone() for layer in model]
        pruner.step()

        assert all(torch.equal(a.weight.grad, b) for a, b in zip(model, gradients, strict=True))
        kept = sum(int(mask.sum()) for mask in pruner.masks.values())
        assert kept == int(tensors["k"][t])
        for i, (mask, score) in enumerate(
            zip(pruner.masks.values(), pruner.state["score"], strict=True)
        ):
            recorded_mask = tensors[f"L{i}.mask"][t].bool()
            recorded = tensors[f"L{i}.imp_after"][t]
            if case.get("edge"):
                compared = alive[i] & (recorded > 0)
            else:
                assert torch.equal(mask, recorded_mask)
                compared = alive[i]
            torch.testing.assert_close(score[compared], recorded[compared], rtol=1e-5, atol=0)
            assert (model[i].weight.data[~mask] == 0).all()


def test_the_last_step_reaches_the_target():
    case = next(case for case in CASES if case["name"] == "seven_dyn_mlp_s09_T30")
    model = model_of(case["layer_shapes"])
    pruner = seven_exp.create_pruner("seven_dyn", model, sparsity=0.9, end_step=case["iter_num"])
    for _ in range(case["iter_num"]):
        for layer in model:
            layer.weight.grad = torch.randn_like(layer.weight)
        pruner.step()
    # 239 weights at density 0.1
    assert sum(int(mask.sum()) for mask in pruner.masks.values()) == 23
