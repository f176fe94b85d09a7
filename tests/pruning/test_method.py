"""What the author of a method may write wrong, said in one line."""

import pytest
import torch
from torch import nn

import seven_exp
from seven_exp.pruning import Remembered
from seven_exp.pruning.criteria.magnitude import Magnitude


class OneTensor(seven_exp.Score):
    def score(self, state, weights):
        return [torch.ones(3)]


class Whole(seven_exp.Score):
    def score(self, state, weights):
        return [torch.arange(weight.numel()).view_as(weight) for weight in weights]


class Forgetful(seven_exp.Score):
    def score(self, state, weights):
        pass


class Unfinished(seven_exp.GradientScore):
    pass


class Demanding(seven_exp.Score):
    def __init__(self, *, power: float) -> None:
        self.power = power

    def score(self, state, weights):
        return [weight.detach().abs() ** self.power for weight in weights]


class Listed(seven_exp.GradientScore):
    def init(self, weights):
        return {"mean": list(weights)}

    def update(self, state, weights, grads):
        pass

    def score(self, state, weights):
        return list(weights)


class Unprepared(seven_exp.Solver):
    def __init__(self) -> None:
        """Without the base class's."""

    def init(self, weight):
        return {}

    def see(self, sums, inputs):
        pass

    def score(self, sums, weight):
        return weight.abs()


@pytest.fixture
def made():
    """A pruner of what is registered as "mine"."""

    def make(thing, when="after", **hyperparameters):
        seven_exp.register("mine", when=when, schedule="one_shot")(thing)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2))
        return seven_exp.create_pruner("mine", model, sparsity=0.5, **hyperparameters)

    return make


@pytest.mark.parametrize(
    ("thing", "words"),
    [
        (lambda: None, "mine makes None: return a Ranking, or a score or a solver"),
        (lambda: Magnitude, "mine makes the class Magnitude: return"),
        (lambda: (Magnitude(), seven_exp.Rule()), "makes a value of type tuple"),
        (lambda: seven_exp.Ranking(Magnitude), "score is the class Magnitude: give a score"),
        (lambda: seven_exp.Ranking(Magnitude(), seven_exp.Rule), "rule is the class Rule"),
        (lambda: seven_exp.Ranking(Magnitude(), Remembered), "rule is the class Remembered"),
        (lambda: seven_exp.Ranking(Magnitude(), regrowth="moved"), "a value of type str"),
        (Unfinished, "mine can't be made: Unfinished does not define score, update"),
        (Demanding, "mine needs the hyper-parameter 'power', which has no default"),
    ],
)
def test_what_is_no_method_is_named(made, thing, words):
    with pytest.raises(ValueError, match=words):
        made(thing)


@pytest.mark.parametrize("score", [OneTensor, Whole, Forgetful])
def test_scores_that_are_none_are_named(made, score):
    pruner = made(score)
    with pytest.raises(ValueError, match=r"score\(\) of mine must return .*3 layers.*\(8, 8\)"):
        pruner.prune()
    assert pruner.sparsity == 0


def test_a_state_that_is_none_is_named(made):
    pruner = made(Listed)
    with pytest.raises(TypeError, match="returned a dict: return a State"):
        pruner.prune([torch.ones(2, 8)], lambda model, x: model(x).sum())


def test_a_hyperparameter_without_default_is_taken(made):
    pruner = made(Demanding, power=2.0)
    pruner.prune()
    assert pruner.sparsity == 0.5


def test_a_solver_need_not_call_its_base_class(made):
    pruner = made(Unprepared)
    pruner.prune([torch.ones(2, 8)], lambda model, x: model(x).sum())
    assert pruner.sparsity == 0.5
