"""The built wheel trains in an empty folder, with conf/ inside; known versions fit its ranges."""

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What the wheel would put into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def seven_exp(installed, folder, *words):
    # First on the path: this checkout is installed, too.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, "-m", "seven_exp", *words],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_the_wheel_trains_and_compares_in_an_empty_folder(installed, tmp_path):
    done = seven_exp(
        installed, tmp_path, "train", "pruner=seven_dyn", "sparsity=0.7", "model=mlp",
        "model.widths=[8]", "trainer.max_steps=20", "tracker=null", f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results.json")
    record = json.loads(path.read_text())
    assert record["params_nonzero"] == int(0.3 * record["params_prunable"])
    compared = seven_exp(installed, tmp_path, "compare", str(path.parent))
    assert compared.returncode == 0, compared.stderr
    assert "seven_dyn" in compared.stdout


def test_a_folder_of_ones_own_configs(installed, tmp_path):
    (tmp_path / "own" / "pruner").mkdir(parents=True)
    (tmp_path / "own" / "pruner" / "mine.yaml").write_text("name: seven_dyn\nalpha_1: 0.5\n")
    done = seven_exp(
        installed, tmp_path, "train", "--config-dir", "own", "pruner=mine", "sparsity=0.6",
        "model=mlp", "model.widths=[8]", "trainer.max_steps=20", "tracker=null",
        f"cache_dir={tmp_path}/cache",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.rglob("results.json")
    record = json.loads(path.read_text())
    assert record["pruner"] == "seven_dyn"
    assert record["config"]["pruner"]["alpha_1"] == 0.5
    assert record["params_nonzero"] == int(0.4 * record["params_prunable"])


def test_the_wheel_says_that_it_is_typed(installed):
    assert (installed / "seven_exp" / "py.typed").is_file()


def test_help_names_every_command_in_a_line_of_its_own(installed, tmp_path):
    done = seven_exp(installed, tmp_path, "--help")
    assert done.returncode == 0
    for command in ("train", "compare", "export", "measure"):
        (line,) = [x for x in done.stdout.splitlines() if x.split()[:1] == [command]]
        assert len(line.split()) > 3


def test_constraints_name_a_version_of_every_dependency_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    known = [Requirement(line) for line in lines if not line.startswith("#")]
    versions: dict[str, list[str]] = {}
    for requirement in known:
        # One exact version, and no address, hash or option.
        assert requirement.url is None
        assert not requirement.extras
        (exact,) = requirement.specifier
        assert exact.operator == "=="
        versions.setdefault(requirement.name, []).append(exact.version)
    for direct in (Requirement(line) for group in groups for line in group):
        assert versions[direct.name], direct
        assert all(direct.specifier.contains(v) for v in versions[direct.name]), direct


def test_the_wheel_holds_all_of_conf(installed):
    names = {str(p.relative_to(ROOT / "conf")) for p in (ROOT / "conf").rglob("*.yaml")}
    inside = installed / "seven_exp" / "conf"
    assert {str(p.relative_to(inside)) for p in inside.rglob("*.yaml")} == names


def test_an_unknown_command_is_one_line(installed, tmp_path):
    done = seven_exp(installed, tmp_path, "trian")
    assert (done.returncode, done.stderr) == (
        2,
        "error: unknown command 'trian': did you mean 'train'?\n",
    )
