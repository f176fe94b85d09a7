"""Equal tuning: as many trials for each method, on validation, and what is written of it."""

import json
import os
import subprocess

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from preloaded import python
from test_cli import ROOT
from test_conf import CONF, composed
from test_optuna import given_jobs

from hydra_plugins.seven_exp_optuna import distribution
from hydra_plugins.seven_exp_tune import TuneSweeper
from seven_exp.cli.tune import for_train
from seven_exp.cli.tuned import with_tuned
from seven_exp.config import ConfigError
from seven_exp.pruning import PRUNERS, build_method
from seven_exp.training.loop import DivergedError


def tune(tmp_path, answer, *arguments, **settings):
    """The jobs of one start, and the file that was written."""
    given = {"direction": None, "trials": 4, "jobs": 1, "seed": 0, "study": None, "params": None}
    output = tmp_path / "tuned.yaml"
    sweeper = TuneSweeper(
        output=str(output), **{**given, "folder": str(tmp_path / "studies"), **settings}
    )
    with given_jobs(sweeper, tmp_path, answer) as jobs:
        try:
            sweeper.sweep(list(arguments))
        finally:
            found = yaml.safe_load(output.read_text()) if output.exists() else None
    return jobs.seen, found


def near(values) -> float:
    """A landscape for each method, whose best value is 1; the seed only adds noise."""
    noise = {"0": -0.25, "1": 0.25}[values["seed"]]
    if values["pruner"] == "obert":
        return 1 - float(values["pruner.dampening"]) + noise
    return 1 - abs(float(values["pruner.alpha_1"]) - 0.7) + noise


BOTH = ["pruner=seven_dyn,magnitude,obert", "seed=0,1", "sparsity=0.9"]


@pytest.mark.slow
def test_every_method_gets_the_same_trials_and_begins_with_its_defaults(tmp_path):
    seen, found = tune(tmp_path, near, *BOTH)
    trials = {name: [v for v in seen if v["pruner"] == name] for name in ("seven_dyn", "obert")}
    # four trials of two seeds for each method with a space, none for the other
    assert len(seen) == sum(map(len, trials.values()))
    for own in trials.values():
        assert [v["seed"] for v in own] == ["0", "1"] * 4
        for one, two in zip(own[::2], own[1::2], strict=True):
            assert {**one, "seed": ""} == {**two, "seed": ""}
    first = trials["seven_dyn"][0]
    assert (first["pruner.alpha_1"], first["pruner.alpha_2"]) == ("0.8", "0.9")
    assert float(trials["obert"][0]["pruner.dampening"]) == 1e-7

    methods = found["methods"]
    assert list(methods) == ["seven_dyn", "magnitude", "obert"]
    assert methods["magnitude"]["values"] == {}
    assert methods["magnitude"]["found"] == "no search space: the defaults"
    for name, key, value in (
        ("seven_dyn", "pruner.alpha_1", lambda x: 1 - abs(x - 0.7)),
        ("obert", "pruner.dampening", lambda x: 1 - x),
    ):
        tried = [float(v[key]) for v in trials[name]]
        own = methods[name]
        assert own["values"][key] == max(tried, key=value)
        # the mean of both seeds, whose noise cancels
        assert own["value"] == pytest.approx(max(map(value, tried)))
        assert own["default"] == pytest.approx(value(tried[0]))
        assert own["value"] >= own["default"]
    how = found["found"]
    assert (how["split"], how["trials"]) == ("validation", 4)
    assert (how["seeds"], how["sparsities"]) == ([0, 1], [0.9])
    assert how["versions"]["seven_exp"]


@pytest.mark.slow
def test_finished_trials_are_not_trained_again(tmp_path):
    _, found = tune(tmp_path, near, *BOTH)
    seen, again = tune(tmp_path, near, *BOTH)
    assert seen == []
    assert again["methods"] == found["methods"]
    # a larger number adds to them
    more, better = tune(tmp_path, near, *BOTH, trials=5)
    assert len(more) == 2 * 2
    assert better["methods"]["seven_dyn"]["value"] >= found["methods"]["seven_dyn"]["value"]


