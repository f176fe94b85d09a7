"""The sweeps are runnable as they stand: every point composes and is valid."""

import itertools
from pathlib import Path

import pytest
import yaml
from test_conf import composed
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from seven_exp.runs.check import check

ROOT = Path(__file__).parent.parent
SWEEPS = sorted((ROOT / "sweep").glob("*.yaml"))


def points(parameters: dict):
    """All points of a grid; for a range its two ends."""
    choices = [
        p["values"] if "values" in p else [p["value"]] if "value" in p else [p["min"], p["max"]]
        for p in parameters.values()
    ]
    for values in itertools.product(*choices):
        yield {key: {"value": v} for key, v in zip(parameters, values, strict=True)}


@pytest.mark.slow
@pytest.mark.parametrize("path", SWEEPS, ids=lambda p: p.stem)
def test_every_point_is_a_valid_run(path):
    sweep = yaml.safe_load(path.read_text())
    assert (ROOT / sweep["program"]).is_file()
    assert sweep["command"][-1] == "${args_no_hyphens}"
    assert sweep["metric"]["name"] == "final/validation/accuracy"
    seen = 0
    for point in points(sweep["parameters"]):
        arguments = create_sweep_command_args({"args": point})["args_no_hyphens"]
        config = composed(*arguments)
        if seen == 0:
            check(config)
        assert config.pruner.name == point["pruner"]["value"]
        assert config.sparsity == point["sparsity"]["value"]
        seen += 1
    assert seen > 1
