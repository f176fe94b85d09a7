"""A record's command composes the same run again, and repeating it gives the same figures."""

import json
import shlex
import shutil
import sys
from importlib import metadata

import pytest
from omegaconf import OmegaConf
from test_conf import CONF, composed

from seven_exp.cli.main import TOOLS
from seven_exp.cli.recorded import arguments, lost, spelled
from seven_exp.cli.recorded import composed as recomposed
from seven_exp.cli.reproduce import main
from seven_exp.runs.identity import run_hash
from seven_exp.runs.reproduction import changes, figures, verdict

PARTIAL = {"model": {"name": "mlp"}, "dataset": {}, "trainer": {}, "plugins": [], "seed": 0}
GONE = {
    **{"name": "image_folder", "data_dir": "gone", "image_size": 8, "augment": False},
    "cache_dir": "cache",
}


@pytest.fixture
def finished(finished_run, tmp_path, monkeypatch):
    """A copy of a finished run, below the present folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(finished_run("unstructured"), tmp_path / "run")


def record_of(folder):
    return json.loads((folder / "results.json").read_text())


def rewrite(folder, **changes):
    record = record_of(folder) | changes
    (folder / "results.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    "overrides",
    [
        ["pruner=imp", "seed=3", "optimizer=sgd", "optimizer.lr=1e-05", "tracker.mode=offline",
         "pruner.sparsities={encoder.*: 0.5, head: 0.0}", "threads=1", "run.keep=7"],
        ["trainer=short", "model=mlp", "model.widths=[30,10]", "dataset=fashion_mnist",
         "pruner.include=['*mlp*']", "pruner.exclude=[]", "analysis.every=5"],
        ["model=minilm", "dataset=glue/sst2", "dataset.data_dir='a folder/with, all: its'"],
        ["experiment=leaderboard", "pruner=rigl", "trainer.max_steps=12"],
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_any_config_composes_again_from_its_record(overrides):
    config = composed(*overrides)
    recorded = json.loads(json.dumps(config.model_dump()))
    again = recomposed(arguments(recorded, CONF), CONF)
    assert lost(recorded, again.model_dump()) == []
    excluded = {"compare", "tracker", "run", "output_root", "cache_dir"}
    assert again.model_dump(exclude=excluded) == config.model_dump(exclude=excluded)
    if config.model.name not in ("minilm",):
        assert run_hash(again) == run_hash(config)


@pytest.mark.parametrize(
    "value",
    ["a b", "it's", "a\\", "true", "", "1e-3", "~/x", "a=b,c", [1, 0.5, None, True], {"a": "b c"}],
)
def test_values_keep_their_meaning(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (parsed,) = OverridesParser.create().parse_overrides([f"key={spelled(value)}"])
    assert OmegaConf.to_container(OmegaConf.create({"x": parsed.value()}))["x"] == value


def test_a_key_that_is_unknown_today_is_named():
    recorded = composed().model_dump()
    recorded["pruner"]["from_another_time"] = 3
    del recorded["pruner"]["alpha_1"]
    words = arguments(recorded, CONF)
    assert "+pruner.from_another_time=3" in words
    assert "~pruner.alpha_1" in words
    # a key of the schema that an older record lacks keeps its default
    older = composed().model_dump()
    del older["pruner"]["misfits"], older["compare"]
    assert arguments(older, CONF) == arguments(composed().model_dump(), CONF)
    assert lost({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}}) == ["a.c"]


def test_the_command_of_a_run_is_printed(finished, capsys):
    assert main([str(finished)]) == 0
    printed = capsys.readouterr().out.splitlines()
    (line,) = [line for line in printed if line.startswith("seven-exp train ")]
    record = record_of(finished)
    config = recomposed(shlex.split(line)[2:], CONF)
    assert run_hash(config) == record["run_hash"]
    assert f"# the same run hash, {record['run_hash']}" in printed
    assert f"# it was: {record['command']}" in printed
    assert "reproduce" in TOOLS


def test_the_runs_of_a_row_are_printed(finished, capsys):
    record = record_of(finished)
    row = f"{record['pruner']} {100 * record['sparsity_target']:g}%"
    assert main([str(finished.parent), "--row", row]) == 0
    assert f"# it was: {record['command']}" in capsys.readouterr().out
    assert main([str(finished.parent), "--row", row.replace("%", "1%")]) == 2
    assert f"did you mean '{row}'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_repeated_run_gives_the_same_bits(finished, tmp_path, capsys):
    assert main([str(finished), "--run", "--output", str(tmp_path / "again")]) == 0
    printed = capsys.readouterr().out
    assert "reproduced: every figure is the same (masks identical, weights identical)" in printed
    again = record_of(tmp_path / "again" / "run")
    assert again["metrics"] == record_of(finished)["metrics"]
    assert again["run_hash"] == record_of(finished)["run_hash"]
    # the folder of an earlier repetition is not overwritten
    assert main([str(finished), "--run", "--output", str(tmp_path / "again")]) == 2
    assert "choose another --output" in capsys.readouterr().err


def test_other_figures_and_versions_are_told(finished, tmp_path, capsys):
    record = record_of(finished)
    rewrite(
        finished,
        metrics=record["metrics"] | {"accuracy": 2.0},
        versions=record["versions"] | {"torch": "1.0"},
        processor="an abacus",
        git="0" * 40 + "+dirty",
    )
    assert main([str(finished), "--run"]) == 1
    printed = capsys.readouterr().out
    assert "# version of torch: 1.0 then, " in printed
    assert "# processor: an abacus then, " in printed
    assert "files differed from the commit" in printed
    assert "not reproduced to the bit: accuracy differ" in printed
    accuracy = record["metrics"]["accuracy"]
    assert f"{accuracy - 2:.9g}" in printed
    assert (tmp_path / "reproduced" / "run" / "results.json").is_file()


def test_verdicts():
    then = {"metrics": {"loss": 1.0}, "sparsity": 0.5, "params_nonzero": 7}
    same = figures(then, then)
    assert [(f.name, f.difference) for f in same] == [
        ("loss", 0.0), ("sparsity", 0.0), ("params_nonzero", 0),
    ]  # fmt: skip
    assert "every figure is the same (no masks or weights to compare)" in verdict(same, {})
    other = verdict(same, {"masks": False, "weights": True})
    assert other.endswith("the same figures, but masks different, weights identical")
    without = figures(then, then | {"metrics": {"f1": 0.5}})
    assert "not reproduced to the bit: loss, f1 differ" in verdict(without, {})
    assert changes({}, "cpu") == []


def test_a_library_that_is_not_imported_is_not_gone(monkeypatch):
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    version = metadata.version("transformers")
    assert changes({"versions": {"transformers": version}}, "cpu") == []
    assert changes({"versions": {"transformers": "0.1"}}, "cpu") == [
        f"version of transformers: 0.1 then, {version} now"
    ]


def test_code_that_a_record_names_is_not_run_unasked(finished, tmp_path, capsys):
    plugin = tmp_path / "mine.py"
    plugin.write_text("raise SystemExit('ran')\n")
    config = record_of(finished)["config"] | {"plugins": [str(plugin)]}
    rewrite(finished, config=config)
    assert main([str(finished)]) == 0
    assert "it runs code, so the hash is not checked here" in capsys.readouterr().out
    assert main([str(finished), "--run"]) == 2
    assert "read it, then pass --plugins" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no folder 'run'"),
        (lambda folder: (folder / "results.json").unlink(), "has no results.json"),
        (lambda folder: rewrite(folder, status="failed"), "failed, not finished"),
        (lambda folder: rewrite(folder, config=PARTIAL), "does not hold the whole config"),
        (
            lambda folder: rewrite(
                folder,
                config=record_of(folder)["config"] | {"dataset": GONE},
            ),
            "gone",
        ),
    ],
)
def test_mistakes_are_one_line(finished, capsys, break_it, words):
    break_it(finished)
    assert main(["run", "--run"]) == 2
    captured = capsys.readouterr().err
    assert words in captured
    assert captured.count("\n") == 1
