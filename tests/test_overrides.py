"""Arguments may be typed in any order, though Hydra's parser takes overrides in one piece only."""

import pytest
from hydra._internal.utils import get_args_parser

from seven_exp.cli.main import after_training
from seven_exp.cli.overrides import options_first

GIVEN = ["pruner=magnitude", "seed=0,1", "~hydra.callbacks.compare"]


@pytest.mark.parametrize("place", range(4))
def test_options_may_stand_anywhere(place):
    typed = [*GIVEN[:place], "-m", "--config-dir", "a=b", *GIVEN[place:]]
    parsed = get_args_parser().parse_args(options_first(typed))
    assert parsed.multirun
    assert parsed.config_dir == "a=b"
    assert parsed.overrides == GIVEN


def test_a_sweep_of_prune_begins_with_its_option():
    typed = after_training(["-m", "model=opt", "pruner=wanda,sparsegpt", "--cfg", "job"])
    parsed = get_args_parser().parse_args(options_first(typed))
    assert parsed.multirun
    assert parsed.cfg == "job"
    assert {"trainer.max_steps=0", "model=opt", "pruner=wanda,sparsegpt"} <= set(parsed.overrides)
    assert "model=hf" not in parsed.overrides
