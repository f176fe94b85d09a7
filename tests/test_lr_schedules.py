"""Learning-rate schedules against torch's own schedulers, or formulas stated here."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from test_conf import composed

from seven_exp.config import ConfigError
from seven_exp.runs import run_hash
from seven_exp.runs.check import check
from seven_exp.training.lr_schedules import LR_SCHEDULES, lr_factor

SCHEDULERS = torch.optim.lr_scheduler


def rates(scheduler, steps, **arguments):
    """The rates that torch's scheduler gives a base rate of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
    running = scheduler(optimizer, **arguments)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        running.step()
    return found


def factors(name, steps, warmup=0, **options):
    return [lr_factor(name, t, steps, warmup, options) for t in range(steps)]


@pytest.mark.parametrize(
    ("name", "options", "scheduler", "arguments"),
    [
        ("constant", {}, SCHEDULERS.ConstantLR, {"factor": 1.0}),
        ("linear", {"floor": 0.2}, SCHEDULERS.LinearLR,
         {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 40}),
        ("cosine", {}, SCHEDULERS.CosineAnnealingLR, {"T_max": 40}),
        ("cosine", {"floor": 0.1}, SCHEDULERS.CosineAnnealingLR, {"T_max": 40, "eta_min": 0.1}),
        ("polynomial", {"power": 3.0}, SCHEDULERS.PolynomialLR, {"total_iters": 40, "power": 3.0}),
        ("step", {"every": 7, "gamma": 0.5}, SCHEDULERS.StepLR, {"step_size": 7, "gamma": 0.5}),
        ("step", {"every": 0.25}, SCHEDULERS.StepLR, {"step_size": 10}),
        ("multi_step", {"milestones": [3, 0.5, 33], "gamma": 0.2}, SCHEDULERS.MultiStepLR,
         {"milestones": [3, 20, 33], "gamma": 0.2}),
        ("cosine_restarts", {"first": 5, "growth": 2, "floor": 0.05},
         SCHEDULERS.CosineAnnealingWarmRestarts, {"T_0": 5, "T_mult": 2, "eta_min": 0.05}),
        ("cosine_restarts", {}, SCHEDULERS.CosineAnnealingWarmRestarts, {"T_0": 10}),
        ("one_cycle", {}, SCHEDULERS.OneCycleLR, {"max_lr": 1.0, "total_steps": 41}),
        ("one_cycle", {"rise": 0.4, "start_divisor": 10.0, "end_divisor": 100.0},
         SCHEDULERS.OneCycleLR, {"max_lr": 1.0, "total_steps": 41, "pct_start": 0.4,
                                 "div_factor": 10.0, "final_div_factor": 100.0}),
    ],
)  # fmt: skip
def test_as_torch(name, options, scheduler, arguments):
    steps = arguments.get("total_steps", 40)
    # torch's scheduler accepts no step after the last one.
    expected = rates(scheduler, 40, **arguments)
    np.testing.assert_allclose(factors(name, steps, **options)[:40], expected, rtol=1e-12)


def test_the_last_step_of_one_cycle_has_the_lowest_rate():
    assert factors("one_cycle", 20)[-1] == pytest.approx(1 / 25 / 1e4)
    assert factors("one_cycle", 1) == [1.0]
    assert max(factors("one_cycle", 3, rise=1.0)) == 1.0
    falling = factors("one_cycle", 4, rise=0.0)
    assert falling[0] == 1.0
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(
    ("shape", "height"),
    [
        ("linear", lambda x: 1 - x),
        ("cosine", lambda x: math.cos(math.pi * x / 2) ** 2),  # half-angle formula
        ("sqrt", lambda x: 1 - x**0.5),
    ],
)
def test_stable_then_decay(shape, height):
    """W steps of warm-up, 1 until D steps before the end, then from 1 down to the floor."""
    steps, warmup, decay, floor = 50, 10, 20, 0.1
    found = factors("warmup_stable_decay", steps, warmup, decay=decay, shape=shape, floor=floor)
    assert found[:10] == [(t + 1) / 10 for t in range(10)]
    assert found[10:30] == [1.0] * 20
    expected = [floor + (1 - floor) * height((t - 30) / 20) for t in range(30, 50)]
    np.testing.assert_allclose(found[30:], expected, rtol=1e-12)
    fraction = factors("warmup_stable_decay", steps, warmup, decay=0.4, shape=shape, floor=floor)
    assert fraction == found
    assert factors("warmup_stable_decay", steps, decay=0) == [1.0] * steps


def test_what_follows_the_warm_up():
    """Curves start when the warm-up is over; milestones count from the start, as papers' do."""
    for name in ("linear", "cosine", "polynomial", "cosine_restarts"):
        options = {"first": 4} if name == "cosine_restarts" else {}
        assert factors(name, 30, 10, **options)[10:] == factors(name, 20, **options)
    assert factors("multi_step", 30, 10, milestones=[15])[10:] == [1.0] * 5 + [0.1] * 15
    assert factors("step", 30, 10, every=15)[10:] == [1.0] * 5 + [0.1] * 15


def test_a_schedule_is_a_pure_function_of_the_step():
    for name in LR_SCHEDULES:
        parameters = inspect.signature(LR_SCHEDULES[name]).parameters.values()
        assert all(p.default is not p.empty for p in parameters if p.kind is p.KEYWORD_ONLY)
        one = factors(name, 25, 3)
        assert [lr_factor(name, t, 25, 3) for t in reversed(range(25))] == one[::-1]
        assert all(0 <= factor <= 1 for factor in one)


SMALL = ("model=mlp", "optimizer=sgd")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.lr_schedule=multistep", "unknown lr_schedule 'multistep': did you mean "
         "'multi_step'?"),
        ("optimizer.lr_options={gama:1}", "optimizer.lr_options.gama: multi_step has no such key: "
         "did you mean 'gamma'?"),
        ("optimizer.lr_options={gamma:0.0}", "optimizer.lr_options.gamma is 0.0: "),
        ("optimizer.lr_options={milestones:[1.5]}", "optimizer.lr_options.milestones is 1.5: "),
        ("optimizer.lr_options={milestones:0.5}", "optimizer.lr_options.milestones is 0.5: "),
    ],
)  # fmt: skip
def test_one_line_for_a_mistake(override, words):
    with pytest.raises(ConfigError, match=re.escape(words)) as raised:
        check(composed(*SMALL, "optimizer.lr_schedule=multi_step", override))
    assert "\n" not in str(raised.value)


def test_options_make_another_run_and_their_absence_none():
    plain = run_hash(composed(*SMALL, "optimizer.lr_schedule=step"))
    other = composed(*SMALL, "optimizer.lr_schedule=step", "optimizer.lr_options={every:3}")
    assert run_hash(other) != plain


def test_the_file_of_the_optimizer_lists_every_schedule():
    text = composed.__globals__["CONF"].joinpath("optimizer/adamw.yaml").read_text()
    for name in LR_SCHEDULES:
        assert re.search(rf"[ |]{name}\b", text), name
