"""Each criterion's scores against its formula, stated independently in float64 NumPy."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning import State


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


def mask_of_best(scores, k):
    """The mask of the k largest; of equal ones the first."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.flatten(), kind="stable")[:k]] = True
    return mask.reshape(scores.shape)


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


def test_snip_forgets_what_it_saw_before():
    model, batches = regression()
    pruner = seven_exp.create_pruner("snip", model, sparsity=0.0)
    pruner.prune(batches, loss_fn)
    once = pruner.scores["weight"]
    pruner.prune(batches, loss_fn)
    assert torch.equal(pruner.scores["weight"], once)


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
    @seven_exp.register("my_noise", when="before")
    @seven_exp.register("my_noise_dyn", when="during")
    class Smallest(seven_exp.Score):
        """Keeps the smallest weights."""

        def score(self, state, weights):
            return [-w.detach().abs() for w in weights]

    model = nn.Linear(4, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, -4.0, 2.0, -3.0]]))
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, end_step=1)
    pruner.step()
    assert pruner.masks["weight"].tolist() == [[True, False, True, False]]


def test_lamp_by_its_definition():
    scores, weight, _ = scores_after("lamp")
    squares = weight.flatten() ** 2
    expected = [w / squares[squares >= w].sum() for w in squares]
    np.testing.assert_allclose(scores.flatten(), expected, rtol=1e-12)


def test_taylor_and_fisher_sum_over_steps():
    scores, weight, batches = scores_after("taylor_pre", rounds=3)
    gradients = [closed_form(weight, batch) for batch in batches]
    np.testing.assert_allclose(scores, sum(np.abs(weight * g) for g in gradients), rtol=1e-12)
    scores, weight, batches = scores_after("fisher_pre", rounds=3)
    np.testing.assert_allclose(scores, weight**2 * sum(g**2 for g in gradients), rtol=1e-12)


def test_grasp_is_weight_times_hessian_times_gradient():
    """For logits / 200 the loss is |X W^T/200 - Y|^2 / 2: H = X^T X / 200^2, for each output."""
    scores, weight, batches = scores_after("grasp")
    gradient, hessian = np.zeros_like(weight), np.zeros((6, 6))
    for x, y in ((x.numpy(), y.numpy()) for x, y in batches):
        gradient += (x @ weight.T / 200 - y).T @ x / 200
        hessian += x.T @ x / 200**2
    np.testing.assert_allclose(scores, weight * (gradient @ hessian), rtol=1e-9)


def test_grasp_by_finite_differences_on_a_nonlinear_model():
    """H g is the derivative of the gradient along g."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    weights = [model[0].weight, model[2].weight]
    batch = (torch.randn(7, 5).double(), torch.randint(3, (7,)))

    def loss(m, b):
        return nn.functional.cross_entropy(m(b[0]), b[1])

    def gradient():
        return torch.autograd.grad(
            nn.functional.cross_entropy(model(batch[0]) / 200, batch[1]), weights
        )

    pruner = seven_exp.create_pruner("grasp", model, sparsity=0.0, exclude=[])
    pruner.prune([batch], loss)
    scores = [score.clone() for score in pruner.scores.values()]
    dense, g, step = [w.detach().clone() for w in weights], gradient(), 1.0
    ends = []
    for sign in (1, -1):
        for weight, start, direction in zip(weights, dense, g, strict=True):
            weight.data.copy_(start + sign * step * direction)
        ends.append(gradient())
    for found, start, up, down in zip(scores, dense, *ends, strict=True):
        expected = start * (up - down) / (2 * step)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-12)


def test_grasp_s_temperature_is_found_however_the_loss_finds_the_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model.scale = 2.0
    batch = (torch.randn(8, 4).double(), torch.randint(3, (8,)))
    inner = nn.functional.cross_entropy

    def scores(loss_fn, **settings):
        pruner = seven_exp.create_pruner("grasp", model, sparsity=0.0, exclude=[], **settings)
        pruner.prune([batch], loss_fn)
        return torch.cat([score.flatten() for score in pruner.scores.values()])

    expected = scores(lambda m, b: m.scale * inner(m(b[0]), b[1]))
    closed = scores(lambda _, b: model.scale * inner(model(b[0]), b[1]))
    by_hand = scores(lambda m, b: m.scale * inner(m(b[0]) / 200, b[1]), temperature=1.0)
    torch.testing.assert_close(closed, expected)
    torch.testing.assert_close(by_hand, expected)
    assert not torch.allclose(scores(lambda m, b: inner(m(b[0]), b[1]), temperature=1.0), expected)


def test_synflow_leaves_indices_alone_and_looks_into_outputs():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3, bias=False)
            self.register_buffer("order", torch.tensor([2, 0, 3, 1]))

        def forward(self, x):
            return {"logits": self.layer(x[:, self.order])}

    model = Model()
    pruner = seven_exp.create_pruner("synflow", model, sparsity=0.0, rounds=1)
    pruner.prune([torch.randn(2, 4)], lambda m, x: m(x)["logits"].sum())
    torch.testing.assert_close(
        pruner.scores["layer.weight"], model.layer.weight.detach().abs().double()
    )
    with pytest.raises(ValueError, match="does not work on token ids"):
        pruner.prune([{"input_ids": torch.ones(1, 4)}], lambda m, x: x)


def test_synflow_conserves_flow_through_every_layer():
    """Summed over a layer the scores are R, for all layers alike (Tanaka et al., theorem 1)."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False), nn.ReLU(), nn.Flatten(),
        nn.Linear(12, 7, bias=False), nn.ReLU(), nn.Linear(7, 5, bias=False),
    )  # fmt: skip
    pruner = seven_exp.create_pruner("synflow", model, sparsity=0.0, rounds=1)
    pruner.prune([torch.randn(2, 1, 4, 4)], lambda m, b: m(b).sum())
    totals = [float(score.sum()) for score in pruner.scores.values()]
    weights = [layer.weight.detach().abs().double() for layer in (model[0], model[3], model[5])]
    hidden = nn.functional.conv2d(torch.ones(1, 1, 4, 4).double(), weights[0]).flatten(1)
    flow = float((hidden @ weights[1].T @ weights[2].T).sum())
    assert totals == pytest.approx([flow] * 3, rel=1e-9)


