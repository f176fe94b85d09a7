"""Output to a terminal or a pipe is complete, for any names and encoding."""

import io
import sys
from pathlib import Path

import pytest

from seven_exp.console import show_record, table_console

RECORD = {
    "pruner": "seven_[x]", "when": "during", "schedule": ":smile:", "metric": "accuracy",
    "metrics": {"accuracy": 0.5}, "validation": {"accuracy": 0.25},
    "params_nonzero": 1, "params_prunable": 2, "sparsity": 0.5,
    "seconds": 1.0, "seconds_pruning": 0.1,
}  # fmt: skip


def test_names_and_paths_are_no_markup(capsys):
    show_record(RECORD, Path("a[x]b/:smile:"))
    said = capsys.readouterr().out
    assert "record: a[x]b/:smile:/results.json" in said
    assert "seven_[x] (during training, :smile:)" in said
    rows = [line.split() for line in said.splitlines() if "accuracy" in line]
    assert rows == [["accuracy", "(test)", "50.00%"], ["accuracy", "(validation)", "25.00%"]]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_an_encoding_lacks_is_replaced(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    table_console().print("94.4 ± 0.5 é 日")
    sys.stdout.flush()
    expected = {
        "ascii": "94.4 +/- 0.5 ? ?", "latin-1": "94.4 ± 0.5 é ?", "utf-8": "94.4 ± 0.5 é 日",
    }  # fmt: skip
    assert raw.getvalue().decode(encoding).strip() == expected[encoding]
