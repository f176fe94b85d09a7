"""Losses and metrics: of a whole split, by their definitions."""

import json
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from seven_exp.compare.summary import smaller_is_better
from seven_exp.tasks import METRICS, Classification, LanguageModelling, Regression, Spans
from seven_exp.tasks.spans import answer_f1, normal_form
from seven_exp.training.compute import Compute
from seven_exp.training.evaluation import evaluate
from seven_exp.training.loop import Recipe, Reported, train

CPU = torch.device("cpu")


class Listed:
    """Batches given as a list."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def epoch(self, index):
        return iter(self.batches)


def one_hot(*classes, of=2):
    return functional.one_hot(torch.tensor(classes), of).float()


def test_f1_is_of_the_split_not_the_mean_of_its_batches():
    # chosen 1 1 | 0, right 1 0 | 1: precision 1/2, recall 1/2, F1 1/2; by batch 2/3 and 0
    batches = Listed([(one_hot(1, 1), torch.tensor([1, 0])), (one_hot(0), torch.tensor([1]))])
    task = Classification(extra=("f1", "matthews"))
    figures = evaluate(nn.Identity(), batches, Compute(CPU, task=task))
    assert figures["f1"] == pytest.approx(0.5)
    assert figures["accuracy"] == pytest.approx(1 / 3)
    # TP 1, TN 0, FP 1, FN 1: (1 * 0 - 1 * 1) / sqrt(2 * 2 * 1 * 1)
    assert figures["matthews"] == pytest.approx(-0.5)


def test_a_metric_may_return_a_tensor():
    METRICS.register("own_share")(lambda chosen, right: (chosen == right).float().mean())
    batches = Listed([(one_hot(1, 1), torch.tensor([1, 0])), (one_hot(0, 0), torch.tensor([1, 1]))])
    task = Classification(extra=("own_share",))
    figures = evaluate(nn.Identity(), batches, Compute(CPU, task=task))
    assert json.loads(json.dumps(figures))["own_share"] == 0.25


def test_loss_weighs_examples_alike_whatever_their_batches():
    x, y = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    split = Listed([(x[:4], y[:4]), (x[4:], y[4:])])
    loss = evaluate(nn.Identity(), split, Compute(CPU))["loss"]
    assert loss == pytest.approx(-x.log_softmax(1)[range(7), y].mean().item(), rel=1e-5)


def test_correlations():
    given, right = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([1.0, 2.0, 3.0])
    figures = Regression().metrics(Regression().evidence(given, right), 0.5)
    assert figures["spearman"] == pytest.approx(1.0)
    # deviations -4/3 -1/3 5/3 and -1 0 1: 3 / sqrt(14/3 * 2)
    assert figures["pearson"] == pytest.approx(3 / math.sqrt(14 / 3 * 2))
    assert Regression().loss(given, right).item() == pytest.approx(1 / 3)


def test_a_constant_guess_correlates_with_nothing():
    evidence = torch.tensor([[2.0, 1.0], [2.0, 3.0]])
    assert Regression().metrics(evidence, 1.0)["pearson"] == 0.0


def test_perplexity_of_a_fair_guess_is_the_vocabulary_whatever_the_padding():
    targets = torch.tensor([[1, 2, 3, 4], [5, 6, -100, -100]])
    task = LanguageModelling()
    assert task.weight(targets) == 4
    split = Listed([(torch.zeros(1, 4, 10), targets[:1]), (torch.zeros(1, 4, 10), targets[1:])])
    figures = evaluate(nn.Identity(), split, Compute(CPU, task=task))
    assert figures["perplexity"] == pytest.approx(10, rel=1e-5)


def test_perplexity_counts_tokens_not_batches():
    targets = torch.tensor([[0, 0, 0, 0], [0, 1, -100, -100]])
    logits = torch.zeros(2, 4, 2)
    logits[..., 0] = 1.0
    split = Listed([(logits[:1], targets[:1]), (logits[1:], targets[1:])])
    figures = evaluate(nn.Identity(), split, Compute(CPU, task=LanguageModelling()))
    right = math.log(1 + math.exp(-1))
    assert figures["perplexity"] == pytest.approx(math.exp((3 * right + right + 1) / 4), rel=1e-5)


def test_answers_as_the_squad_rule_compares_them():
    assert normal_form("The  Cat, (a) dog!") == "cat dog"
    assert answer_f1("the big cat", "cat") == pytest.approx(2 / 3)
    assert answer_f1("cat cat", "cat") == pytest.approx(2 / 3)
    assert answer_f1("dog", "cat") == 0.0


def spans_task():
    context = "the red house"
    places = [(0, 0), (0, 0), (0, 3), (4, 7), (8, 13)]
    return Spans([(0, places), (0, places)], [context], [["red house", "house"]])


def test_the_best_span_lies_in_the_context_and_runs_forwards():
    logits = torch.zeros(1, 5, 2)
    logits[0, 1, 0] = 9.0  # in the question
    logits[0, 4, 0] = 5.0  # the best start in the context; no end comes behind it but itself
    logits[0, 3, 1] = 6.0
    logits[0, 3, 0] = 1.0
    targets = torch.tensor([[3, 4, 2, 4, 0]])
    window, begin, end, score = spans_task().evidence(logits, targets)[0].tolist()
    # red..red: 1 + 6; house..house: 5 + 0; the..red: 0 + 6
    assert (window, begin, end, score) == (0, 3, 3, 7)


def test_the_best_window_answers_and_the_best_of_the_right_answers_counts():
    evidence = torch.tensor([[0, 2, 2, 1.0], [1, 3, 4, 2.0]], dtype=torch.float64)
    figures = spans_task().metrics(evidence, 0.1)
    assert figures["exact_match"] == figures["f1"] == 1.0
    worse = spans_task().metrics(evidence[:1], 0.1)
    assert worse["exact_match"] == worse["f1"] == 0.0


def test_a_task_and_the_comparison_agree_on_which_way_is_up():
    for task in (Classification(), Regression(), LanguageModelling(), spans_task()):
        assert task.lower_is_better == smaller_is_better(task.metric)
        assert task.better(1.0, 2.0) == task.lower_is_better
    assert smaller_is_better("loss_mismatched")


@pytest.mark.parametrize("sizes", [(8, 8), (10, 6)])
def test_accumulated_batches_make_the_update_of_one_batch(sizes):
    torch.manual_seed(0)
    x, y = torch.randn(16, 5), torch.randint(3, (16,))
    start = nn.Linear(5, 3).state_dict()

    def updated(batches, accumulate):
        model = nn.Linear(5, 3)
        model.load_state_dict(start)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        recipe = Recipe(3, lambda step: 1.0, accumulate)
        events = train(model, Listed(batches), optimizer, Compute(CPU), recipe)
        return model.state_dict(), [event for event in events if isinstance(event, Reported)][-1]

    parts = [(a, b) for a, b in zip(x.split(sizes), y.split(sizes), strict=True)]
    (one, seen), (two, seen_two) = updated([(x, y)], 1), updated(parts, 2)
    for name in one:
        torch.testing.assert_close(one[name], two[name])
    assert seen.loss == pytest.approx(seen_two.loss, rel=1e-5)
    assert seen.accuracy == seen_two.accuracy
