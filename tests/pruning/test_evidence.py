"""Masks are chosen by evidence, or not at all."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pruner import PLAIN
from torch import Tensor, nn

import seven_exp
from seven_exp.pruning import (
    PRUNERS,
    FromZero,
    NoEvidenceError,
    Solver,
    build_method,
    needs_batches,
)
from seven_exp.pruning.allocation import Pool
from seven_exp.pruning.evidence import constant, informative, undecidable
from seven_exp.pruning.method import regrows

LEARNING = [name for name in PLAIN if needs_batches(build_method(name, {}))]
DURING = [name for name in LEARNING if PRUNERS[name].when == "during"]
OUTSIDE = [name for name in LEARNING if PRUNERS[name].when != "during"]
SOLVERS = [name for name in PLAIN if isinstance(build_method(name, {}), Solver)]
# What these look at is not a step's gradient.
OF_THE_MODEL = {"grasp", "synflow", *SOLVERS}
BY_WEIGHTS = [n for n in PRUNERS if "magnitude" in n or "lamp" in n or n in ("imp", "ac_dc")]
DTYPES = [torch.float32, torch.bfloat16]


def net(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 5)
    ).to(dtype)


def batch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 8, generator=generator).to(dtype), torch.arange(6) % 5


def loss_fn(model, batch):
    return nn.functional.cross_entropy(model(batch[0]).float(), batch[1])


def made(name, model, **settings):
    if regrows(build_method(name, {})) is FromZero:
        settings["optimizer"] = torch.optim.SGD(model.parameters())
    pruner = seven_exp.create_pruner(name, model, **{"sparsity": 0.6, "exclude": ["4"]} | settings)
    pruner.start()
    return pruner


def masks_of(pruner):
    return torch.cat([mask.flatten() for mask in pruner.masks.values()])


def set_gradients(model, value: Callable[[Tensor], Tensor]):
    for parameter in model.parameters():
        parameter.grad = value(parameter)


WITHOUT_EVIDENCE: dict[str, Callable[[Tensor], Tensor]] = {
    "zero": torch.zeros_like,
    "nan": lambda p: torch.full_like(p, torch.nan),
    "inf": lambda p: torch.full_like(p, torch.inf),
    # An overflow in the second of three layers has broken the first.
    "partial": lambda p: torch.full_like(p, torch.nan) if p.shape[0] == 9 else torch.randn_like(p),
}


@pytest.mark.parametrize("broken", WITHOUT_EVIDENCE.values(), ids=WITHOUT_EVIDENCE)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DURING)
def test_steps_without_evidence_do_not_count(name, dtype, broken):
    """Scores and masks are those of the steps that have gradients, the schedule's end is met."""

    def run(silent: set[int], count: int, updates: int):
        model = net(dtype)
        pruner = made(name, model, end_step=count, interval=updates, schedule="one_shot")
        seed = 0
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for t in range(count):
                if t in silent:
                    set_gradients(model, broken)
                else:
                    torch.manual_seed(seed)
                    set_gradients(model, lambda p: torch.randn_like(p) / 100)
                    seed += 1
                pruner.step()
        return pruner, [str(w.message) for w in caught]

    plain, words = run(set(), 4, 4)
    assert not any("skips a step" in line for line in words)
    disturbed, words = run({0, 1, 3, 6}, 8, 8)
    assert sum("skips a step" in line for line in words) == 1
    assert not any("min_density" in line for line in words)
    assert torch.equal(masks_of(plain), masks_of(disturbed))
    for one, two in zip(plain.scores.values(), disturbed.scores.values(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("broken", ["zero", "nan"])
@pytest.mark.parametrize("name", DURING)
def test_masks_wait_for_the_first_evidence_and_then_meet_the_schedule(name, broken):
    model = net()
    pruner = made(name, model, end_step=6, schedule="linear" if name != "rigl" else None)
    start = masks_of(pruner)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            set_gradients(model, WITHOUT_EVIDENCE[broken])
            pruner.step()
            assert torch.equal(masks_of(pruner), start)
    assert len(caught) == 1
    assert "skips a step" in str(caught[0].message)
    assert caught[0].filename == __file__
    for t in range(3, 6):
        set_gradients(model, torch.randn_like)
        pruner.step()
        if name not in ("rigl", "soft_movement"):
            # 135 weights; movement keeps the same share of each layer's 72 and 63.
            sizes = [72, 63] if name == "movement" else [135]
            density = 1 - 0.6 * (t + 1) / 6
            assert masks_of(pruner).sum() == sum(int(density * n + 1e-6) for n in sizes)


@pytest.mark.parametrize("broken", WITHOUT_EVIDENCE)
@pytest.mark.parametrize("name", DURING)
def test_a_window_without_any_evidence_ends_in_an_error(name, broken):
    model = net()
    pruner = made(name, model, end_step=3)
    start = masks_of(pruner)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(2):
            set_gradients(model, WITHOUT_EVIDENCE[broken])
            pruner.step()
        set_gradients(model, WITHOUT_EVIDENCE[broken])
        with pytest.raises(NoEvidenceError, match=r"before step\(\), an overflow") as error:
            pruner.step()
    assert "\n" not in str(error.value)
    assert "min_density" not in str(error.value)
    assert torch.equal(masks_of(pruner), start)


@pytest.mark.parametrize("name", DURING)
def test_first_steps_that_a_scaler_skips_do_not_count(name):
    """Under a GradScaler whose scale overflows at first, as without those steps."""

    def run(scale: float, steps: int) -> tuple[Tensor, int]:
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-60)
        pruner = made(name, model, end_step=steps, interval=steps, schedule="one_shot")
        skipped = 0
        for t in range(steps):
            scaler.scale(8 * loss_fn(model, batch(t - skipped))).backward()
            scaler.unscale_(optimizer)
            before = model[0].weight.detach().clone()
            scaler.step(optimizer)
            scaler.update()
            skipped += torch.equal(model[0].weight, before)
            pruner.step()
            optimizer.zero_grad()
        return masks_of(pruner), skipped

    plain, skipped = run(1.0, 4)
    assert skipped == 0
    with pytest.warns(UserWarning, match="skips a step"):
        overflown, skipped = run(2.0**127, 4 + 1)
    assert skipped == 1
    assert torch.equal(plain, overflown)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", [n for n in OUTSIDE if n not in SOLVERS])
def test_a_head_of_zeros_is_named(name, dtype):
    model = net(dtype)
    nn.init.zeros_(model[4].weight)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    pruner = made(name, model)
    with pytest.raises(NoEvidenceError, match=r"4\.weight is all zero: initialise it") as error:
        pruner.prune([batch(dtype=dtype)], loss_fn)
    assert "\n" not in str(error.value)
    assert masks_of(pruner).all()
    assert all(torch.equal(value, start[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", [n for n in OUTSIDE if n not in OF_THE_MODEL])
def test_broken_gradients_outside_training_are_an_error(name):
    class Overflows(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.nan

    pruner = made(name, net())
    with pytest.raises(NoEvidenceError, match="overflow"):
        pruner.prune([batch()], lambda m, b: Overflows.apply(loss_fn(m, b)))
    assert masks_of(pruner).all()


@pytest.mark.parametrize("name", [n for n in OUTSIDE if n not in OF_THE_MODEL])
def test_a_batch_without_evidence_does_not_count(name):
    """All targets ignored: a mean over nothing would be NaN, a sum over nothing is zero."""

    def summed(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    silent = batch(9)[0], torch.full((6,), -100)
    one, two = made(name, net(), rounds=1), made(name, net(), rounds=1)
    one.prune([batch(0), batch(1)], summed)
    two.prune([silent, batch(0), silent, batch(1)], summed)
    assert torch.equal(masks_of(one), masks_of(two))


@pytest.mark.parametrize("scope", ["per_layer", "global", "per_row", "lamp"])
@pytest.mark.parametrize("name", SOLVERS)
def test_inputs_of_zero_are_named(name, scope):
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 5)).requires_grad_(False)
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, scope=scope, include=["0"])
    with pytest.raises(NoEvidenceError, match="inputs that are all zero"):
        pruner.prune([torch.zeros(4, 8)], lambda m, b: m(b).sum())
    assert masks_of(pruner).all()


@pytest.mark.parametrize("scope", ["global", "per_layer", "per_row", "lamp", "erk"])
@pytest.mark.parametrize("value", [0.0, 0.5, torch.nan])
@pytest.mark.parametrize("name", [n for n in BY_WEIGHTS if PRUNERS[n].when != "during"])
def test_equal_weights_are_an_error(name, value, scope):
    model = net()
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, value)
    pruner = made(name, model, scope=scope)
    with pytest.raises(NoEvidenceError, match="NaN" if value != value else "all equal: init"):
        pruner.prune()
    assert masks_of(pruner).all()


@pytest.mark.parametrize("name", [n for n in BY_WEIGHTS if PRUNERS[n].when == "during"])
def test_equal_weights_in_training_are_waited_for(name):
    model = net()
    for layer in (model[0], model[2]):
        nn.init.constant_(layer.weight, 0.5)
    pruner = made(name, model, end_step=2, schedule="one_shot")
    with pytest.warns(UserWarning, match="masks stay unchanged"):
        pruner.step()
    assert masks_of(pruner).all()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight)
    pruner.step()
    assert masks_of(pruner).sum() == int(0.4 * 135)


def test_synflow_names_a_layer_of_zeros_and_a_lost_one():
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    pruner = seven_exp.create_pruner("synflow", model, sparsity=0.5)
    with pytest.raises(NoEvidenceError, match=r"1\.weight is all zero"):
        pruner.prune([torch.randn(1, 4)], loss_fn)


def test_a_layer_without_scores_among_others_is_no_error():
    model = net()
    nn.init.zeros_(model[0].weight)
    pruner = made("magnitude", model, sparsity=0.6)
    with pytest.warns(UserWarning, match=r"0\.weight has lost"):
        pruner.prune()
    assert pruner.layer_counts == {"0.weight": (72, 0), "2.weight": (63, 54)}


def test_rigl_and_set_exchange_nothing_where_nothing_tells():
    for name in ("rigl", "set"):
        model = net()
        pruner = made(name, model, end_step=20, interval=2)
        before = pruner.masks
        for layer in (model[0], model[2]):
            layer.weight.data.masked_fill_(layer.weight != 0, 0.5)
        set_gradients(model, lambda p: torch.ones_like(p))
        pruner.step()
        with pytest.warns(UserWarning, match="no weight is exchanged: in every layer, all"):
            pruner.step()
        assert all(torch.equal(before[key], mask) for key, mask in pruner.masks.items())


NUMBERS = st.sampled_from([0.0, 1.0, -2.0, 1e-30, torch.nan, torch.inf, -torch.inf])


@given(st.lists(st.lists(NUMBERS, min_size=1, max_size=5), min_size=1, max_size=4))
def test_what_counts_as_evidence(layers):
    grads = [torch.tensor(values) for values in layers]
    finite = [[value for value in values if abs(value) < torch.inf] for values in layers]
    expected = all(finite) and any(value != 0 for values in finite for value in values)
    assert informative(grads) == expected
    assert informative([*grads, None]) == expected


@given(st.integers(0, 7), st.integers(0, 7), st.data())
def test_undecidable_is_where_every_choice_would_be_by_position(kept, seed, data):
    shapes = [(20, 2), (1, 3)]
    generator = torch.Generator().manual_seed(seed)
    values = data.draw(st.integers(1, 2))
    scores = [torch.randint(values, shape, generator=generator).float() for shape in shapes]
    candidates = [torch.rand(shape, generator=generator) < 0.3 for shape in shapes]
    chosen = torch.cat([s[c] for s, c in zip(scores, candidates, strict=True)])
    pool = Pool([0, 1], kept)
    expected = 0 < kept < len(chosen) and len(set(chosen.tolist())) == 1
    assert undecidable(scores, candidates, pool, len(chosen)) == expected

    rows = [row[c] for row, c in zip(scores[0], candidates[0], strict=True)]
    choosing = [set(row.tolist()) for row in rows if 0 < kept < len(row)]
    expected = bool(choosing) and all(len(row) == 1 for row in choosing)
    pool = Pool([0], kept, each_row=True)
    assert undecidable(scores[:1], candidates[:1], pool, 0) == expected


def test_one_score_that_differs_is_found_wherever_it_is():
    for place in range(100):
        score = torch.zeros(100, 1, 1)
        score[place] = 1
        assert not constant(score, torch.ones_like(score, dtype=torch.bool))
        assert constant(score, score == 0)
        assert constant(score, score > 0)


def test_broken_scores_of_sound_weights_are_a_fault_of_their_formula():
    class Broken(seven_exp.Score):
        def score(self, state, weights):
            return [weight.detach() * torch.nan for weight in weights]

    seven_exp.register("broken_formula", when="after", schedule="one_shot")(Broken)
    pruner = seven_exp.create_pruner("broken_formula", nn.Linear(4, 4), sparsity=0.5)
    with pytest.raises(NoEvidenceError, match="NaN or infinite though the weights are not"):
        pruner.prune()
