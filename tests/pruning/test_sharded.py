"""Selection among sharded scores gives the masks of one process, without gathering a score."""

import os
import sys

import pytest
import torch
from ranks import start
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from seven_exp.pruning.select import top_k_masks

SHAPES = [(5, 4), (1, 6), (33, 20), (64, 3, 3, 3)]


def scores_of(seed):
    generator = torch.Generator().manual_seed(seed)
    # Rounded, so that ties cross layers and ranks.
    scores = [torch.randn(shape, generator=generator).mul(4).round() for shape in SHAPES]
    scores[2][3, 3] = float("nan")
    return scores, [torch.rand(shape, generator=generator) < 0.8 for shape in SHAPES]


def in_one_process(k):
    return top_k_masks(*scores_and_k(k))


def scores_and_k(k):
    scores, candidates = scores_of(0)
    return scores, k, candidates


def of_rank(ks):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    for k in ks:
        scores, _, candidates = scores_and_k(k)
        own, allowed = (
            [distribute_tensor(t, mesh, [Shard(0)]).to_local() for t in tensors]
            for tensors in (scores, candidates)
        )
        masks = top_k_masks(own, k, allowed, group=mesh.get_group())
        whole = in_one_process(k)
        for mask, full in zip(masks, whole, strict=True):
            assert torch.equal(mask, distribute_tensor(full, mesh, [Shard(0)]).to_local())
    with pytest.raises(ValueError, match="can't keep"):
        top_k_masks(own, 10**6, allowed, group=mesh.get_group())
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.skipif(not distributed.is_available(), reason="needs torch.distributed")
def test_two_processes_choose_what_one_would():
    available = sum(int(c.sum()) for c in scores_of(0)[1])
    start(2, __file__, 0, 1, 300, 1200, available)


if __name__ == "__main__":
    of_rank(list(map(int, sys.argv[1:])))
