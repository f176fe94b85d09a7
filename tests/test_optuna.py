"""Optuna's trials: the search space, the direction, and how a study is continued."""

import json
import math
from contextlib import contextmanager

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from test_cli import ROOT, train
from test_conf import CONF

from hydra_plugins.seven_exp_optuna import OptunaSweeper, distribution
from seven_exp.config import ConfigError
from seven_exp.datasets import DATASETS, lower_is_better
from seven_exp.training.interruption import InterruptedRun
from seven_exp.training.loop import DivergedError


class Jobs(Launcher):
    """Answers each job with a function of its values, and remembers them."""

    def __init__(self, answer) -> None:
        self.answer, self.seen = answer, []

    def setup(self, **_) -> None:
        """Nothing to set up."""

    def launch(self, job_overrides, initial_job_idx):
        returns = []
        for overrides in job_overrides:
            values = dict(pair.split("=", 1) for pair in overrides)
            self.seen.append(values)
            job = JobReturn(overrides=overrides, status=JobStatus.COMPLETED)
            try:
                job.return_value = self.answer(values)
            except (DivergedError, ConfigError) as error:
                job.status, job.return_value = JobStatus.FAILED, error
            returns.append(job)
        return returns


@contextmanager
def given_jobs(sweeper, tmp_path, answer):
    """Set up a sweeper of train's configuration; its jobs."""
    sweeper.launcher = jobs = Jobs(answer)
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        sweeper.config = compose(
            "config", [f"hydra.sweep.dir={tmp_path}/sweep"], return_hydra_config=True
        )
        loader = GlobalHydra.instance().config_loader()
        sweeper.hydra_context = HydraContext(config_loader=loader, callbacks=None)
        yield jobs


def sweep(tmp_path, answer, *arguments, **settings):
    """The jobs of one start of a study, and the best that was written."""
    given = {"direction": None, "trials": 6, "jobs": 1, "seed": 0, "study": None, "params": None}
    sweeper = OptunaSweeper(**{**given, "folder": str(tmp_path / "studies"), **settings})
    with given_jobs(sweeper, tmp_path, answer) as jobs:
        sweeper.sweep(list(arguments))
    return jobs.seen, yaml.safe_load((tmp_path / "sweep/optimization_results.yaml").read_text())


def alpha(values) -> float:
    return float(values["pruner.alpha_1"])


ALPHA = "pruner.alpha_1=interval(0.5,0.9)"


@pytest.mark.slow
def test_the_best_of_the_trials_is_written(tmp_path):
    seen, best = sweep(tmp_path, lambda v: -((alpha(v) - 0.7) ** 2), ALPHA, "seed=3")
    assert len(seen) == 6
    assert all(0.5 <= alpha(v) <= 0.9 and v["seed"] == "3" for v in seen)
    nearest = min(map(alpha, seen), key=lambda a: abs(a - 0.7))
    assert best["best_params"] == {"pruner.alpha_1": nearest}
    assert best["best_value"] == -((nearest - 0.7) ** 2)


@pytest.mark.slow
def test_perplexity_goes_down_accuracy_up_unless_told_otherwise(tmp_path):
    assert {name for name in DATASETS if lower_is_better(name)} == {
        *("wikitext2", "lm/c4", "lm/text_file", "lm/wikitext2")
    }
    text = ["dataset=wikitext2", "model=gpt2"]
    for name, arguments, direction, pick in [
        *(("text", text, None, min), ("images", [], None, max), ("told", [], "minimize", min)),
    ]:
        seen, best = sweep(tmp_path / name, alpha, ALPHA, *arguments, direction=direction)
        assert best["best_value"] == pick(map(alpha, seen))


DISTANCES = """
from dataclasses import replace

from seven_exp.datasets import build_data
from seven_exp.datasets.registry import dataset
from seven_exp.tasks import Classification


class Distance(Classification):
    lower_is_better = True


@dataset("own_distances", known_by="name")
def load(*, batch_size: int, seed: int, augment: bool):
    data = build_data("digits", batch_size=batch_size, seed=seed, augment=augment)
    return replace(data, task=Distance(metric="distance"))
"""


