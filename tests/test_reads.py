"""A key that a run never reads does not distinguish runs, and a key that it reads does."""

from functools import cache
from pathlib import Path

import pytest
from test_conf import choices, composed

from seven_exp import runs
from seven_exp.compare.records import read_runs
from seven_exp.compare.summary import summarize
from seven_exp.config import RunConfig
from seven_exp.runs.identity import run_identity
from seven_exp.runs.reads import READ_BY, Pruning
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import LocalRecord

SMALL = [
    *("trainer.max_steps=12", "trainer.batch_size=32", "trainer.eval_interval=6"),
    *("trainer.log_interval=1", "run.checkpoint_interval=0", "tracker.mode=disabled"),
    *("sparsity=0.5", "threads=1"),
]
MODEL = ("model=mlp", "model.widths=[8]")
TRANSFORMER = ("model.depth=2", "model.width=16", "model.mlp_width=16", "model.heads=2")
"""For pruners of heads and blocks."""

OTHER = {
    "schedule.name": "cosine",
    "schedule.begin_step": 0.3,
    "schedule.end_step": 0.9,
    "schedule.interval": 3,
    "schedule.levels": 2,
    "pruner.rounds": 3,
    "pruner.batches_per_round": 7,
    "pruner.finetune_steps": 0.5,
    "pruner.levels": 2,
    "pruner.rewind": "weights",
    "trainer.epochs": 1,
    "trainer.distill_temperature": 3.0,
    "model.pretrain.lr": 0.01,
    "model.pretrain.seed": 5,
}
"""A value of each key that no preset has."""

REFUSED = {
    "before": {"pruner.levels", "pruner.rewind"},
    "during": {"pruner.rounds", "pruner.levels", "pruner.rewind"},
    "after": set(),
}
"""Keys that are errors if a method would not read them, so no sweep can contain them."""

IN_ROUNDS = (
    "seven_pre",
    "taylor_pre",
    "synflow",
    "snip_iterative",
    "force",
    "obert_pre",
    "sensitivity_pre",
)
"""Pruners that choose masks several times before training."""


def test_a_value_is_tried_of_every_key():
    assert OTHER.keys() == READ_BY.keys() - {"pruner.name"}


@cache
def base(name: str, *overrides: str) -> RunConfig:
    own = ("pruner.rounds=2",) if name in IN_ROUNDS else ()
    own = ("pruner.rewind=lr",) if name == "imp" else own
    own = ("pruner.pattern=heads", "pruner.include=[*attention*]") if name == "flap" else own
    model = TRANSFORMER if name in ("flap", "short_gpt") else MODEL
    return composed(*model, *SMALL, f"pruner={name}", *own, *overrides)


def changed(config: RunConfig, *keys: str) -> RunConfig:
    values = config.model_dump()
    for key in keys:
        *path, last = key.split(".")
        section = values
        for part in path:
            section = section[part]
        assert section[last] != OTHER[key]
        section[last] = OTHER[key]
    return RunConfig.model_validate(values)


def left_by(config: RunConfig, folder: Path) -> dict[str, object]:
    """Everything that a comparison reads of a run, except times, and its weights."""
    record = run_experiment(config, folder, LocalRecord())
    kept = ("run_hash", "sparsity", "schedule", "layers", "metrics", "best", "levels", "steps")
    masks = runs.load_masks(folder / "masks.safetensors")
    return {
        **{key: record[key] for key in kept},
        "masks": {name: mask.tolist() for name, mask in masks.items()},
        "figures": (folder / "metrics.jsonl").read_text(),
        "weights": (folder / "checkpoints/final.safetensors").read_bytes(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("pruner"))
def test_the_hash_changes_where_a_key_is_read_and_nowhere_else(name):
    """Most of it follows from when a pruner acts."""
    config = base(name)
    when = "never" if name == "dense" else Pruning.of(config).when
    weights_alone = ("magnitude", "magnitude_pre", "imp", "lamp", "lamp_pre", "random")
    expected = dict.fromkeys(OTHER, False) | {
        **dict.fromkeys([k for k in OTHER if k.startswith("schedule.")], when == "during"),
        "pruner.rounds": when in ("before", "after"),
        "pruner.batches_per_round": when in ("before", "after") and name not in weights_alone,
        "pruner.finetune_steps": when == "after",
        "pruner.levels": when == "after",
        # Without pruning, the training is still rewound.
        "pruner.rewind": when in ("after", "never"),
    }
    if name in (*IN_ROUNDS, "imp"):
        expected["schedule.name"] = True
    plain, valid = runs.run_hash(config), OTHER.keys() - REFUSED[Pruning.of(config).when]
    found = {key: runs.run_hash(changed(config, key)) != plain for key in valid}
    assert found == {key: expected[key] for key in valid}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        *((name, ()) for name in choices("pruner")),
        *((name, ("sparsity=0",)) for name in ("seven_dyn", "snip", "magnitude", "rigl")),
    ],
)
def test_what_is_not_read_changes_no_bit(tmp_path, name, overrides):
    config = base(name, *overrides)
    pruning = Pruning.of(config)
    ignored = {key for key, reads in READ_BY.items() if not reads(pruning)} - REFUSED[pruning.when]
    assert len(ignored) >= 5
    one = left_by(config, tmp_path / "one")
    assert left_by(changed(config, *ignored), tmp_path / "other") == one


