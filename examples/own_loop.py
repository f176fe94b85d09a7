"""SEVENpre and SEVENdyn in your own loop: plain torch, no config, no tracker.

python examples/own_loop.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn

import seven_exp

TRAIN, STEPS, SPARSITY = 1400, 300, 0.9


def main() -> None:
    """Train the same network twice and print its accuracy and sparsity."""
    pixels, labels = (torch.as_tensor(array) for array in load_digits(return_X_y=True))
    x, y = pixels.float() / 16, labels.long()

    def loss(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x[rows]), y[rows])

    for name in ("seven_pre", "seven_dyn"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU())
        model.append(nn.Linear(128, 10))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        batches = [torch.randint(TRAIN, (64,)) for _ in range(STEPS)]
        if name == "seven_pre":
            pruner = seven_exp.create_pruner(
                name, model, sparsity=SPARSITY, rounds=50, exclude=["4"]
            )
            pruner.prune(batches, loss)
        else:
            pruner = seven_exp.create_pruner(
                name, model, sparsity=SPARSITY, begin_step=30, end_step=200, exclude=["4"]
            )
        for rows in batches:
            loss(model, rows).backward()
            optimizer.step()
            pruner.step()  # after optimizer.step(), before zero_grad()
            optimizer.zero_grad()
        accuracy = (model(x[TRAIN:]).argmax(1) == y[TRAIN:]).float().mean()
        print(f"{name}: {accuracy:.1%} accuracy at {pruner.sparsity:.1%} sparsity")


if __name__ == "__main__":
    main()