@pytest.mark.slow
def test_what_is_typed_is_searched_for_all_or_fixed(tmp_path):
    seen, found = tune(
        tmp_path, lambda v: float(v["optimizer.lr"]), "pruner=seven_dyn,magnitude",
        "optimizer.lr=tag(log,interval(1e-4,1e-2))", "pruner.misfits=dense", trials=2,
    )  # fmt: skip
    assert all(v["pruner.misfits"] == "dense" for v in seen)
    assert set(found["methods"]["seven_dyn"]["values"]) == {
        "optimizer.lr", "pruner.alpha_1", "pruner.alpha_2"
    }  # fmt: skip
    assert set(found["methods"]["magnitude"]["values"]) == {"optimizer.lr"}
    fixed, _ = tune(tmp_path, near, "pruner=seven_dyn", "pruner.alpha_1=0.6", "seed=0", trials=2)
    assert {v["pruner.alpha_1"] for v in fixed} == {"0.6"}
    assert len({v["pruner.alpha_2"] for v in fixed}) == 2


@pytest.mark.slow
def test_a_method_that_fails_leaves_the_others_alone(tmp_path, caplog):
    class BrokenError(RuntimeError):
        pass

    def breaks(values):
        if values["pruner"] == "platon":
            raise BrokenError("no memory")
        if values["pruner"] == "grasp":
            raise DivergedError("the loss became nan")
        return near({**values, "seed": "0"})

    with pytest.raises(BrokenError, match="no memory"):
        tune(tmp_path, breaks, "pruner=platon,grasp,obert", trials=2)
    assert "pruner=platon can't be tuned: no memory" in caplog.text
    found = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert list(found["methods"]) == ["grasp", "obert"]
    assert found["methods"]["grasp"] == {
        "values": {}, "found": "no trial finished: the defaults", "value": None, "default": None,
        "metric": None, "study": None,
    }  # fmt: skip


def test_a_method_that_is_not_valid_leaves_the_others_alone(tmp_path):
    text = ["model=minilm", "dataset=glue/sst2", f"dataset.data_dir={ROOT}/tests/data/glue"]
    with pytest.raises(ConfigError, match=r"synflow.*unlike text"):
        tune(tmp_path, lambda v: 1.0, "pruner=synflow,magnitude", *text)
    found = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    assert list(found["methods"]) == ["magnitude"]


def test_a_name_that_does_not_compose_stops_it_before_the_first_trial(tmp_path):
    with pytest.raises(HydraException, match="seven_dym"):
        tune(tmp_path, None, "pruner=obert,seven_dym")
    assert not (tmp_path / "tuned.yaml").exists()


def test_without_a_validation_split_nothing_is_tuned(tmp_path):
    with pytest.raises(ConfigError, match=r"dataset.validation is 0.0: trials are compared on the"):
        tune(tmp_path, near, *BOTH, "dataset.validation=0")


@pytest.mark.parametrize("name", [name for name in PRUNERS if PRUNERS[name].space])
def test_a_declared_space_holds_the_default_and_valid_values_alone(name):
    usual = composed(f"pruner={name}").pruner.arguments
    for key, values in PRUNERS[name].space.items():
        (override,) = OverridesParser.create().parse_overrides([f"pruner.{key}={values}"])
        searched = distribution(override)
        assert searched.low <= usual[key] <= searched.high
        for value in (searched.low, searched.high):
            assert type(value) is type(usual[key])
            build_method(name, {**usual, key: value})


def written(tmp_path, **methods):
    path = tmp_path / "tuned.yaml"
    own = {name: {"values": values} for name, values in methods.items()}
    path.write_text(yaml.safe_dump({"methods": own}))
    return path


def values_of(*overrides: str):
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        return compose("config", list(overrides))


