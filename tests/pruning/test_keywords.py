"""Every keyword of `create_pruner` changes what a pruner does, or is refused."""

import functools
import inspect
import warnings

import numpy as np
import pytest
import torch
from test_pruner import PLAIN
from torch import nn

import seven_exp
from seven_exp.pruning import PRUNERS, Pruner, read_by

STEPS = 6


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 5), nn.Tanh())


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 6, generator=generator) for _ in range(4)]


def loss_fn(model, batch):
    return (model(batch) - batch[:, :5]).square().mean()


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)


def trajectory(name, seed=0, **keywords):
    """All masks and weights of a short training, in the time that the pruner is for."""
    model, seen = net(seed), []
    optimizer = optimizer_of(model)
    settings = {"sparsity": 0.6, "optimizer": optimizer, **keywords}
    when = keywords.get("when", PRUNERS[name].when)
    if when == "during":
        settings.setdefault("end_step", STEPS)
    if keywords.get("optimizer") == "another":
        settings["optimizer"] = optimizer_of(model)
    elif "optimizer" not in read_by(name):
        del settings["optimizer"]
    if name == "soft_movement":
        settings["tau"] = 0.9  # prunes as much as it may
    pruner = seven_exp.create_pruner(name, model, **settings)

    def prune():
        for _ in range(pruner.rounds):
            pruner.prune(batches(), loss_fn, rounds=1)
            look()

    def look():
        seen.extend(mask.flatten().float() for mask in pruner.masks.values())
        seen.extend(p.detach().flatten().clone() for p in model.parameters())

    if pruner.when == "before":
        prune()
    for t in range(STEPS):
        loss_fn(model, batches()[t % 4]).backward()
        optimizer.step()
        pruner.step()
        optimizer.zero_grad()
        look()
    if pruner.when == "after":
        prune()
    return torch.cat(seen)


def another(keyword, name):
    """A valid value for a keyword that is not the default one."""
    spec = PRUNERS[name]
    return {
        "sparsity": 0.3,
        "begin_step": 3,
        "end_step": 4,
        "interval": 3,
        "levels": 2,
        "rounds": 3,
        "when": "after" if spec.when == "before" else "before",
        "schedule": "linear" if spec.schedule != "linear" else "cubic",
        "scope": "per_layer" if spec.scope == "global" else "global",
        "sparsities": {"0": 0.1},
        "pattern": "rows",
        "min_density": 0.4,
        "include": ["0"],
        "exclude": ["2"],
        "optimizer": "another",
    }[keyword]


KEYWORDS = [
    parameter.name
    for parameter in inspect.signature(seven_exp.create_pruner).parameters.values()
    if parameter.kind is parameter.KEYWORD_ONLY
    # These two need a model with such layers: test_layers.py, test_misfits.py.
    and parameter.name not in ("exclude_defaults", "misfits")
]
SLOPE = {"schedule": "linear"}
CONTEXT = {"levels": SLOPE, "rounds": SLOPE, "end_step": SLOPE}
"""In which a keyword can show what it does."""


def context_of(keyword, name):
    several = {} if PRUNERS[name].when == "during" or keyword != "schedule" else {"rounds": 3}
    return several if PRUNERS[name].prunes else {}, CONTEXT.get(keyword, {})


@functools.cache
def reference(name, seed, context):
    return trajectory(name, seed, **dict(context))


def differs(name, context, given):
    """Whether keywords change anything, from one start at least: one may need no floor."""
    for seed in range(3):
        changed = trajectory(name, seed, **context, **given)
        found = reference(name, seed, tuple(sorted(context.items())))
        if changed.shape != found.shape or not torch.equal(changed, found):
            return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("keyword", KEYWORDS)
