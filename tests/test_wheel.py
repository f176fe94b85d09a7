"""The built wheel trains in an empty folder, with conf/ inside."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
