"""Every file below conf/ composes, is valid, and has no key without an effect."""

import ast
import copy
import functools
import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel

from seven_exp import config as schema
from seven_exp.datasets import text_head
from seven_exp.models import MODELS
from seven_exp.pruning import PRUNERS, SCHEDULES
from seven_exp.runs import run_hash
from seven_exp.runs.check import check
from seven_exp.runs.dense_start import start_identity
from seven_exp.runs.identity import digest, run_identity

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"
GROUPS = [
    *("model", "dataset", "calibration", "pruner"),
    *("schedule", "optimizer", "trainer", "tracker"),
]


def composed(*overrides: str) -> schema.RunConfig:
    """As on the command line. What chooses among the files of conf/ is composed once."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    plainly = [
        o.type is OverrideType.CHANGE
        and not (CONF / o.key_or_group).is_dir()
        and not o.key_or_group.startswith("hydra.")
        for o in parsed
    ]
    chosen = tuple(given for given, plain in zip(overrides, plainly, strict=True) if not plain)
    values = copy.deepcopy(_composed(chosen))
    for override, plain in zip(parsed, plainly, strict=True):
        if plain:
            OmegaConf.update(values, override.key_or_group, override.value())
    return schema.parse(OmegaConf.to_container(values, resolve=True))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        values = compose("config", list(overrides), return_hydra_config=True)
        HydraConfig.instance().set_config(values)
        return OmegaConf.masked_copy(values, [key for key in values if key != "hydra"])


def test_values_are_merged_as_hydra_merges_them():
    given = ["pruner=seven_dyn", "sparsity=0.25", "pruner.alpha_1=0.5", "model.widths=[3,4]"]
    given += ["model=mlp", "pruner.include=['*mlp*', a]", "output_root='a b'", "seed=7"]
    merged = _composed(tuple(given))
    assert composed(*given) == schema.parse(OmegaConf.to_container(merged, resolve=True))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _keywords(model: str) -> set[str]:
    return set(inspect.signature(MODELS[model]).parameters) if model in MODELS else set()


def _partner(group: str, name: str) -> list[str]:
    """A data set for a model of text, and the other way round."""
    if group == "calibration":
        return ["model=gpt2", "dataset=lm/wikitext2", "pruner=wanda"]
    if group == "dataset" and text_head(name):
        return ["model=bert_base"]
    if group == "model" and "arch" in _keywords(name):
        return ["model.arch=resnet18"]
    if group == "model" and name not in MODELS:
        return ["dataset=lm/wikitext2", *(["model.name=ORG/NAME"] if name == "hf" else [])]
    if group == "model" and "vocab_size" in _keywords(name):
        return ["dataset=glue/sst2"]
    return []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group in GROUPS for name in choices(group)]
)
def test_every_choice_of_every_group(group, name, tmp_path, monkeypatch):
    monkeypatch.setattr("seven_exp.datasets.check_data", lambda name, **arguments: None)
    monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    monkeypatch.setattr("seven_exp.runs.check.check_calibration", lambda name, **arguments: None)
    both = [f"{group}={name}", *_partner(group, name)]
    config = composed(*both, f"cache_dir={tmp_path}")
    check(config)
    section = getattr(config, group)
    if (group, name) == ("calibration", "none"):
        assert section is None  # the batches of training
    elif group not in ("trainer", "tracker"):
        named = {"gradual": "cubic", "fine_tuning": "adamw"}.get(name, name)
        assert section.name == named or (group == "model" and "/" in section.name)


@pytest.mark.parametrize("name", choices("experiment"))
def test_every_preset(name, monkeypatch):
    monkeypatch.setattr("seven_exp.datasets.check_data", lambda name, **arguments: None)
    if name == "after_training":  # Its model is on the hub.
        monkeypatch.setattr("seven_exp.models.check_model", lambda name, head, **arguments: None)
    check(composed(f"experiment={name}"))


@pytest.mark.parametrize("name", choices("experiment/task"))
def test_every_task_has_a_leaderboard(name, monkeypatch):
    monkeypatch.setattr("seven_exp.datasets.check_data", lambda name, **arguments: None)
    config = composed("experiment=leaderboard", f"experiment/task={name}", "pruner=seven_dyn")
    check(config)
    assert config.dataset.name.endswith("cifar10" if name == "resnet20" else name)
    without_start = ("sst2", "resnet20")  # from the encoder; from scratch
    assert (config.model.pretrain.epochs > 0) == (name not in without_start)


def test_a_range_s_rounding_noise_makes_no_other_run():
    (noisy,) = (v for v in _range("sparsity=range(0.1,0.5,0.1)") if v.startswith("0.30"))
    assert noisy != "0.3"
    ranged, typed = composed(f"sparsity={noisy}"), composed("sparsity=0.3")
    assert ranged.sparsity == 0.3
    assert run_hash(ranged) == run_hash(typed)


def test_all_faults_of_a_config_are_said_at_once():
    with pytest.raises(schema.ConfigError) as said:
        composed("seed=-1", "trainer.batch_size=0", "schedule.interval=1.5", "+pruner.x=1")
    assert [fault.partition(" is ")[0] for fault in said.value.args] == [
        "seed",
        "schedule.interval",
        "trainer.batch_size",
    ]
    assert str(said.value) == "; ".join(said.value.args)
    with pytest.raises(schema.ConfigError) as said:
        check(
            composed(
                *("+pruner.alpa_1=1", "pruner.alpha_2=no", "pruner.pattern=3:2", "model.depth=x"),
                *("+optimizer.momentum=0.9", "trainer.distill=0.5", "schedule.begin_step=10000000"),
            )
        )
    pruner, alpha, pattern, model, optimizer, teacher, window, *others = said.value.args
    assert pruner == "pruner.alpa_1: seven_dyn has no such key: did you mean 'alpha_1'?"
    assert alpha.startswith("pruner.alpha_2 is 'no'")
    assert "3:2" in pattern
    assert model.startswith("model.depth is 'x'")
    assert optimizer.startswith("optimizer.momentum: adamw has no such key")
    assert teacher.startswith("trainer.distill is 0.5: the teacher would be untrained")
    assert window.startswith("schedule.begin_step is 10000000")
    assert not others


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["pruner=seven_dyn", "pruner.scope=owl"], "scope 'owl' .* prunes during training"),
        (["pruner=magnitude", "pruner.scope=owl"], "scope 'owl' .* magnitude does not read"),
        (["pruner=wanda", "pruner.scope=alpha", "pruner.levels=2"], "once, but rounds is 2"),
        (["pruner=dsnot", "pruner.pattern=rows"], "dsnot exchanges single weights"),
        (["pruner=set", "pruner.pattern=coupled"], "weights return from zero, but a unit of"),
        (["pruner=dsnot", "pruner.start=snip"], r"pruner\.start is 'snip': choose a pruner that"),
    ],
)
def test_what_a_method_can_t_do_is_said_before_anything_is_loaded(overrides, words):
    with pytest.raises(schema.ConfigError, match=words) as said:
        check(composed(*overrides))
    assert len(said.value.args) == 1


def _range(override: str) -> list[str]:
    return list(OverridesParser.create().parse_override(override).sweep_string_iterator())


def test_every_registered_pruner_and_schedule_has_its_file():
    assert set(SCHEDULES) <= set(choices("schedule"))
    assert set(choices("pruner")) >= set(PRUNERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("pruner"))
def test_a_pruner_brings_its_own_schedule_and_the_user_can_choose_another(name):
    assert composed(f"pruner={name}").schedule.name == PRUNERS[name].schedule
    assert composed(f"pruner={name}", "schedule=cosine").schedule.name == "cosine"


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("pruner"))
def test_files_and_signatures_agree_on_defaults(name):
    """A criterion behaves the same from Python and from the command line, except for the seed."""
    given = composed(f"pruner={name}", "seed=0").pruner.arguments
    parameters = inspect.signature(PRUNERS[name].make).parameters
    expected = {key: p.default for key, p in parameters.items()}
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()} == expected


def test_no_key_is_read_by_nobody():
    """Every field of the schema is an attribute that some code of the package asks for."""
    sources = (ROOT / "seven_exp").rglob("*.py")
    read = {
        node.attr
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    read.update(re.findall(r"\$\{(\w+)\}", (CONF / "config.yaml").read_text()))
    sections = [schema.RunConfig, *(f.annotation for f in schema.RunConfig.model_fields.values())]
    for section in sections:
        for key in getattr(section, "model_fields", {}):
            assert key in read, f"{section.__name__}.{key} has no effect"


def sections(model, prefix=""):
    """Dotted prefix and schema of each section, also of sections in sections."""
    yield prefix, model
    for name, field in model.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{prefix}{name}.")


NEUTRAL = {
    f"{prefix}{key}": field.default
    for prefix, section in sections(schema.RunConfig)
    if section is not schema.Tracker  # no part of a run at any value
    for key, field in section.model_fields.items()
    if not field.is_required()
}
"""Keys with a default in the schema, at which they have no effect."""


def test_a_key_that_has_no_effect_at_its_value_is_no_part_of_a_run():
    config = composed("model.pretrain.epochs=1")
    for key, default in NEUTRAL.items():
        *path, last = key.split(".")
        value, identity = config, run_identity(config)
        for part in path:
            # A section whose keys are all at their defaults is left out, too.
            value = getattr(value, part)
            identity = {} if part in NEUTRAL else identity[part]
        assert getattr(value, last) == default, key
        assert last not in identity
        if len(path) == 1 and path[0] in (start := start_identity(config)):
            assert last not in start[path[0]]


def test_compare_is_three_pruners_three_sparsities_three_seeds():
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        values = compose("config", ["experiment=compare"], return_hydra_config=True)
    assert {key: len(v.split(",")) for key, v in values.hydra.sweeper.params.items()} == {
        "pruner": 3,
        "sparsity": 3,
        "seed": 3,
    }


@pytest.mark.parametrize("name", [n for n in choices("experiment") if "leaderboard" in n])
def test_leaderboards_have_a_start_per_seed_that_all_methods_share(name):
    def start(*overrides):
        config = composed(f"experiment={name}", *overrides)
        assert config.dataset.validation == 0.1
        return digest(start_identity(config))

    one = start("seed=3", "pruner=seven_dyn")
    assert one == start("seed=3", "pruner=magnitude", "sparsity=0.5")
    assert one != start("seed=4", "pruner=seven_dyn")
    # the old way
    assert len({start(f"seed={seed}", "model.pretrain.seed=0") for seed in (3, 4)}) == 1


def test_seed_presets_are_the_recipes():
    pre, dyn = composed("experiment=seed_pre"), composed("experiment=seed_dyn")
    for config in (pre, dyn):
        assert config.model.name == "resnet50"
        assert config.model.arguments["pretrained"] is True
        assert config.pruner.scope == "per_layer"
        assert config.trainer.grad_clip is not None
    assert pre.pruner.name == "magnitude_pre"
    assert dyn.pruner.name == "magnitude_dyn"
    assert (dyn.schedule.name, dyn.schedule.interval) == ("linear", 100)
    assert dyn.schedule.levels == dyn.trainer.epochs
    assert composed("experiment=seed_dyn", "trainer.epochs=7").schedule.levels == 7