@pytest.mark.parametrize("name", PLAIN)
def test_a_keyword_changes_what_a_pruner_does_or_is_refused(name, keyword):
    if (name, keyword) == ("dense", "sparsity"):
        pytest.skip("the reference keeps every weight, whatever is asked of the others")
    several, slope = context_of(keyword, name)
    context = several | (slope if PRUNERS[name].prunes else {})
    value = another(keyword, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if keyword not in read_by(name, schedule=context.get("schedule")):
            with pytest.raises(ValueError, match=rf"{name} .*does not read .*\b{keyword}\b"):
                trajectory(name, **context, **{keyword: value})
            return
        try:
            assert differs(name, context, {keyword: value})
        except ValueError as error:
            refusal = str(error)
        else:
            return
    assert keyword in refusal or str(value) in refusal


@pytest.mark.parametrize("name", list(PRUNERS))
def test_what_is_refused_is_said_all_at_once(name):
    spec = PRUNERS[name]
    unread = [
        keyword
        for keyword in ("begin_step", "interval", "rounds", "optimizer")
        if keyword not in read_by(name)
    ]
    given = {keyword: another(keyword, name) for keyword in unread}
    if spec.when == "during":
        given["end_step"] = STEPS
    with pytest.raises(ValueError, match="does not read " + ", ".join(unread)) as error:
        seven_exp.create_pruner(name, net(), sparsity=0.5, **given)
    assert "\n" not in str(error.value)


def test_stairs_need_a_slope():
    for schedule in ("one_shot", "constant"):
        with pytest.raises(ValueError, match=f"schedule '{schedule}'.* does not read levels"):
            seven_exp.create_pruner(
                "seven_dyn", net(), sparsity=0.5, end_step=6, levels=2, schedule=schedule
            )


def test_defaults_that_are_written_out_are_no_mistake():
    for name in PLAIN:
        spec = PRUNERS[name]
        model = net()
        needed = {
            "end_step": 6 if spec.when == "during" else None,
            "rounds": spec.rounds if "rounds" in read_by(name) else None,
            "optimizer": optimizer_of(model) if "optimizer" in read_by(name) else None,
        }
        seven_exp.create_pruner(
            name, model, sparsity=0.5, begin_step=0, interval=1, levels=None, when=spec.when,
            schedule=spec.schedule, scope=spec.scope, sparsities={}, pattern="unstructured",
            min_density=0.0, include=None, exclude=None, **needed,
        )  # fmt: skip


def test_rounds_and_end_step_before_training_are_one():
    with pytest.raises(ValueError, match="rounds is 20 and end_step 50"):
        seven_exp.create_pruner("seven_pre", net(), sparsity=0.5, rounds=20, end_step=50)
    for keywords in ({"rounds": 20}, {"end_step": 20}, {"rounds": 20, "end_step": 20}):
        assert seven_exp.create_pruner("seven_pre", net(), sparsity=0.5, **keywords).rounds == 20


@pytest.mark.parametrize("name", ["set", "rigl"])
def test_weights_that_start_anew_need_the_optimizer_that_trains_them(name):
    model, other = net(), net()
    for optimizer, words in (
        (None, f"{name} needs the optimizer"),
        ("hello", "optimizer is a str"),
        (optimizer_of(other), r"0\.weight is not a parameter of the optimizer"),
    ):
        with pytest.raises(ValueError, match=words):
            seven_exp.create_pruner(name, model, sparsity=0.5, end_step=6, optimizer=optimizer)


def made(name="seven_dyn", **keywords) -> Pruner:
    return seven_exp.create_pruner(name, net(), **{"sparsity": 0.9, "end_step": 23, **keywords})


@pytest.mark.parametrize("whole", [23.0, np.int64(23), np.int32(23), np.float32(23)])
def test_whole_numbers_of_any_kind_count_steps(whole):
    pruner = made(end_step=whole, interval=whole)
    assert (pruner.window.end, pruner.window.interval) == (23, 23)
    assert type(pruner.window.end) is type(pruner.window.interval) is int


@pytest.mark.parametrize("keyword", ["begin_step", "end_step", "interval", "levels", "rounds"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.7 * 33, "choose a whole number, 23 or 24"),
        (np.float32(0.5), "choose a whole number, 0 or 1"),
        (float("nan"), "choose a whole number"),
        (float("inf"), "choose a whole number"),
        (True, "choose a whole number"),
        ("3", "choose a whole number"),
    ],
)
def test_what_counts_nothing_is_refused(keyword, value, words):
    name = "seven_pre" if keyword == "rounds" else "seven_dyn"
    keywords = {"end_step": None} if keyword == "rounds" else {}
    with pytest.raises(ValueError, match=f"^{keyword} is .*{words}"):
        made(name, **keywords | {keyword: value})


