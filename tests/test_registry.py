"""A name stands for one thing, which may be redefined."""

import pytest

from seven_exp.pruning import PRUNERS
from seven_exp.registry import Registry

CELL = """
import seven_exp

@seven_exp.register("of_a_cell", when="{when}")
class {name}(seven_exp.Score):
    def score(self, state, weights):
        return [weight.abs() for weight in weights]
"""


def test_a_cell_that_is_run_again_replaces_what_it_registered():
    for when in ("before", "during"):
        cell = {"__name__": "__main__"}
        exec(CELL.format(when=when, name="Mine"), cell)
        assert PRUNERS["of_a_cell"].make is cell["Mine"]
        assert PRUNERS["of_a_cell"].when == when


@pytest.mark.parametrize(("module", "name"), [("__main__", "Other"), ("elsewhere", "Mine")])
def test_another_criterion_can_not_take_a_name(module, name):
    exec(CELL.format(when="before", name="Mine"), {"__name__": "__main__"})
    with pytest.raises(ValueError, match="pruner 'of_a_cell' is registered already"):
        exec(CELL.format(when="before", name=name), {"__name__": module})


def test_another_function_can_not_take_a_name():
    models: Registry = Registry("model")
    models.add("mine", test_a_cell_that_is_run_again_replaces_what_it_registered)
    models.add("mine", test_a_cell_that_is_run_again_replaces_what_it_registered)
    with pytest.raises(ValueError, match="model 'mine' is registered already"):
        models.add("mine", test_another_function_can_not_take_a_name)
