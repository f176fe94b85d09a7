"""Two ranks that split each batch choose the masks of one process on the whole batch."""

import sys

import pytest
import torch
from ranks import found_by, loss, save_found, train
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import seven_exp
from seven_exp.pruning import read_by

STEPS, RANKS = 6, 2
DURING = ("seven_dyn", "platon", "movement", "taylor_dyn", "magnitude_dyn", "rigl", "set", "obert")
OUTSIDE = ("seven_pre", "snip", "force", "grasp", "synflow", "fisher_pre", "random", "wanda")
SOLVERS = ("sparsegpt", "ria", "thanos", "alps", "dsnot", "gblm", "pruner_zero", "wanda/owl")
OF_EACH = ("wanda_pp",)  # reads the norm of a batch's outputs, which is no sum over its examples
NAMES = (*DURING, *OUTSIDE, *SOLVERS, *OF_EACH)


def model_and_batches():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10), nn.Tanh())
    model.append(nn.Linear(10, 3)).double()
    batches = [(torch.randn(8, 12).double(), torch.randint(3, (8,))) for _ in range(STEPS)]
    return model, batches


def masks_of(name, rank=0, ranks=1):
    """The masks after this rank's part of every batch; a name may end with a scope."""
    name, _, scope = name.partition("/")
    model, batches = model_and_batches()
    shares = range(RANKS) if name in OF_EACH and ranks == 1 else [rank]
    step = RANKS if name in OF_EACH else ranks
    batches = [tuple(part[i::step] for part in batch) for batch in batches for i in shares]
    trained = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    window = {"end_step": STEPS, "interval": 2} if name in DURING else {}
    if name in ("seven_pre", "force"):
        window = {"rounds": STEPS}
    if scope:
        window["scope"] = scope
    if "optimizer" in read_by(name):
        window["optimizer"] = optimizer
    pruner = seven_exp.create_pruner(name, trained, sparsity=0.6, exclude=[], **window)
    train(trained, batches, optimizer, pruner)
    return pruner.masks


def of_rank(rank, ranks):
    return {name: masks_of(name, rank, ranks) for name in NAMES}


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return found_by(RANKS, __file__, tmp_path_factory.mktemp("ranks"))


@pytest.mark.slow
@pytest.mark.xdist_group("replicas")
@pytest.mark.parametrize("name", NAMES)
def test_masks_are_those_of_one_process(of_ranks, name):
    alone = masks_of(name)
    for masks in of_ranks:
        assert masks[name].keys() == alone.keys()
        assert all(torch.equal(masks[name][key], alone[key]) for key in alone)


@pytest.mark.xdist_group("replicas")
def test_a_rank_alone_would_choose_otherwise():
    model, batches = model_and_batches()
    half = [tuple(part[::RANKS] for part in batch) for batch in batches]
    chosen = []
    for share in (batches, half):
        pruner = seven_exp.create_pruner("snip", model, sparsity=0.6, exclude=[])
        pruner.prune(share, loss)
        chosen.append(torch.cat([mask.flatten() for mask in pruner.masks.values()]))
    assert not torch.equal(*chosen)


if __name__ == "__main__":
    save_found(of_rank, sys.argv[1])
