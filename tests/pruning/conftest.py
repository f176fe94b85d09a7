"""Fixtures that several tests of pruners share."""

import pytest

from seven_exp.pruning.criteria.wanda import Wanda


@pytest.fixture
def wanda_scores(monkeypatch):
    """``wanda_scores(model)``: filled with the scores that Wanda prunes the model's weights by."""

    def watch(model):
        names = {p.data_ptr(): name for name, p in model.named_parameters()}
        scores = {}

        def score(self, sums, weight, plain=Wanda.score):
            found = plain(self, sums, weight)
            name = names[weight.data_ptr()]
            scores[name] = found.reshape(model.get_parameter(name).shape)
            return found

        monkeypatch.setattr(Wanda, "score", score)
        return scores

    return watch