@pytest.mark.slow
def test_the_task_of_a_plugin_says_what_is_better(tmp_path):
    plugin = tmp_path / "own_distances.py"
    plugin.write_text(DISTANCES)
    own = [f"plugins=[{plugin}]", "dataset.name=own_distances"]
    seen, best = sweep(tmp_path, alpha, ALPHA, *own)
    assert best["best_value"] == min(map(alpha, seen))


@pytest.mark.slow
def test_a_killed_study_goes_on_and_tries_its_last_trial_again(tmp_path):
    class Killed(BaseException):
        pass

    started = []

    def dies_in_its_third(values):
        started.append(alpha(values))
        if len(started) == 3:
            raise Killed
        return alpha(values)

    with pytest.raises(Killed):
        sweep(tmp_path, dies_in_its_third, ALPHA, trials=5)
    seen, best = sweep(tmp_path, alpha, ALPHA, trials=5)
    again = [alpha(v) for v in seen]
    assert again[0] == started[2]
    assert len(again) == 3
    every = started[:2] + again
    assert len(set(every)) == 5
    assert best["best_value"] == max(every)
    # done: nothing runs, and the best is that of before
    assert sweep(tmp_path, alpha, ALPHA, trials=5) == ([], best)
    # what is searched or fixed differs: another study
    assert len(sweep(tmp_path, alpha, ALPHA, "seed=1", trials=5)[0]) == 5
    assert len(sweep(tmp_path, alpha, "pruner.alpha_1=interval(0.5,0.8)", trials=5)[0]) == 5


@pytest.mark.slow
def test_a_diverged_trial_is_the_worst_and_nothing_else_is_forgiven(tmp_path):
    def diverges_above(values):
        if alpha(values) > 0.7:
            raise DivergedError("the loss became nan")
        return alpha(values)

    seen, best = sweep(tmp_path, diverges_above, ALPHA, trials=8)
    assert len(seen) == 8
    assert best["best_value"] == max(alpha(v) for v in seen if alpha(v) <= 0.7)

    class BrokenError(RuntimeError):
        pass

    def breaks(values):
        raise BrokenError

    with pytest.raises(BrokenError):
        sweep(tmp_path, breaks, ALPHA, "seed=9")


@pytest.mark.slow
def test_a_trial_that_is_not_valid_costs_itself_only(tmp_path, caplog):
    def refused_above(values):
        if alpha(values) > 0.7:
            raise ConfigError("pruner.alpha_1 is too large")
        return alpha(values)

    seen, best = sweep(tmp_path, refused_above, ALPHA, trials=8)
    refused = sum(alpha(v) > 0.7 for v in seen)
    assert (len(seen), refused > 0) == (8, True)
    assert caplog.text.count("is not valid: pruner.alpha_1 is too large") == refused
    assert best["best_value"] == max(alpha(v) for v in seen if alpha(v) <= 0.7)
    # The same command makes up for them: with others, since the study does not begin with them.
    again, _ = sweep(tmp_path, alpha, ALPHA, trials=8)
    assert len(again) == refused


@pytest.mark.slow
def test_a_trial_that_does_not_compose_costs_itself_only(tmp_path, caplog):
    def by_name(values):
        return {"seven_dyn": 1.0, "magnitude": 0.0}[values["pruner"]]

    searched = "pruner=choice(seven_dym,seven_dyn,magnitude)"
    seen, best = sweep(tmp_path, by_name, searched, trials=12)
    assert "unknown pruner 'seven_dym'" in caplog.text
    assert 0 < len(seen) < 12
    assert best["best_value"] == 1.0


def test_a_study_without_a_valid_trial_ends_with_what_is_wrong(tmp_path):
    def refused(values):
        raise ConfigError("trainer.max_steps is 0")

    with pytest.raises(ConfigError, match="max_steps is 0"):
        sweep(tmp_path, refused, ALPHA, trials=2)


