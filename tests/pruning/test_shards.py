"""Ranks that each hold some rows of every weight choose the masks of one process."""

import sys

import pytest
import torch
import torch.distributed as dist
from ranks import found_by, save_found, train
from torch import nn

import seven_exp
from seven_exp.pruning import plan_memory
from seven_exp.pruning.memory import held_bytes

STEPS = 6
DURING = ("seven_dyn", "taylor_dyn", "magnitude_dyn", "platon", "sensitivity_dyn", "gradient")
OUTSIDE = ("seven_pre", "snip", "fisher_pre", "magnitude_pre", "snip_iterative")
SCOPES = {
    "seven_dyn/per_layer": {"scope": "per_layer"},
    "seven_pre/per_layer": {"scope": "per_layer"},
    "magnitude_dyn/per_layer": {"scope": "per_layer"},
    "magnitude_dyn/erk": {"scope": "erk"},
    "magnitude_dyn/experts": {"scope": "per_layer"},
    "seven_dyn/floor": {"min_density": 0.3},
    "snip/frozen": {},
    "magnitude_pre/ties": {},
}
NAMES = (*DURING, *OUTSIDE, *SCOPES)
BY_FOUR = ("seven_dyn", "seven_pre/per_layer", "platon", *list(SCOPES)[3:5], *list(SCOPES)[-2:])
SHARED = {2: NAMES, 4: BY_FOUR}
"""Number of ranks -> what they prune with."""


class Experts(nn.Module):
    """Three experts, whose outputs are added; with four ranks, one holds none."""

    def __init__(self):
        super().__init__()
        scales = torch.tensor([1.0, 0.1, 0.01]).view(3, 1, 1)
        self.weight = nn.Parameter(scales * torch.randn(3, 10, 10))

    def forward(self, x):
        return torch.einsum("bi,eoi->bo", x, self.weight)


def model_and_batches(ties=False, experts=False):
    """Rows that neither two nor four ranks share evenly; with four, one holds none of the last."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 17), nn.Tanh(), nn.Linear(17, 10), nn.Tanh())
    model.extend([Experts()] if experts else [])
    model.append(nn.Linear(10, 3)).double()
    if ties:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8).round_().div_(8)
    return model, [(torch.randn(8, 12).double(), torch.randint(3, (8,))) for _ in range(STEPS)]


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor.clone()


def pruned(name, rank=0, ranks=1):
    """Everything that a pruner shows after training on this rank's part of every batch."""
    model, batches = model_and_batches(name.endswith("ties"), name.endswith("experts"))
    own, frozen = SCOPES.get(name, {}), name.endswith("frozen")
    name = name.partition("/")[0]
    batches = [tuple(part[rank::ranks] for part in batch) for batch in batches]
    plan = plan_memory(name, model, ranks=ranks, exclude_defaults=False) if name in DURING else None
    model[0].weight.requires_grad_(not frozen)
    if ranks > 1:
        model = sharded(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = {"end_step": STEPS, "interval": 2} if name in DURING else {}
    if name in ("seven_pre", "snip_iterative"):
        window = {"rounds": STEPS}
    pruner = seven_exp.create_pruner(
        name, model, sparsity=0.6, exclude_defaults=False, **window, **own
    )
    train(model, batches, optimizer, pruner)
    state = pruner.state_dict()
    wholes = {key: {n: whole(t) for n, t in v.items()} for key, v in state["state"].items()}
    continued = seven_exp.create_pruner(
        name, model, sparsity=0.6, exclude_defaults=False, **window, **own
    )
    continued.load_state_dict(state | {"state": wholes})
    check = pruner.check()
    return {
        "masks": {key: whole(mask) for key, mask in pruner.masks.items()},
        "again": {key: whole(mask) for key, mask in continued.masks.items()},
        "scores": {key: whole(score) for key, score in pruner.scores.items()},
        "scores again": {key: whole(score) for key, score in continued.scores.items()},
        "packed": state["masks"],
        "counts": pruner.layer_counts,
        "sparsity": pruner.sparsity,
        "zeros": (check.ok, check.zeros, check.parameters, check.layers),
        "bytes": held_bytes(pruner),
        "planned": plan and plan.per_rank,
    }


def told(make):
    with pytest.raises(ValueError, match="choose") as error:
        make()
    return str(error.value)


def refused():
    model = sharded(model_and_batches()[0])

    def create(name, **settings):
        return told(lambda: seven_exp.create_pruner(name, model, sparsity=0.5, **settings))

    return {
        "rigl": create("rigl", end_step=3, optimizer=torch.optim.SGD(model.parameters(), lr=0.1)),
        "wanda": create("wanda"),
        "movement": create("movement", end_step=3),
        "lamp": create("seven_dyn", end_step=3, scope="lamp"),
        "2:4": create("magnitude_pre", pattern="2:4"),
    }


def of_rank(rank, ranks):
    return {**{name: pruned(name, rank, ranks) for name in SHARED[ranks]}, "refused": refused()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Number of ranks -> what each of them found."""
    return {ranks: found_by(ranks, __file__, tmp_path_factory.mktemp("ranks")) for ranks in SHARED}


pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shards")]


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


SHARDED = [(ranks, name) for ranks, names in SHARED.items() for name in names]


@pytest.mark.parametrize(("ranks", "name"), SHARDED)
def test_masks_and_counts_are_those_of_one_process(found, ranks, name):
    alone = pruned(name)
    for own in (rank[name] for rank in found[ranks]):
        assert same(own["masks"], alone["masks"])
        assert same(own["packed"], alone["packed"])
        for key in ("counts", "sparsity", "zeros"):
            assert own[key] == alone[key]
        for layer, score in alone["scores"].items():
            torch.testing.assert_close(own["scores"][layer], score)


@pytest.mark.parametrize(("ranks", "name"), SHARDED)
def test_a_whole_state_continues_on_shards(found, ranks, name):
    for own in (rank[name] for rank in found[ranks]):
        assert same(own["again"], own["masks"])
        assert same(own["scores again"], own["scores"])


@pytest.mark.parametrize(("ranks", "name"), [case for case in SHARDED if case[1] in DURING])
def test_the_fullest_rank_holds_what_is_planned(found, ranks, name):
    held = [rank[name]["bytes"] for rank in found[ranks]]
    assert max(held) == held[0]
    # Bits fill whole bytes: one byte in each of three layers.
    assert held[0] == pytest.approx(found[ranks][0][name]["planned"], abs=3)
    assert sum(held) == pytest.approx(pruned(name)["bytes"], abs=3 * len(held))


def test_what_needs_whole_weights_is_refused(found):
    for rank in found[2]:
        told = rank["refused"]
        assert told["rigl"].startswith(
            "rigl compares the weights of a layer, which sharding splits"
        )
        assert told["wanda"].startswith("wanda needs whole weights, which sharding splits by rows")
        assert told["movement"].startswith("movement remembers pruned weights")
        assert "choose global, per_layer or erk" in told["lamp"]
        assert told["2:4"].endswith("choose unstructured")


if __name__ == "__main__":
    save_found(of_rank, sys.argv[1])
