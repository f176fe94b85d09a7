"""Each criterion's scores against its formula, stated anew in float64 NumPy."""

import numpy as np
import pytest
import torch
from torch import nn

import seven_exp


def regression():
    """A linear model with squared loss, whose gradient is known in closed form."""
    torch.manual_seed(0)
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    batches = [
        (
            torch.randn(5, 6, generator=generator, dtype=torch.float64),
            torch.randn(5, 4, generator=generator, dtype=torch.float64),
        )
        for _ in range(3)
    ]
    return model, batches


def loss_fn(model, batch):
    x, y = batch
    return 0.5 * (model(x) - y).square().sum()


def closed_form(weight, batch):
    """dL/dW = (X W^T - Y)^T X."""
    x, y = (t.numpy() for t in batch)
    return (x @ weight.T - y).T @ x


def scores_after(name, **settings):
    """Scores at the dense weights: a sparsity of 0 prunes nothing."""
    model, batches = regression()
    weight = model.weight.detach().numpy().copy()
    pruner = seven_exp.create_pruner(name, model, sparsity=0.0, when="before", **settings)
    pruner.prune(batches, loss_fn)
    return pruner.scores["weight"].numpy(), weight, batches


def test_magnitude():
    for name in ("magnitude", "magnitude_pre", "magnitude_dyn"):
        scores, weight, _ = scores_after(name)
        np.testing.assert_array_equal(scores, np.abs(weight))


def test_snip_sums_gradients_before_it_takes_the_size():
    scores, weight, batches = scores_after("snip")
    gradient = sum(closed_form(weight, batch) for batch in batches)
    np.testing.assert_allclose(scores, np.abs(weight * gradient), rtol=1e-12)


def test_gradient_is_that_of_the_latest_batch():
    scores, weight, batches = scores_after("gradient", rounds=3)
    np.testing.assert_allclose(scores, np.abs(closed_form(weight, batches[2])), rtol=1e-12)


def test_random_is_uniform_and_follows_its_seed():
    model = nn.Linear(200, 100)
    draws = [
        seven_exp.create_pruner("random", model, sparsity=0.5, seed=seed).scores["weight"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    quantiles = torch.quantile(draws[0], torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    torch.testing.assert_close(
        quantiles, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]), atol=0.02, rtol=0
    )


def test_per_layer_magnitude_is_a_quantile_threshold():
    """What the ordinary method does: in each layer, drop |w| below its quantile."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    weights = [layer.weight.detach().clone() for layer in model]
    pruner = seven_exp.create_pruner("magnitude", model, sparsity=0.4, scope="per_layer")
    pruner.prune()
    for weight, mask in zip(weights, pruner.masks.values(), strict=True):
        # A quantile halfway between the last pruned and the first kept value
        below = 0.4 * weight.numel()
        threshold = np.quantile(weight.abs().numpy(), (below - 0.5) / (weight.numel() - 1))
        assert torch.equal(mask, weight.abs() >= float(threshold))


@pytest.mark.parametrize("name", ["my_noise", "my_noise_dyn"])
def test_a_criterion_from_outside(name):
    from seven_exp.pruning import PRUNERS

    if name not in PRUNERS:

        @seven_exp.register("my_noise", when="before")
        @seven_exp.register("my_noise_dyn", when="during")
        class Smallest(seven_exp.Criterion):
            """Keeps the smallest weights."""

            def scores(self, weights):
                return [-w.detach().abs() for w in weights]

    try:
        model = nn.Linear(4, 1, bias=False)
        model.weight.data.copy_(torch.tensor([[1.0, -4.0, 2.0, -3.0]]))
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, end_step=1)
        pruner.step()
        assert pruner.masks["weight"].tolist() == [[True, False, True, False]]
    finally:
        for registered in ("my_noise", "my_noise_dyn"):
            PRUNERS._entries.pop(registered, None)