@pytest.mark.slow
def test_a_trial_that_another_process_does_is_left_for_later(tmp_path):
    with pytest.raises(InterruptedRun, match="another process"):
        sweep(tmp_path, lambda values: None, ALPHA, trials=2)
    seen, _ = sweep(tmp_path, alpha, ALPHA, trials=2)
    assert len(seen) == 2


@pytest.mark.slow
def test_jobs_of_a_batch_are_chosen_together(tmp_path):
    seen, _ = sweep(tmp_path, alpha, ALPHA, trials=5, jobs=2)
    assert len(seen) == 5


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("interval(0.5,0.9)", FloatDistribution(0.5, 0.9)),
        ("int(interval(1,8))", IntDistribution(1, 8)),
        ("tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("range(2,11,3)", IntDistribution(2, 8, step=3)),
        ("range(0.5,1.0,0.25)", FloatDistribution(0.5, 0.75, step=0.25)),
        ("global,per_layer", CategoricalDistribution(["global", "per_layer"])),
        ("choice(1,2.5,true)", CategoricalDistribution([1, 2.5, True])),
    ],
)
def test_what_is_searched(written, expected):
    (override,) = OverridesParser.create().parse_overrides([f"x={written}"])
    assert distribution(override) == expected


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["seed=1"], {}, "nothing to search"),
        (["optimizer.lr=tag(log,interval(0.0,0.1))"], {}, "optimizer.lr: "),
        ([ALPHA], {"direction": "up"}, "choose maximize, minimize or null"),
        ([ALPHA], {"trials": 0}, "hydra.sweeper.trials is 0: choose 1 or more"),
        ([ALPHA], {"trials": None}, "hydra.sweeper.trials is None: choose 1 or more"),
        ([ALPHA], {"jobs": 0}, "hydra.sweeper.jobs is 0: choose 1 or more"),
        ([ALPHA, "pruner.name=seven_dym"], {}, "did you mean 'seven_dyn'"),
        ([ALPHA, "plugins=[nowhere.py]"], {}, "can't import 'nowhere.py'"),
        ([ALPHA, "dataset.validation=0"], {}, "dataset.validation is 0.0: trials are compared"),
    ],
)
def test_mistakes(tmp_path, arguments, settings, words):
    with pytest.raises(ConfigError, match=words):
        sweep(tmp_path, alpha, *arguments, **settings)


@pytest.mark.slow
def test_two_parameters_of_a_pruner_on_real_runs(tmp_path):
    done = train(
        tmp_path, "-m", "experiment=tune_seven", "hydra.sweeper.trials=3", "model=mlp",
        "model.widths=[8]", "trainer.max_steps=20", "model.pretrain.epochs=0",
        "tracker.mode=disabled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert [r["status"] for r in records] == ["finished"] * 3
    (path,) = tmp_path.rglob("optimization_results.yaml")
    best = yaml.safe_load(path.read_text())
    assert best["best_value"] == max(r["validation"]["accuracy"] for r in records)
    tried = {
        (p["alpha_1"], p["alpha_2"]): r["validation"]["accuracy"]
        for r in records
        for p in [r["config"]["pruner"]]
    }
    assert len(tried) == 3
    # A config keeps 15 digits of a number.
    found = {key: float(f"{value:.15g}") for key, value in best["best_params"].items()}
    assert tried[found["pruner.alpha_1"], found["pruner.alpha_2"]] == best["best_value"]
    assert math.isclose(best["best_value"], max(tried.values()))
    assert list(tmp_path.rglob("comparison.csv"))


@pytest.mark.slow
def test_a_criterion_of_ones_own_is_tuned(tmp_path):
    example = ROOT / "examples/own_criterion"
    own = ["--config-dir", str(example / "conf"), f"plugins=[{example / 'spread.py'}]"]
    small = ["model=mlp", "model.widths=[8]", "trainer.max_steps=20", "tracker.mode=disabled"]
    done = train(
        tmp_path, "-m", *own, "hydra/sweeper=optuna", "hydra.sweeper.trials=2", *small,
        "pruner=spread_dyn", "pruner.decay=interval(0.5,0.9)",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.rglob("results.json")]
    assert [r["pruner"] for r in records] == ["spread_dyn"] * 2
