"""Plugins: imported however they are named, and part of the identity of what they serve."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from preloaded import python
from test_conf import composed

from seven_exp import runs
from seven_exp.config import ConfigError
from seven_exp.pruning.schedules import SCHEDULES
from seven_exp.runs.check import check
from seven_exp.runs.dense_start import start_identity
from seven_exp.runs.identity import START, plugins_identity
from seven_exp.runs.plugins import load_plugins
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord

ROOT = Path(__file__).parent.parent

PRUNER = """
from seven_exp.pruning import register
from seven_exp.pruning.criteria.magnitude import Magnitude

register("own_pruner", when="during")(Magnitude)  # a name of its own for what is there
"""

DEMANDING = """
from seven_exp.pruning import Score, register

@register("own_demanding", when="after", schedule="one_shot")
class Demanding(Score):
    def __init__(self, *, power: float) -> None:
        self.power = power

    def score(self, state, weights):
        return [weight.detach().abs() ** self.power for weight in weights]
"""

SCHEDULE = """
from seven_exp.pruning.schedules import SCHEDULES

@SCHEDULES.register("own_schedule")
def own_schedule(progress, sparsity):
    return sparsity * progress
"""

LR_SCHEDULE = """
from seven_exp.training.lr_schedules import LR_SCHEDULES

@LR_SCHEDULES.register("own_lr_schedule")
def own_lr_schedule(step, steps, warmup):
    return 0.5
"""

METRIC = """
from seven_exp.tasks import METRICS

@METRICS.register("own_metric")
def own_metric(predicted, targets):
    return 0.5
"""

MODEL = """
from torch import nn
from seven_exp.models import MODELS

@MODELS.register("own_model")
def own_model(num_classes: int, image_size: int, channels: int) -> nn.Module:
    size = channels * image_size**2
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, num_classes)
    )
"""

DATA = """
from pathlib import Path
import torch
from own_names import NAME
from seven_exp.datasets import Data
from seven_exp.datasets.batches import InMemory
from seven_exp.datasets.registry import dataset

@dataset(NAME)
def own_data(*, batch_size: int, seed: int, data_dir: str) -> Data:
    pixels = Path(data_dir, "pixels").read_bytes()
    images = torch.tensor(list(pixels), dtype=torch.uint8).view(-1, 1, 2, 2)
    labels = torch.arange(len(images)) % 2
    train, test = (
        InMemory(images, labels, (0.5,), (0.5,), batch_size, of) for of in (seed, None)
    )
    return Data(train, test, 2, 2, 1)
"""


@pytest.fixture(autouse=True)
def _folder_of_its_own(monkeypatch, tmp_path):
    """Every test begins in a folder of its own, from which modules are imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def edited(plugin: Path) -> None:
    plugin.write_text(plugin.read_text() + "# edited\n")


def plugin(name: str, text: str) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def identity(plugins: str, *overrides: str) -> str:
    return runs.run_hash(composed("model=mlp", f"plugins={plugins.split(',')}", *overrides))


def identity_without(*overrides: str) -> str:
    return runs.run_hash(composed("model=mlp", *overrides))


def own_model(*overrides: str):
    """A config with the plugin's model, which has no file in ``conf``."""
    config = composed(
        *("model=mlp", "tracker.mode=disabled", "trainer.max_steps=2", "cache_dir=cache"),
        *("plugins=[own.py]", *overrides),
    )
    model = config.model.model_copy(update={"name": "own_model"})
    model.model_extra.clear()
    return config.model_copy(update={"model": model})


@pytest.mark.parametrize(
    ("named", "file"),
    [
        ("own.py", "own.py"),
        ("~/own.py", "home/own.py"),
        ("own_module", "own_module.py"),
        ("own_package", "own_package/__init__.py"),
        ("own_package", "own_package/below/more.py"),
        ("own_package.below", "own_package/below/__init__.py"),
    ],
)
def test_a_plugin_is_known_by_its_content_however_it_is_named(monkeypatch, named, file):
    monkeypatch.setenv("HOME", str(Path("home").absolute()))
    if "/" in file:
        plugin("own_package/__init__.py", "")
        plugin("own_package/below/__init__.py", "")
    path = plugin(file, "x = 1\n")
    before = identity(named)
    assert identity(named) == before != identity_without()
    edited(path)
    assert identity(named) != before


@pytest.mark.parametrize(
    ("text", "line"),
    [("x = 1\n\ny = x / 0\n", "faulty.py', line 3: division by zero"), ("x = (\n", "line 1")],
)
def test_a_fault_of_a_plugin_names_its_line(text, line, tmp_path):
    (tmp_path / "faulty.py").write_text(text)
    with pytest.raises(ConfigError, match=line):
        load_plugins([str(tmp_path / "faulty.py")])


def test_a_yaml_whose_name_nothing_has_registered_needs_a_plugin():
    hint = r"unknown pruner 'spread': .* \(a name of your own needs plugins=\[FILE\]\)"
    with pytest.raises(ConfigError, match=hint):
        check(composed("pruner.name=spread"))


def test_where_a_plugin_lies_is_nothing():
    plugin("own.py", SCHEDULE)
    before = identity("own.py", "schedule.name=own_schedule")
    Path("own.py").rename("own_module.py")
    SCHEDULES._entries.pop("own_schedule")
    assert identity("own_module", "schedule.name=own_schedule") == before


WITHOUT_SEVEN = ("~pruner.alpha_1", "~pruner.alpha_2", "~pruner.moments")