@pytest.mark.parametrize(
    "value", [0.9, np.float64(0.9), np.float32(0.9), np.float16(0.9), np.float32(0.9).item()]
)
def test_numbers_of_any_width_mean_their_decimals(value):
    pruner = made(sparsity=value)
    wide = isinstance(value, float)
    assert pruner.target == (value if wide else 0.9)
    assert made(sparsity=0, sparsities={"0": value}).target == 0


@pytest.mark.parametrize(
    ("value", "near"),
    [
        (90, "0.9"), (99.5, "0.995"), (100, "0.99"), (1.0, "0.99"), (1, "0.99"), (-0.1, "0"),
        (float("nan"), "0.9"), (True, "0.9"), (False, "0.9"), ("abc", "0.9"), (None, "0.9"),
        (torch.tensor(0.5), "0.9"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("keyword", ["sparsity", "min_density", "sparsities"])
def test_what_is_no_fraction_is_refused_with_one_that_is(keyword, value, near):
    given = {"0": value} if keyword == "sparsities" else value
    with pytest.raises(ValueError, match=rf"^{keyword}.* is .*such as {near}$"):
        made(**{keyword: given})


def test_a_floor_as_high_as_the_density_is_one():
    # 0.1 is more than 1 - 0.9 by a rounding.
    assert 1 - 0.9 < 0.1
    pruner = seven_exp.create_pruner("magnitude", net(), sparsity=0.9, min_density=0.1)
    pruner.prune()
    assert pruner.layer_counts == {"0.weight": (60, 6), "2.weight": (50, 5)}
    with pytest.raises(ValueError, match=r"min_density is 0\.11, more than the final density"):
        seven_exp.create_pruner("magnitude", net(), sparsity=0.9, min_density=0.11)


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"scope": 3}, "the scope is a int: give a name, choose from alpha, "),
        ({"pattern": (2, 4)}, r"unknown pattern '\(2, 4\)': choose unstructured"),
        ({"pattern": None}, "unknown pattern 'None'"),
        ({"exclude": [nn.ReLU()]}, r"exclude is \[ReLU\(\)\]: give a list of names"),
        ({"include": 3}, "include is 3: give a list of names"),
        ({"sparsity": "0.5"}, "sparsity is '0.5': choose"),
        ({"alpha_1": "x"}, "alpha_1 is 'x': choose a number, such as 0"),
        ({"alpha_1": None}, "alpha_1 is None: choose a number"),
    ],
)  # fmt: skip
def test_a_value_of_the_wrong_kind_is_named(keywords, words):
    settings = {"sparsity": 0.5, "end_step": 4, **keywords}
    with pytest.raises(ValueError, match=f"^{words}"):
        seven_exp.create_pruner("seven_dyn", net(), **settings)


@pytest.mark.parametrize("keyword", ["rounds", "batches_per_round"])
@pytest.mark.parametrize("value", [0, -1, 2.5, "a"])
def test_prune_takes_whole_numbers_from_one(keyword, value):
    pruner = seven_exp.create_pruner("snip_iterative", net(), sparsity=0.5)
    with pytest.raises(ValueError, match=f"^{keyword} is .*choose"):
        pruner.prune(batches(), loss_fn, **{keyword: value})