def test_tuned_values_are_those_of_the_pruner_and_the_command_line_wins(tmp_path):
    path = written(tmp_path, seven_dyn={"pruner.alpha_1": 0.6, "optimizer.lr": 0.5}, magnitude={})
    given = [f"tuned={path}", "optimizer.lr=0.25"]
    found = with_tuned(values_of(*given), given)
    assert (found.pruner.alpha_1, found.pruner.alpha_2, found.optimizer.lr) == (0.6, 0.9, 0.25)
    for name in ("magnitude", "obert"):
        values = values_of(f"pruner={name}", f"tuned={path}")
        assert OmegaConf.to_container(with_tuned(values, [])) == OmegaConf.to_container(values)


def test_values_that_were_found_elsewhere_are_named(tmp_path, caplog):
    path = tmp_path / "tuned.yaml"
    values = {"values": {"optimizer.lr": 0.5}}
    content = {
        "found": {"model": "vit_tiny", "dataset": "digits"},
        "methods": {"seven_dyn": values},
    }
    path.write_text(yaml.safe_dump(content))
    for name, said in (("vit_tiny", []), ("mlp", ["were found with model=vit_tiny"])):
        caplog.clear()
        with_tuned(values_of(f"tuned={path}", f"model={name}"), [])
        assert [line.partition("seven_dyn ")[2] for line in caplog.messages] == said
    # this file holds nothing for it
    caplog.clear()
    with_tuned(values_of(f"tuned={path}", "model=mlp", "pruner=magnitude"), [])
    assert not [line for line in caplog.messages if "were found" in line]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("methods: [", "not a file that seven-exp tune wrote"),
        ("3", "not a file that seven-exp tune wrote"),
        ("methods: {seven_dyn: {values: {pruner.alpha_9: 1}}}", "pruner.alpha_9: no such key"),
    ],
)
def test_mistakes_in_a_tuned_file(tmp_path, content, words):
    path = tmp_path / "t.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=words) as said:
        with_tuned(values_of(f"tuned={path}"), [])
    assert str(said.value).startswith(f"tuned is '{path}': ")


def test_a_pruner_that_is_no_section_is_left_to_the_schema(tmp_path):
    values = values_of(f"tuned={tmp_path / 'tuned.yaml'}")
    values.pruner = ""
    assert with_tuned(values, []) is values


def test_the_command_is_a_sweep_of_train():
    assert for_train(["pruner=a,b", "tune.trials=3"])[-2:] == [
        "pruner=a,b", "hydra.sweeper.trials=3"
    ]  # fmt: skip


@pytest.mark.slow
def test_real_runs_are_tuned_and_their_values_used(tmp_path):
    small = [
        *("model=mlp", "model.widths=[8]", "trainer.max_steps=10", "trainer.save_model=false"),
        *("tracker=none", "sparsity=0.8", "pruner=seven_dyn,magnitude"),
    ]

    def command(*words):
        done = subprocess.run(
            [python(), "-m", "seven_exp", *words, *small],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SEVEN_EXP_CACHE": str(tmp_path / "cache")},
        )
        assert done.returncode == 0, done.stderr
        return done

    def records():
        paths = tmp_path.rglob("results.json")
        return {r["run_hash"]: r for r in (json.loads(path.read_text()) for path in paths)}

    command("tune", "tune.trials=2", "tune.output=tuned.yaml")
    found = yaml.safe_load((tmp_path / "tuned.yaml").read_text())
    own, trials = found["methods"]["seven_dyn"], records()
    assert len(trials) == 2
    assert own["value"] == max(r["validation"]["accuracy"] for r in trials.values())
    assert own["metric"] == "accuracy"
    assert "hydra/sweeper=tune" in found["found"]["command"]
    # Defaults and tuned side by side: magnitude's two runs are one, seven_dyn's are the trials.
    command("train", "-m", "tuned=null,tuned.yaml")
    after = records()
    assert len(after) == 3
    (other,) = after.keys() - trials.keys()
    assert after[other]["pruner"] == "magnitude"