def test_iterative_snip_looks_at_the_masked_model_alone():
    model, batches = regression()
    weight = model.weight.detach().numpy().copy()
    pruner = seven_exp.create_pruner("snip_iterative", model, sparsity=0.75, rounds=2)
    pruner.prune(batches[:2], loss_fn)
    # densities 0.25^(1/2) and 0.25 of 24 weights
    first = np.abs(weight * closed_form(weight, batches[0]))
    mask = mask_of_best(first, 12)
    masked = weight * mask
    second = np.where(mask, np.abs(masked * closed_form(masked, batches[1])), -1)
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), mask_of_best(second, 6))


def test_force_scores_pruned_weights_at_their_dense_value():
    model, batches = regression()
    weight = model.weight.detach().numpy().copy()
    pruner = seven_exp.create_pruner("force", model, sparsity=0.75, rounds=2)
    pruner.prune(batches[:2], loss_fn)
    first = np.abs(weight * closed_form(weight, batches[0]))
    mask = mask_of_best(first, 12)
    masked = weight * mask
    expected = mask_of_best(np.abs(weight * closed_form(masked, batches[1])), 6)
    np.testing.assert_array_equal(pruner.masks["weight"].numpy(), expected)
    assert (expected & ~mask).any(), "the case must hold a weight that returns"
    final = model.weight.detach().numpy()
    np.testing.assert_array_equal(final, weight * expected)


def stepped(name, steps, sparsity=0.0, **settings):
    """A pruner after steps with given weights and gradients, and these."""
    rng = np.random.default_rng(0)
    model = nn.Linear(6, 4, bias=False, dtype=torch.float64)
    pruner = seven_exp.create_pruner(name, model, sparsity=sparsity, end_step=steps, **settings)
    fed = []
    for _ in range(steps):
        weight, gradient = rng.standard_normal((2, 4, 6))
        model.weight.data.copy_(torch.from_numpy(weight))
        model.weight.grad = torch.from_numpy(gradient.copy())
        pruner.step()
        fed.append((weight, gradient))
    return pruner, fed


def test_platon_by_its_recurrence():
    beta_1, beta_2, window = 0.7, 0.9, 3
    pruner, fed = stepped("platon", 9, beta_1=beta_1, beta_2=beta_2, window=window)
    smooth = uncertain = np.zeros((4, 6))
    for start in range(0, 9, window):
        importance = np.mean([np.abs(w * g) for w, g in fed[start : start + window]], axis=0)
        smooth = beta_1 * smooth + (1 - beta_1) * importance
        uncertain = beta_2 * uncertain + (1 - beta_2) * np.abs(importance - smooth)
    np.testing.assert_allclose(pruner.scores["weight"].numpy(), smooth * uncertain, rtol=1e-12)


