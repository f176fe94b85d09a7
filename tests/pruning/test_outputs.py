"""Criteria that use a model's logits find them in any kind of output."""

from collections import namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import seven_exp

Named = namedtuple("Named", ["logits", "hidden"])


@dataclass
class Plain:
    logits: torch.Tensor
    hidden: torch.Tensor


@dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    hidden: torch.Tensor


def model_output(logits, hidden):
    from transformers.modeling_outputs import SequenceClassifierOutput

    return SequenceClassifierOutput(logits=logits, hidden_states=(hidden,))


KINDS = {
    "tensor": (lambda logits, hidden: logits, lambda out: out),
    "dict": (
        lambda logits, hidden: {"logits": logits, "hidden": hidden},
        lambda out: out["logits"],
    ),
    "nameless dict": (lambda logits, hidden: {"out": logits}, lambda out: out["out"]),
    "tuple": (lambda logits, hidden: (logits, (hidden,)), lambda out: out[0]),
    "list": (lambda logits, hidden: [logits], lambda out: out[0]),
    "named tuple": (Named, lambda out: out.logits),
    "dataclass": (Plain, lambda out: out.logits),
    "frozen dataclass": (Frozen, lambda out: out.logits),
    "object": (lambda logits, hidden: SimpleNamespace(logits=logits), lambda out: out.logits),
    "ModelOutput": (model_output, lambda out: out.logits),
}


class Wrapping(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)
        self.wrap = wrap
        self.double()

    def forward(self, x):
        hidden = nn.functional.dropout(self.first(x).tanh(), 0.25, self.training)
        return self.wrap(self.second(hidden), hidden)


def scores_of(name, model, batch, loss_fn, **settings):
    torch.manual_seed(1)
    settings = {"exclude": [], "rounds": 1, **settings}
    pruner = seven_exp.create_pruner(name, model, sparsity=0.5, **settings)
    pruner.prune([batch], loss_fn)
    return torch.cat([score.flatten() for score in pruner.scores.values()]), pruner.masks


@pytest.mark.parametrize("name", ["snip", "grasp", "synflow", "taylor_pre", "fisher_pre", "force"])
@pytest.mark.parametrize("kind", list(KINDS))
def test_outputs_of_any_kind(name, kind):
    """Dropout draws the same numbers, and a hidden state beside the logits does not count."""
    wrap, logits_of = KINDS[kind]
    torch.manual_seed(2)
    batch = torch.randn(8, 4).double(), torch.randint(3, (8,))
    scores, _ = scores_of(
        name, Wrapping(wrap), batch, lambda m, b: cross_entropy(logits_of(m(b[0])), b[1])
    )
    tensor = Wrapping(KINDS["tensor"][0])
    expected, _ = scores_of(name, tensor, batch, lambda m, b: cross_entropy(m(b[0]), b[1]))
    assert torch.equal(scores, expected)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_temperature_divides_the_logits(kind):
    wrap, logits_of = KINDS[kind]
    torch.manual_seed(2)
    batch = torch.randn(8, 4).double(), torch.randint(3, (8,))
    model = Wrapping(wrap)
    scores, _ = scores_of(
        "grasp", model, batch, lambda m, b: cross_entropy(logits_of(m(b[0])), b[1])
    )
    by_hand, _ = scores_of(
        "grasp", Wrapping(wrap), batch, lambda m, b: cross_entropy(logits_of(m(b[0])) / 200, b[1]),
        temperature=1.0,
    )  # fmt: skip
    torch.testing.assert_close(scores, by_hand, rtol=1e-9, atol=0)
    assert model.training
    assert not model._forward_hooks


SIZES = {"vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def sequence_classifier():
    from transformers import BertConfig, BertForSequenceClassification

    labels = {"labels": torch.tensor([0, 1, 2, 0])}
    config = BertConfig(**SIZES, intermediate_size=12, num_labels=3)
    return BertForSequenceClassification(config), labels, ["logits"]


def span_finder():
    from transformers import BertConfig, BertForQuestionAnswering

    labels = {"start_positions": torch.tensor([0, 1, 2, 0]), "end_positions": torch.tensor([3] * 4)}
    model = BertForQuestionAnswering(BertConfig(**SIZES, intermediate_size=12))
    return model, labels, ["start_logits", "end_logits"]


def last_token_classifier():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    config = GPT2Config(vocab_size=30, n_embd=8, n_layer=1, n_head=2, num_labels=3, pad_token_id=0)
    return GPT2ForSequenceClassification(config), {"labels": torch.tensor([0, 1, 2, 0])}, ["logits"]


@pytest.mark.parametrize("make", [sequence_classifier, span_finder, last_token_classifier])
def test_a_loss_inside_the_model_or_outside_of_its_logits(make):
    """The temperature reaches both alike, and SNIP takes both."""
    torch.manual_seed(0)
    model, labels, keys = make()
    model.eval()
    ids = torch.randint(1, 30, (4, 6))

    def inside(m, batch):
        return m(input_ids=batch, **labels).loss

    def outside(m, batch):
        outputs = m(input_ids=batch)
        pairs = zip(keys, labels.values(), strict=True)
        return sum(cross_entropy(outputs[key], right) for key, right in pairs) / len(keys)

    def scores(name, loss_fn, **settings):
        return scores_of(name, model, ids, loss_fn, exclude=None, **settings)

    start = {name: p.clone() for name, p in model.state_dict().items()}
    for name in ("snip", "grasp"):
        found = []
        for loss_fn in (inside, outside):
            model.load_state_dict(start)
            found.append(scores(name, loss_fn))
        (one, masks), (two, others) = found
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5 * float(two.abs().max()))
        agree = [(masks[key] == others[key]).float().mean() for key in masks]
        assert min(agree) > 0.98
    model.load_state_dict(start)
    assert not torch.allclose(scores("grasp", inside, temperature=1.0)[0], one)


class LossInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, y):
        logits = self.layer(x).exp()
        return {"loss": cross_entropy(logits, y), "logits": logits}


def test_logits_out_of_reach_are_an_error_that_says_what_to_do():
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    with pytest.raises(ValueError, match="temperature=1"):
        scores_of("grasp", LossInside(), batch, lambda m, b: m(*b)["loss"])
    scores_of("grasp", LossInside(), batch, lambda m, b: m(*b)["loss"], temperature=1.0)
    with pytest.raises(ValueError, match="never calls the model"):
        scores_of("grasp", LossInside(), batch, lambda m, b: cross_entropy(m.layer(b[0]), b[1]))