@pytest.mark.parametrize(
    ("text", "overrides", "counts"),
    [
        (SCHEDULE, [], False),
        (SCHEDULE, ["schedule.name=own_schedule"], True),
        (SCHEDULE, ["schedule.name=own_schedule", "pruner=dense"], False),
        (LR_SCHEDULE, [], False),
        (LR_SCHEDULE, ["optimizer.lr_schedule=own_lr_schedule", "pruner=dense"], True),
        (METRIC, [], False),
        (METRIC, ["dataset.metrics=[own_metric]", "pruner=dense"], True),
        (PRUNER, [], False),
        (PRUNER, ["pruner.name=own_pruner", *WITHOUT_SEVEN], True),
        # what it does can't be seen
        ("import torch\n", [], True),
        ("import torch\n", ["pruner=dense"], True),
    ],
)
def test_a_plugin_counts_where_something_of_it_is_used(text, overrides, counts):
    path = plugin("own.py", text)
    before = identity("own.py", *overrides)
    edited(path)
    assert (identity("own.py", *overrides) != before) is counts
    if not counts:
        assert before == identity_without(*[o for o in overrides if "own" not in o])


def test_each_plugin_counts_for_itself():
    used, other = plugin("own_used.py", SCHEDULE), plugin("own_other.py", PRUNER)
    both = "own_used.py,own_other.py", "schedule.name=own_schedule"
    before = identity(*both)
    edited(other)
    assert identity(*both) == before
    edited(used)
    assert identity(*both) != before


def test_a_home_folder_is_found_when_importing_too(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    plugin("home/own.py", SCHEDULE)
    load_plugins(["~/own.py"])
    assert "own_schedule" in SCHEDULES


def test_another_model_of_a_plugin_has_another_dense_start():
    path = plugin("own.py", MODEL)

    load_plugins(["own.py"])

    def starts() -> int:
        run_experiment(own_model("model.pretrain.epochs=1"), Path("run"), LocalRecord())
        return len(list(Path("cache/pretrained").glob("*.safetensors")))

    assert starts() == 1
    path.write_text(MODEL.replace("ReLU", "Tanh"))
    assert starts() == 2


def test_a_metric_is_no_part_of_a_dense_start():
    plugin("own.py", METRIC)
    plain, measured = (
        composed("model.pretrain.epochs=1", "plugins=[own.py]", *more)
        for more in ([], ["dataset.metrics=[own_metric]"])
    )
    assert start_identity(measured) == start_identity(plain)


def test_a_hyperparameter_without_default_is_given_on_the_command_line():
    plugin("own.py", DEMANDING)
    load_plugins(["own.py"])
    config = composed(
        *("plugins=[own.py]", "model=mlp", "trainer.max_steps=2", "trainer.batch_size=4"),
        *("pruner=magnitude", "pruner.name=own_demanding", "+pruner.power=2.0", "sparsity=0.5"),
    )
    run_experiment(config, Path("run"), LocalRecord())
    assert json.loads(Path("run/results.json").read_text())["sparsity"] == pytest.approx(0.5, 1e-3)


def test_a_start_that_no_plugin_has_a_part_in_keeps_its_name():
    plugin("own.py", PRUNER)
    config = composed("model=mlp", "plugins=[own.py]")
    assert plugins_identity(config, *START) == []


@pytest.fixture
def run_with_relative_paths(tmp_path, monkeypatch):
    """A finished run, started in a folder ``started``; then we are in another one."""
    (tmp_path / "started").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "started")
    monkeypatch.syspath_prepend(tmp_path / "started")
    plugin("own.py", DATA)
    plugin("own_names.py", 'NAME = "own_data"\n')
    plugin("data/pixels", "".join(map(chr, range(80))))
    load_plugins(["own.py"])
    config = composed(
        *("model=mlp", "tracker.mode=disabled", "trainer.max_steps=2", "trainer.batch_size=4"),
        "plugins=[own.py]",
    )
    dataset = config.dataset.model_construct(name="own_data", data_dir="data", validation=None)
    run_experiment(config.model_copy(update={"dataset": dataset}), tmp_path / "run", LocalRecord())
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "run"


def exported(run: Path) -> subprocess.CompletedProcess[str]:
    command = [python(), "-m", "seven_exp", "export", str(run), "--format", "dense", "--plugins"]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def test_a_run_with_relative_paths_is_exported_from_anywhere(run_with_relative_paths, tmp_path):
    assert exported(run_with_relative_paths).returncode == 0
    # Once the data are gone from there, the line says where they were looked for.
    (tmp_path / "started/data").rename(tmp_path / "started/other")
    found = exported(run_with_relative_paths)
    assert found.returncode == 2
    assert found.stderr.endswith(
        f"(relative to '{tmp_path / 'started'}' where the run was started: data)\n"
    )
    assert found.stderr.count("\n") == 1
    # What is found from here comes first.
    (tmp_path / "started/other").rename(tmp_path / "elsewhere/data")
    assert exported(run_with_relative_paths).returncode == 0


def test_a_record_that_does_not_say_where_it_was_started_costs_one_line(run_with_relative_paths):
    path = run_with_relative_paths / "results.json"
    record = json.loads(path.read_text())
    del record["directory"]
    path.write_text(json.dumps(record))
    found = exported(run_with_relative_paths)
    assert found.returncode == 2
    assert "(relative to the folder where the run was started: own.py, data)" in found.stderr