def test_movement_is_adam_on_gradient_times_weight():
    pruner, fed = stepped("movement", 5, lr=0.05, betas=(0.8, 0.95))
    scores = torch.zeros(4, 6, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([scores], lr=0.05, betas=(0.8, 0.95))
    for weight, gradient in fed:
        scores.grad = torch.from_numpy(weight * gradient)
        adam.step()
    torch.testing.assert_close(pruner.scores["weight"], scores.detach(), rtol=1e-9, atol=1e-12)


def test_movement_remembers_what_it_prunes():
    model = nn.Linear(2, 1, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    pruner = seven_exp.create_pruner(
        "movement", model, sparsity=0.5, end_step=9, schedule="one_shot"
    )
    seen = []
    for gradient in ([1.0, -1.0], *[[-9.0, 1.0]] * 8):
        model.weight.grad = torch.tensor([gradient])
        pruner.step()
        seen.append(model.weight.detach().tolist()[0])
    # the first weight moves towards zero and goes, then its gradient turns and it is back as it was
    assert seen[0] == [0.0, 2.0]
    assert seen[-1] == [1.0, 0.0]


def masked_values(name, **settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Tanh(), nn.Linear(30, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = seven_exp.create_pruner(
        name, model, sparsity=0.8, end_step=12, interval=3, optimizer=optimizer, **settings
    )
    pruner.start()
    history = [{k: m.clone() for k, m in pruner.masks.items()}]
    for _ in range(15):
        before = {k: model.get_parameter(k).detach().clone() for k in pruner.masks}
        x = torch.randn(16, 20)
        model(x).square().mean().backward()
        gradients = {k: model.get_parameter(k).grad.clone() for k in pruner.masks}
        optimizer.step()
        moved = {k: model.get_parameter(k).detach().clone() for k in pruner.masks}
        pruner.step()
        optimizer.zero_grad()
        history.append({k: m.clone() for k, m in pruner.masks.items()})
        yield model, optimizer, history, before, moved, gradients


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_dynamic_sparsity_exchanges_as_many_as_it_should(name):
    steps = list(masked_values(name, drop=0.3))
    history = steps[-1][2]
    counts = [{k: int(m.sum()) for k, m in masks.items()} for masks in history]
    assert all(count == counts[0] for count in counts)
    densities = {k: counts[0][k] / history[0][k].numel() for k in counts[0]}
    # the smaller layer is denser by (10 + 30) / 300 to (20 + 30) / 600, and the total is right
    assert densities["2.weight"] / densities["0.weight"] == pytest.approx(1.6, rel=0.03)
    assert sum(counts[0].values()) == pytest.approx(0.2 * 900, abs=2)
    for t, (old, new) in enumerate(itertools.pairwise(history)):
        for layer, mask in old.items():
            exchanged = int((mask & ~new[layer]).sum())
            progress = (t + 1) / 12
            limit = int(0.3 * (1 + np.cos(np.pi * progress)) / 2 * counts[0][layer])
            updates = (t + 1) % 3 == 0 and t < 12
            assert exchanged <= (limit if updates else 0)
            if t == 2:
                assert exchanged > 0


def test_rigl_drops_the_smallest_and_grows_the_steepest_at_zero():
    for t, step in enumerate(masked_values("rigl", drop=0.3)):
        model, optimizer, history, _, moved, gradients = step
        if t != 2:
            continue
        for layer, new in history[-1].items():
            old = history[-2][layer]
            alive = int(old.sum())
            drop = int(0.3 * (1 + np.cos(np.pi * 3 / 12)) / 2 * alive)
            size = moved[layer].abs().masked_fill(~old, -1).flatten()
            survivors = set(size.argsort(descending=True)[: alive - drop].tolist())
            steep = gradients[layer].abs().flatten().argsort(descending=True).tolist()
            grown = [i for i in steep if i not in survivors][:drop]
            assert set(new.flatten().nonzero().flatten().tolist()) == survivors | set(grown)
            weight = model.get_parameter(layer)
            born = new & ~old
            assert (weight[born] == 0).all()
            assert (optimizer.state[weight]["momentum_buffer"][born] == 0).all()
            kept = optimizer.state[weight]["momentum_buffer"][new & old]
            assert (kept != 0).float().mean() > 0.9
        break


def test_ac_dc_alternates_and_keeps_its_mask_within_a_phase():
    torch.manual_seed(0)
    model = nn.Linear(10, 10, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    pruner = seven_exp.create_pruner("ac_dc", model, sparsity=0.7, end_step=40, optimizer=optimizer)
    masks = []
    for _ in range(45):
        model.weight.grad = torch.randn(10, 10)
        optimizer.step()
        pruner.step()
        masks.append(pruner.masks["weight"].clone())
    kept = [int(mask.sum()) for mask in masks]
    # phases of four steps; the step that completes a tenth belongs to the next
    assert kept == [100] * 3 + ([30] * 4 + [100] * 4) * 4 + [30] * 10
    for t in range(1, 45):
        if kept[t] == kept[t - 1] == 30:
            assert torch.equal(masks[t], masks[t - 1])
    assert not torch.equal(masks[4], masks[-1])


def test_outside_training_what_may_return_has_kept_its_value():
    """PLATON before training: its second round sees pruned weights at their dense value."""
    model, batches = regression()
    weight = model.weight.detach().numpy().copy()
    pruner = seven_exp.create_pruner(
        "platon", model, sparsity=0.75, when="before", rounds=2, schedule="exponential", window=2,
        beta_1=0.5, beta_2=0.5,
    )  # fmt: skip
    pruner.prune(batches[:2], loss_fn)
    first = np.abs(weight * closed_form(weight, batches[0]))
    mask = mask_of_best(first, 12)
    masked = weight * mask
    second = np.abs(weight * closed_form(masked, batches[1]))
    importance = 0.5 * (first + second) / 2
    np.testing.assert_allclose(pruner.state["importance"][0].numpy(), importance, rtol=1e-12)


def test_wanda_on_a_chain_of_linear_layers(wanda_scores):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    batches = [torch.randn(7, 6).double(), torch.randn(4, 6).double()]
    scores = wanda_scores(model)
    seven_exp.create_pruner("wanda", model, sparsity=0.0).prune(batches, lambda m, b: m(b).sum())
    x = torch.cat(batches)
    hidden = model[0](x).tanh()
    for layer, fed, name in ((model[0], x, "0.weight"), (model[2], hidden, "2.weight")):
        expected = layer.weight.abs() * fed.norm(dim=0)
        torch.testing.assert_close(scores[name], expected.detach(), rtol=1e-12, atol=0)


def test_wanda_sees_patches_of_convolutions_and_attention_s_output_projection(wanda_scores):
    torch.manual_seed(0)

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.two = nn.Conv2d(2, 4, 3, padding=1, stride=2)
            self.one = nn.Conv1d(4, 8, 3, padding=1)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.one(self.two(x).flatten(2)).transpose(1, 2)
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Mixed().eval(), torch.randn(3, 2, 6, 6)
    scores = wanda_scores(model)
    seven_exp.create_pruner("wanda", model, sparsity=0.0).prune([x], lambda m, b: m(b).sum())
    norms = {
        name: (score / model.get_parameter(name).detach().abs())[0]
        for name, score in scores.items()
    }
    # the norm at (channel, i, j): a convolution of x^2 with a single one there
    one_hot = torch.eye(2 * 9).view(18, 2, 3, 3)
    sums = nn.functional.conv2d(x**2, one_hot, padding=1, stride=2).sum((0, 2, 3))
    torch.testing.assert_close(norms["two.weight"].flatten(), sums.sqrt())
    middle = model.two(x).flatten(2)
    one_hot = torch.eye(4 * 3).view(12, 4, 3)
    sums = nn.functional.conv1d(middle**2, one_hot, padding=1).sum((0, 2))
    torch.testing.assert_close(norms["one.weight"].flatten(), sums.sqrt().detach())
    tokens = model.one(middle).transpose(1, 2)
    expected = tokens.flatten(0, 1).norm(dim=0).detach()
    torch.testing.assert_close(norms["attention.in_proj_weight"], expected)
    # the inputs of the output projection, solved from its output
    out = model.attention(tokens, tokens, tokens, need_weights=False)[0]
    projection = model.attention.out_proj
    fed = torch.linalg.solve(projection.weight, (out - projection.bias).flatten(0, 1).T).T
    torch.testing.assert_close(
        norms["attention.out_proj.weight"], fed.norm(dim=0).detach(), rtol=1e-3, atol=1e-4
    )
    assert nn.functional.linear.__name__ != "watched_linear"


def test_layers_on_their_own_are_measured_behind_pruned_ones(wanda_scores):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)).double()
    x = torch.randn(9, 6).double()
    dense = model[0](x).tanh().norm(dim=0)
    second = model[2].weight.detach().abs().clone()
    scores = wanda_scores(model)
    apart = seven_exp.create_pruner("wanda", model, sparsity=0.5, scope="per_layer", exclude=[])
    apart.prune([x], lambda m, b: m(b).sum())
    pruned = model[0](x).tanh().norm(dim=0).detach()
    assert not torch.allclose(pruned, dense, rtol=0.01)
    survivors = apart.masks["2.weight"]
    torch.testing.assert_close(scores["2.weight"], second * pruned, rtol=1e-12, atol=0)
    kept = (second * pruned)[survivors].min()
    assert (second * pruned)[~survivors].max() <= kept


@pytest.mark.parametrize("interval", [1, 2])
def test_straight_through_trains_dense_weights_at_the_pruned_model(interval):
    model, batches = regression()
    dense = model.weight.detach().numpy().copy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    pruner = seven_exp.create_pruner(
        "straight_through",
        model,
        sparsity=0.75,
        end_step=12,
        schedule="one_shot",
        interval=interval,
    )
    mask, returned = np.ones((4, 6), bool), 0
    for t in range(12):
        loss_fn(model, batches[t % 3]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        dense -= 0.02 * closed_form(dense * mask, batches[t % 3])
        if (t + 1) % interval == 0:
            new = mask_of_best(np.abs(dense), 6)
            returned += int((new & ~mask).sum()) if t >= interval else 0
            mask = new
        np.testing.assert_array_equal(pruner.masks["weight"].numpy(), mask)
        np.testing.assert_allclose(model.weight.detach().numpy(), dense * mask, rtol=1e-10)
    assert returned > 0, "the case must hold a weight that returns"


def of_rows(tensor):
    return tensor.mean(1)


def of_blocks(tensor):
    return tensor.unfold(0, 2, 2).unfold(1, 4, 4).mean((2, 3)).flatten()


@pytest.mark.parametrize(("pattern", "mean"), [("rows", of_rows), ("2x4", of_blocks)])
def test_rigl_exchanges_whole_units(pattern, mean):
    torch.manual_seed(0)
    layer = nn.Linear(40, 40, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    pruner = seven_exp.create_pruner(
        "rigl", layer, sparsity=0.5, end_step=10, interval=5, drop=0.5, pattern=pattern,
        scope="per_layer", optimizer=optimizer, exclude=[],
    )  # fmt: skip
    pruner.start()
    for _ in range(5):
        layer.weight.grad = torch.randn(40, 40)
        before = mean(pruner.masks["weight"].float())
        sizes, slopes = mean(layer.weight.detach().abs()), mean(layer.weight.grad.abs())
        optimizer.step()
        pruner.step()
    after, n = mean(pruner.masks["weight"].float()), int(before.sum())
    assert set(after.tolist()) == {0.0, 1.0}
    assert int(after.sum()) == n
    # At half the window half of the drop is left.
    smallest_first = torch.where(before > 0, sizes, torch.inf).argsort()
    stay = torch.ones(len(before), dtype=torch.bool) & (before > 0)
    stay[smallest_first[: n // 4]] = False
    grown = slopes.masked_fill(stay, -1).argsort(descending=True)[: n // 4]
    stay[grown] = True
    assert torch.equal(after > 0, stay)
    assert not torch.equal(after, before)


@pytest.mark.parametrize(
    "competition", [{}, {"scope": "per_layer"}, {"scope": "erk"}, {"sparsities": {"1": 0.98}}]
)
def test_soft_movement_by_autograd_of_its_penalty(competition):
    """S follows Adam on sum(g w S) + lambda mean sigmoid(S); what is at most tau goes."""
    tau, penalty, steps = 0.4, 30.0, 12
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 5, bias=False)).double()
    pruner = seven_exp.create_pruner(
        "soft_movement", model, sparsity=0.99, end_step=steps, lr=0.3, tau=tau, penalty=penalty,
        exclude=[], **competition,
    )  # fmt: skip
    scores = [torch.zeros_like(layer.weight, requires_grad=True) for layer in model]
    adam = torch.optim.Adam(scores, lr=0.3)
    dense, rise = [layer.weight.detach().clone() for layer in model], 0.0
    for t in range(steps):
        slopes = [torch.randn_like(score) for score in scores]
        for layer, slope in zip(model, slopes, strict=True):
            layer.weight.grad = slope.clone()
        pruner.step()
        moved = sum((g * w * s).sum() for g, w, s in zip(slopes, dense, scores, strict=True))
        cost = sum(score.sigmoid().mean() for score in scores) / 2
        adam.zero_grad()
        (moved + penalty * rise * cost).backward()
        adam.step()
        rise = 1 - (1 - (t + 1) / steps) ** 3
        for mask, score in zip(pruner.masks.values(), scores, strict=True):
            assert torch.equal(mask, score.sigmoid() > tau * rise)
    for found, score in zip(pruner.scores.values(), scores, strict=True):
        torch.testing.assert_close(found, score.detach(), rtol=1e-9, atol=1e-12)
    assert 0.1 < pruner.sparsity < 0.9
    capped = seven_exp.create_pruner(
        "soft_movement", model, sparsity=0.5, end_step=1, tau=0.9, exclude=[]
    )
    capped.state = State.zeros([layer.weight for layer in model], "score", "mean", "square")
    capped.state.tensors["score"] = [score.detach() for score in scores]
    capped.step()
    assert capped.sparsity == 0.5


def fed_with_gradients(name, weight, gradients, sparsity, **settings):
    """A pruner of one weight whose batches' gradients are the given ones."""
    model = nn.Linear(weight.size, 1, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weight).view(1, -1))
    pruner = seven_exp.create_pruner(name, model, sparsity=sparsity, exclude=[], **settings)
    pruner.prune(
        [torch.from_numpy(g) for g in gradients],
        lambda m, g: (m.weight.flatten() * g).sum(),
        batches_per_round=len(gradients),
    )
    return pruner.masks["weight"].flatten().numpy(), model.weight.detach().flatten().numpy()


def least(quadratic, weight, kept):
    """Where x^T Q x / 2 about ``weight`` is least with zeros outside ``kept``, and its value."""
    gone = ~kept
    moved = np.zeros_like(weight)
    pull = quadratic[np.ix_(kept, gone)] @ weight[gone]
    moved[kept] = weight[kept] + np.linalg.solve(quadratic[np.ix_(kept, kept)], pull)
    shift = moved - weight
    return moved, 0.5 * shift @ quadratic @ shift


def masks_of(n, kept):
    for chosen in itertools.combinations(range(n), kept):
        mask = np.zeros(n, bool)
        mask[list(chosen)] = True
        yield mask


@pytest.mark.parametrize("seed", range(5))
def test_obert_removes_the_best_single_weight_of_all(seed):
    rng = np.random.default_rng(seed)
    weight, gradients = rng.standard_normal(8), rng.standard_normal((30, 8)) @ rng.random((8, 8))
    fisher = gradients.T @ gradients / 30 + 1e-3 * np.eye(8)
    best = min(masks_of(8, 7), key=lambda mask: least(fisher, weight, mask)[1])
    mask, moved = fed_with_gradients(
        "obert_pre", weight, gradients, 1 / 8, rounds=1, block=8, dampening=1e-3
    )
    np.testing.assert_array_equal(mask, best)
    np.testing.assert_allclose(moved, least(fisher, weight, best)[0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "name", ["obert", "lamp_dyn", "magnitude_dyn", "taylor_dyn", "fisher_dyn", "seven_dyn"]
)
def test_what_the_optimizer_does_to_pruned_weights_decides_nothing(name):
    """The optimizer has just moved them by their gradients or moments when masks are chosen."""

    def masks(moved):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(20, 10, bias=False), nn.Linear(10, 20, bias=False))
        pruner = seven_exp.create_pruner(name, model, sparsity=0.8, end_step=6, exclude=[])
        for _ in range(6):
            for key, weight in model.named_parameters():
                weight.grad = torch.randn(len(weight), 1) + torch.randn_like(weight)
                weight.data += moved * ~pruner.masks[key]
            pruner.step()
        return torch.cat([mask.flatten() for mask in pruner.masks.values()])

    assert torch.equal(masks(2.0), masks(0.0))


@pytest.mark.parametrize("scale", [1e2, 1e6])
def test_obert_takes_gradients_of_any_size(scale):
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(50, 4, bias=False)
    common = torch.randn(8, 50, generator=generator)
    # Nearly alike, so that their mean outer product is all but singular.
    batches = [common + 1e-3 * torch.randn(8, 50, generator=generator) for _ in range(300)]
    pruner = seven_exp.create_pruner("obert_pre", model, sparsity=0.5)
    pruner.prune(batches, lambda m, x: scale * m(x).square().mean(), batches_per_round=30)
    assert pruner.sparsity == 0.5
    assert model.weight.isfinite().all()


@pytest.mark.parametrize("seed", range(5))
def test_obert_step_by_step_comes_near_the_best_mask_of_all(seed):
    """One weight a round, survivors moved each time; and blocks know nothing of each other."""
    rng = np.random.default_rng(seed)
    weight, gradients = (
        rng.standard_normal(10),
        rng.standard_normal((40, 10)) @ rng.random((10, 10)),
    )
    fisher = gradients.T @ gradients / 40
    apart = np.zeros((10, 10))
    apart[:5, :5], apart[5:, 5:] = fisher[:5, :5], fisher[5:, 5:]
    quadratic = apart + 1e-3 * np.eye(10)
    mask, moved = fed_with_gradients(
        "obert_pre", weight, gradients, 0.4, rounds=4, schedule="linear", block=5, dampening=1e-3
    )
    assert mask.sum() == 6
    own, value = least(quadratic, weight, mask)
    np.testing.assert_allclose(moved, own, rtol=1e-6, atol=1e-9)
    values = sorted(least(quadratic, weight, other)[1] for other in masks_of(10, 6))
    assert value <= least(quadratic, weight, mask_of_best(np.abs(weight), 6))[1]
    assert value <= values[len(values) // 20], "not among the best twentieth of all masks"


def calibrated(seed, inputs=8, outputs=3, samples=40):
    """Correlated inputs of a linear layer, its weight, and SparseGPT's H for them."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((samples, inputs)) @ (np.eye(inputs) + rng.random((inputs, inputs)))
    hessian = 2 / samples * x.T @ x
    hessian += 0.01 * np.diag(hessian).mean() * np.eye(inputs)
    return x, rng.standard_normal((outputs, inputs)), hessian


def sparsegpt(x, weight, sparsity, **settings):
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.from_numpy(weight))
    pruner = seven_exp.create_pruner("sparsegpt", model, sparsity=sparsity, exclude=[], **settings)
    halves = np.array_split(x, 2)
    pruner.prune([torch.from_numpy(half) for half in halves], lambda m, b: m(b).sum())
    return pruner.masks["weight"].numpy(), model.weight.detach().numpy()


def scores_ahead(weight, inverse, columns):
    """SparseGPT's scores of columns, each behind the elimination of those before it."""
    ahead, scores = inverse.copy(), []
    for j in columns:
        scores.append(weight[:, j] ** 2 / ahead[j, j])
        ahead -= np.outer(ahead[:, j], ahead[j]) / ahead[j, j]
    return np.array(scores).T


def eliminate(weight, inverse, mask, columns):
    """Prune columns one by one, in place: the others make up for each (OBS)."""
    for j in columns:
        error = np.where(mask[:, j], 0.0, weight[:, j]) / inverse[j, j]
        weight -= np.outer(error, inverse[j])
        inverse -= np.outer(inverse[:, j], inverse[j]) / inverse[j, j]


@pytest.mark.parametrize("block", [3, 8])
def test_sparsegpt_is_column_by_column_elimination(block):
    """The same by the whole inverse, from which each column done is eliminated (OBS)."""
    x, weight, hessian = calibrated(0)
    mask, found = sparsegpt(x, weight, 0.5, block=block)
    w, inverse = weight.copy(), np.linalg.inv(hessian)
    order = range(8)
    for start in range(0, 8, block):
        columns = list(order[start : start + block])
        scores = scores_ahead(w, inverse, columns)
        if scores.size % 2 == 0:
            np.testing.assert_array_equal(mask[:, columns], mask_of_best(scores, scores.size // 2))
        eliminate(w, inverse, mask, columns)
    np.testing.assert_allclose(found, w * mask, rtol=1e-8, atol=1e-10)
    assert mask.sum() == 12


@pytest.mark.parametrize(("pattern", "block"), [("2:4", 128), ("2:4", 3), ("1:2", 4)])
def test_sparsegpt_chooses_each_group_behind_those_before_it(pattern, block):
    """N:M by the whole inverse, from which each column done is eliminated."""
    n, m = map(int, pattern.split(":"))
    x, weight, hessian = calibrated(1, outputs=16)
    mask, found = sparsegpt(x, weight, 0.5, pattern=pattern, block=block)
    w, inverse = weight.copy(), np.linalg.inv(hessian)
    expected = np.zeros_like(mask)
    for start in range(0, 8, m):
        columns = range(start, start + m)
        firsts = np.argsort(-scores_ahead(w, inverse, columns), axis=1)[:, :n] + start
        np.put_along_axis(expected, firsts, True, axis=1)
        eliminate(w, inverse, expected, columns)
    np.testing.assert_array_equal(mask, expected)
    np.testing.assert_allclose(found, w * expected, rtol=1e-8, atol=1e-10)


def test_sparsegpt_s_pattern_runs_along_a_convolution_s_inputs():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 3, bias=False)
    pruner = seven_exp.create_pruner("sparsegpt", conv, sparsity=0.5, pattern="2:4")
    pruner.prune([torch.randn(5, 8, 6, 6)], lambda m, b: m(b).sum())
    kept = pruner.masks["weight"].view(4, 2, 4, 3, 3).sum(2)
    assert (kept == 2).all()


def test_sparsegpt_prunes_weights_of_unused_inputs_first_and_leaves_the_others_alone():
    x, weight, _ = calibrated(0)
    x[:, [2, 5]] = 0
    weight[:, [2, 5]] *= 100
    mask, found = sparsegpt(x, weight, 0.25)
    np.testing.assert_array_equal(
        mask, np.isin(np.arange(8), [2, 5], invert=True)[None].repeat(3, 0)
    )
    np.testing.assert_allclose(found, weight * mask, rtol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_comes_near_the_best_of_all_masks_and_weights(seed):
    x, weight, hessian = calibrated(seed, outputs=1)
    _, found = sparsegpt(x, weight, 0.5)
    values = sorted(least(hessian, weight[0], other)[1] for other in masks_of(8, 4))
    shift = (found - weight)[0]
    value = 0.5 * shift @ hessian @ shift
    cut = weight[0] * mask_of_best(np.abs(weight[0]), 4) - weight[0]
    assert values[0] - 1e-12 <= value
    assert value < 0.5 * cut @ hessian @ cut, "no better than magnitude without an update"
    assert value < np.mean(values)


def test_sparsegpt_sees_a_convolution_as_a_linear_map_of_patches():
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 4, 3, padding=1, bias=False).double()
    images = torch.randn(3, 2, 5, 5).double()
    patches = nn.functional.unfold(images, 3, padding=1).transpose(1, 2).flatten(0, 1)
    weight = conv.weight.detach().flatten(1).numpy().copy()
    pruner = seven_exp.create_pruner("sparsegpt", conv, sparsity=0.5, exclude=[])
    pruner.prune([images], lambda m, b: m(b).sum())
    mask, found = sparsegpt(patches.numpy(), weight, 0.5)
    np.testing.assert_array_equal(pruner.masks["weight"].flatten(1).numpy(), mask)
    np.testing.assert_allclose(conv.weight.detach().flatten(1).numpy(), found, rtol=1e-8)


@pytest.mark.parametrize(
    "settings", [{"pattern": "2:4"}, {"scope": "per_row"}, {"scope": "global"}]
)
def test_sparsegpt_in_patterns_and_scopes_does_better_than_magnitude(settings):
    x, weight, hessian = calibrated(3)
    losses = {}
    for name in ("magnitude", "sparsegpt"):
        model = nn.Linear(8, 3, bias=False, dtype=torch.float64)
        model.weight.data.copy_(torch.from_numpy(weight))
        pruner = seven_exp.create_pruner(name, model, sparsity=0.5, exclude=[], **settings)
        pruner.prune([torch.from_numpy(x)], lambda m, b: m(b).sum())
        shift = model.weight.detach().numpy() - weight
        losses[name] = np.einsum("ij,jk,ik->", shift, hessian, shift)
    assert losses["sparsegpt"] < losses["magnitude"]


def test_soft_movement_says_where_its_threshold_stops_it():
    torch.manual_seed(0)
    model = nn.Linear(6, 4)
    pruner = seven_exp.create_pruner("soft_movement", model, sparsity=0.5, end_step=2, exclude=[])
    model.weight.grad = torch.randn(4, 6)
    pruner.step()
    with pytest.warns(
        UserWarning, match=r"ends at sparsity 0\.000 instead of 0\.500, because its threshold"
    ):
        pruner.step()
