"""Any criterion with any schedule, scope and pattern, at any time: it works, or says why not."""

import copy
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import seven_exp
from seven_exp.pruning import (
    PRUNERS,
    SCHEDULES,
    NoEvidenceError,
    Solver,
    build_method,
    read_by,
)
from seven_exp.pruning.allocation import SCOPES, Measured
from seven_exp.pruning.method import needs_model, regrows, starts_sparse
from seven_exp.pruning.regrowth import FromZero
from seven_exp.pruning.select import kept_count

PATTERNS = ["unstructured", "2:4", "1:4", "2x2", "1x4", "rows", "heads"]
REFUSALS = "pattern|scope|runs the model|exchanges weights"


class Tiny(nn.Module):
    """Attention, a convolution and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(4, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, x):
        x = self.conv(x).transpose(1, 2)
        return self.out(self.attention(x, x, x, need_weights=False)[0]).mean(1)


GENERATOR = torch.Generator().manual_seed(1)
BATCHES = [
    (torch.randn(6, 4, 5, generator=GENERATOR), torch.randint(4, (6,), generator=GENERATOR))
    for _ in range(3)
]


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def run(name, *, when, reload=False, **arguments):
    """A short training; with ``reload`` the pruner is saved and loaded at every step."""
    torch.manual_seed(0)
    model = Tiny()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
    measured = isinstance(SCOPES[arguments["scope"]], Measured)
    settings = {"end_step": 5} if when == "during" else {"rounds": 1 if measured else 2}
    if "optimizer" in read_by(name, when):
        settings["optimizer"] = optimizer
    pruner = seven_exp.create_pruner(name, model, when=when, exclude=[], **settings, **arguments)
    if when == "before":
        pruner.prune(BATCHES, loss_fn)
    for t in range(7):
        if when == "after" and t == 4:
            pruner.prune(BATCHES, loss_fn)
        loss_fn(model, BATCHES[t % 3]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        if reload:
            pruner.load_state_dict(copy.deepcopy(pruner.state_dict()))
        for layer, mask in pruner.masks.items():
            weight = model.get_parameter(layer).detach()
            assert weight.isfinite().all()
            assert not weight[~mask].any()
    return pruner


def check_counts(pruner, scope, pattern, sparsity):
    """Exact to the weight, or short by less than a unit, as the scope and the pattern promise."""
    kept = {layer: int(mask.sum()) for layer, mask in pruner.masks.items()}
    sizes = {layer: mask.numel() for layer, mask in pruner.masks.items()}
    if pattern in ("2:4", "1:4"):
        n, m = map(int, pattern.split(":"))
        for layer, mask in pruner.masks.items():
            groups = mask.movedim(1, -1).reshape(-1, m).sum(1)
            assert (groups == n).all(), layer
    elif pattern == "unstructured" and scope in ("global", "lamp", "owl", "alpha"):
        assert sum(kept.values()) == kept_count(1 - sparsity, sum(sizes.values()))
    elif pattern == "unstructured" and scope == "per_layer":
        assert kept == {layer: kept_count(1 - sparsity, n) for layer, n in sizes.items()}
    elif pattern == "unstructured" and scope == "per_row":
        assert kept == {layer: kept_count(1 - sparsity, n) for layer, n in sizes.items()}
        for layer, mask in pruner.masks.items():
            rows = mask.flatten(1).sum(1)
            assert rows.max() - rows.min() <= 1, layer
    else:
        largest = {"2x2": 8, "1x4": 8, "rows": 16, "heads": 128}.get(pattern, 1)
        short = (1 - sparsity) * sum(sizes.values()) - sum(kept.values())
        pools = 1 if scope in ("global", "lamp") else len(sizes)
        assert -1e-6 <= short < largest * pools + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRUNERS if PRUNERS[name].prunes])
@settings(max_examples=settings().max_examples * 2 // 5)
@given(
    when=st.sampled_from(["before", "during", "after"]),
    schedule=st.sampled_from(list(SCHEDULES)),
    scope=st.sampled_from(list(SCOPES)),
    pattern=st.sampled_from(PATTERNS),
    sparsity=st.floats(0.05, 0.95),
)
def test_any_combination_is_exact_or_refused_with_a_reason(
    name, when, schedule, scope, pattern, sparsity
):
    if ":" in pattern:
        sparsity = {"2:4": 0.5, "1:4": 0.75}[pattern]
    arguments = {
        "when": when, "schedule": schedule, "scope": scope, "pattern": pattern,
        "sparsity": sparsity,
    }  # fmt: skip
    if pattern == "heads":
        arguments["include"] = ["attention*"]
    if not _fits(name, when, scope, pattern):
        with pytest.raises(ValueError, match=REFUSALS):
            run(name, **arguments)
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "(?s).*has lost all its weights")
        try:
            pruner = run(name, **arguments)
        except NoEvidenceError as error:
            pruner, reason = None, str(error)
        if pruner is None:
            # Whole units of so few that a layer is left without any, from the first step on.
            assert starts_sparse(build_method(name, {}))
            assert pattern != "unstructured"
            assert "is all zero" in reason or "is pruned entirely" in reason
            return
        again = run(name, reload=True, **arguments)
    if name != "soft_movement":
        check_counts(pruner, scope, pattern, sparsity)
    for layer, mask in pruner.masks.items():
        assert torch.equal(mask, again.masks[layer]), "neither time nor reloading may change a mask"
    if not isinstance(pruner.method, Solver):
        assert all(score.isfinite().all() for score in pruner.scores.values())


def _fits(name, when, scope, pattern):
    method = build_method(name, {})
    if needs_model(method) and when == "during":
        return False
    if starts_sparse(method) and when != "during":
        return False
    measured = SCOPES[scope]
    blind = isinstance(measured, Measured) and measured.of_inputs and not isinstance(method, Solver)
    if blind or (isinstance(measured, Measured) and when == "during"):
        return False
    if name == "short_gpt" or (name == "flap" and pattern != "heads"):
        return False  # other patterns: tests/test_structured.py
    if pattern == "heads" and regrows(method) is FromZero:
        return False
    if name == "dsnot" and pattern not in ("unstructured", "2:4", "1:4"):
        return False
    if ":" in pattern:
        return scope in ("global", "per_layer", "per_row")
    if pattern == "heads":
        return scope in ("global", "per_layer")
    return pattern == "unstructured" or scope != "per_row"