@pytest.mark.parametrize(
    ("name", "overrides", "keys"),
    [
        ("seven_dyn", (), [key for key in OTHER if key.startswith("schedule.")]),
        ("seven_pre", (), ["schedule.name", "pruner.rounds", "pruner.batches_per_round"]),
        (
            "taylor_pre",
            ("pruner.when=after", "schedule=linear"),
            [key for key in OTHER if key.startswith("pruner.")],
        ),
        ("dense", ("pruner.finetune_steps=0.4",), ["pruner.rewind"]),
        (
            "magnitude",
            ("model.pretrain.epochs=1", "trainer.distill=0.5"),
            ["trainer.distill_temperature", "model.pretrain.lr", "model.pretrain.seed"],
        ),
        ("magnitude", ("trainer.max_steps=null", "trainer.epochs=2"), ["trainer.epochs"]),
    ],
)
def test_what_is_read_changes_the_run(tmp_path, name, overrides, keys):
    config = base(name, *overrides, f"cache_dir={tmp_path / 'cache'}")
    one = left_by(config, tmp_path / "one")
    for key in keys:
        other = left_by(changed(config, key), tmp_path / key)
        differing = {what for what in one if one[what] != other[what]}
        assert "run_hash" in differing, key
        assert differing & {"figures", "weights"}, key


@pytest.mark.parametrize(
    ("name", "key", "meant"),
    [
        ("fisher_pre", "when", "before"),
        ("fisher_pre", "rounds", 1),
        ("fisher_pre", "scope", "global"),
        ("seven_pre", "batches_per_round", 1),
    ],
)
def test_a_default_that_is_spelled_out_is_the_same_run(name, key, meant):
    config = base(name)
    assert getattr(config.pruner, key) is None
    assert runs.run_hash(base(name, f"pruner.{key}={meant}")) == runs.run_hash(config)


def test_runs_that_differ_in_what_they_never_read_are_one_row(tmp_path):
    for seed, key in enumerate(("schedule.end_step", "trainer.distill_temperature")):
        config = changed(base("magnitude"), key).model_copy(update={"seed": seed})
        run_experiment(config, tmp_path / str(seed), LocalRecord())
    (row,) = summarize(read_runs([tmp_path])[0], "accuracy", None)[0]
    assert (row.method, row.result.n) == ("magnitude", 2)


@pytest.mark.slow
def test_a_correction_repeats_the_runs_that_it_changed_and_no_others():
    def version(pruner, precision, *more):
        given = [f"trainer.precision={precision}", "sparsity=0.5", *more]
        return run_identity(composed(f"pruner={pruner}", *given))["version"]

    unchanged = version("magnitude", "fp32")
    assert version("sparsegpt", "fp32") == unchanged != version("sparsegpt", "bf16")
    for pruner in ("seven_dyn", "magnitude", "dense"):
        assert version(pruner, "bf16") == version(pruner, "fp32") == unchanged
    assert version("wanda", "fp32") != unchanged
    assert version("wanda", "fp32", "pruner.scope=per_layer") == unchanged
    assert version("magnitude", "fp32", "pruner.scope=per_row") == version("wanda", "fp32")
    assert version("dsnot", "fp32") != version("wanda", "fp32")
    assert version("dsnot", "fp32", "pruner.everywhere=true") == version("wanda", "fp32")
    for pruner in ("obert", "lamp_dyn"):
        assert version(pruner, "fp32") != unchanged
    assert version("soft_movement", "fp32", "pruner.scope=per_layer") != unchanged
    assert version("rigl", "fp32", "pruner.pattern=rows") != unchanged
    assert version("magnitude_dyn", "fp32", "pruner.pattern=rows") == unchanged
    for pruner in ("obert_pre", "lamp", "magnitude_dyn", "soft_movement", "rigl"):
        assert version(pruner, "fp32") == unchanged
