"""Processes of one group that tests start, and the training that they share."""

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group, which its defaults would keep
from preloaded import python
from torch.nn.functional import cross_entropy


def start(ranks: int, script: str, *arguments: object) -> None:
    """Run a script in the processes of one group, which torch's own variables describe."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    started = [
        subprocess.Popen(
            [python(), script, *map(str, arguments)],
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    assert [rank.wait() for rank in started] == [0] * ranks


def save_found(find: Callable[[int, int], object], folder: str) -> None:
    """In such a process: save what it finds, given its rank and the number of ranks."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(find(rank, dist.get_world_size()), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def found_by(ranks: int, script: str, folder: Path) -> list:
    """What each process of such a script has saved."""
    start(ranks, script, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def loss(model, batch):
    inputs, targets = batch
    return cross_entropy(model(inputs), targets)


def train(model, batches, optimizer, pruner):
    """Prune before the training, or during it."""
    if pruner.when != "during":
        pruner.prune(batches, loss)
    for batch in batches:
        loss(model, batch).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
