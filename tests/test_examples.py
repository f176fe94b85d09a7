"""The examples run and do what they say."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_a_loop_of_ones_own():
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "own_loop.py"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    lines = re.findall(r"(\w+): ([\d.]+)% accuracy at ([\d.]+)% sparsity", done.stdout)
    assert [name for name, _, _ in lines] == ["seven_pre", "seven_dyn"]
    for _, accuracy, sparsity in lines:
        assert float(accuracy) > 70
        assert sparsity == "90.0"
