"""Random command lines: any value for any key is valid, or causes one line of error."""

import copy
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from seven_exp.cli import train as command
from seven_exp.config import ConfigError

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"

VALUES = [
    *("null", "true", "false", "0", "1", "-1", "3", "64.0", "0.5", "-0.5", "1.0", "-0.0", "1e-3"),
    *("1e-320", "1e300", "-1e300", "1e400", "nan", "inf", "-inf", "0x10", "1_000", "'1e-3'", "'1'"),
    *(str(10**9), str(2**31), str(2**32), str(2**63), str(2**64), str(-(2**63) - 1), "9" * 400),
    *("abc", "", "''", "' '", "'a b'", "' \t'", "'a\nb'", "'\u2028'", "é", "'日本 ±'", "a" * 3000),
    *("[]", "[1]", "[a,b]", "[null]", "[[1,2],[3]]", "[true]", "[0.9,0.999]", "[nan]", "[-1]"),
    *("{}", "{a:1}", "{name:x}", "{name:null}", "{a:{b:[1]}}", "{1:2}", "{mlp:0.5}", "{mlp:true}"),
    *("${seed}", "${pruner}", "${model.name}", "${.name}", "${x}", "'${x'", "${oc.env:NO_SUCH}"),
    *("${no_such:1}", "${sparsity}", "???", "'???'", "$", "'{}{'", "'%s'", "'\\\\'", "'it\\'s'"),
    *("a=b", "a:b", "a/b", "/", "..", "~", "~/x", "*", "'['", "'[a'", "'(?P<'", "a,b", "'a,b'"),
    *("int(3)", "int(abc)", "str(3)", "float(1)", "bool(1)", "range(0,3)", "choice(1,2)"),
    *("2:4", "0:0", "4:2", "1x1", "0x0", "99999:1", "rows", "heads", "cpu", "cuda:0"),
    *("cuda:" + "9" * 30, "digits", "seven_dyn", "cubic", "online", "before", "cosine"),
]  # fmt: skip


@pytest.fixture(scope="module")
def base() -> DictConfig:
    """The default config, and an own sparsity for some layers."""
    with initialize_config_dir(str(CONF), version_base="1.3", job_name="train"):
        values = compose("config", ["pruner.sparsities={mlp:0.5}"])
    assert isinstance(values, DictConfig)
    return values


def keys_of(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every key, those of groups too."""
    for key in node:
        yield f"{prefix}{key}"
        inner = node._get_node(key)
        if isinstance(inner, DictConfig) and not inner._is_none():
            yield from keys_of(inner, f"{prefix}{key}.")


def arguments(draw: random.Random, keys: list[str]) -> Iterator[str]:
    """What a user may write, mostly one value."""
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        key, value = draw.choice(keys), draw.choice(VALUES)
        written = [f"{key}={value}"] * 8
        yield draw.choice([*written, f"~{key}", f"+{key}={value}", f"+{key}.x={value}"])


def checked(base: DictConfig, written: list[str]) -> None:
    """Apply the overrides as Hydra does to a composed config, and then check the config."""
    overrides = OverridesParser.create().parse_overrides(written)
    # Copied is only what changes: the rest takes most of the time.
    roots = {override.key_or_group.partition(".")[0] for override in overrides}
    kept = {root: base._content.get(root) for root in roots}  # type: ignore[union-attr]
    for root in roots & set(base):
        base._content[root] = copy.deepcopy(kept[root])  # type: ignore[index]
    try:
        ConfigLoaderImpl._apply_overrides_to_config(overrides, base)
        command.checked(base)
    finally:
        for root, node in kept.items():
            base._content.pop(root, None)  # type: ignore[union-attr]
            if node is not None:
                base._content[root] = node  # type: ignore[index]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_config_is_valid_or_its_fault_is_one_line(base, seed):
    draw = random.Random(seed)
    OmegaConf.set_struct(base, True)
    keys = list(keys_of(base))
    valid = 0
    for _ in range(500):
        written = list(arguments(draw, keys))
        try:
            checked(base, written)
            valid += 1
        except (ConfigError, HydraException, OmegaConfBaseException) as fault:
            line = command.explain(fault)
            assert line.strip(), written
            assert "Traceback" not in line, written
        except Exception as error:
            raise AssertionError(f"{written}: {error!r}") from error
    # Not everything is refused.
    assert valid > 10


GROUPS = ["model", "dataset", "pruner", "schedule", "optimizer", "trainer", "tracker", "experiment"]


def lines(seed: int) -> Iterator[list[str]]:
    """Command lines that Hydra composes from the start: groups, and anything beside them."""
    draw = random.Random(seed)
    keys = ["sparsity", "seed", "optimizer.lr", "hydra/launcher", "hydra/sweeper", "no.such.key"]
    for group in GROUPS:
        yield [f"{group}={draw.choice(VALUES)}"]
        yield [f"{draw.choice(['~', '+', '++', ''])}{group}={draw.choice(['null', '0', 'x', ''])}"]
    for _ in range(16):
        yield list(arguments(draw, [*GROUPS, *keys]))


FIXED = [
    *("model=null", "pruner=0", "optimizer=true", "schedule=1e3", "dataset=[0]", "~model"),
    *("~pruner", "~trainer", "~dataset.augment", "hydra/launcher=null", "output_root=null"),
    *("+dataset.seed=1", "+model.num_classes=3", "seed=" + "9" * 5000, "optimizer.lr=true"),
    *("seed=true", "sparsity=false", "optimizer.lr=inf", "pruner.alpha_1='0.5'", "model.depth=2.0"),
]  # fmt: skip


def answer(written: list[str], monkeypatch, capsys) -> tuple[int, str]:
    """Exit code and stderr of the command line, in this process; no run is done."""

    def run(values: DictConfig) -> None:
        command.checked(values)

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)  # set by the call before
    monkeypatch.setattr(command, "run", run)
    monkeypatch.setattr(sys, "argv", ["train.py", "hydra/job_logging=none", *written])
    capsys.readouterr()
    try:
        command.main(CONF)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    finally:
        GlobalHydra.instance().clear()
    return code, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("written", [[line] for line in FIXED], ids=lambda x: x[0][:30])
def test_a_fault_is_one_line_and_exit_code_2(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, said = answer(written, monkeypatch, capsys)
    assert code == 2
    assert said.startswith("error: ")
    assert said.count("\n") == 1


@pytest.mark.parametrize("written", ["tracker=null", "experiment=null"])
def test_null_is_none_of_a_group_that_is_not_needed(written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert answer([written], monkeypatch, capsys) == (0, "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_command_line_is_valid_or_its_fault_is_one_line(seed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for written in lines(seed):
        try:
            code, said = answer(written, monkeypatch, capsys)
        except Exception as error:
            raise AssertionError(f"{written}: {error!r}") from error
        assert (code, said.count("\n")) in ((0, 0), (2, 1)), (written, said)
