"""Processes import what they use: no compiler unless something is compiled, no torch for a skip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from preloaded import python
from test_conf import composed

from seven_exp.runs import known, run_hash
from seven_exp.runs.known import known_hash, remember

ROOT = Path(__file__).parent.parent

DEFERRED = """
import sys
from seven_exp.cli.deferred_compiler import defer_compiler
defer_compiler()
import torch
from torch.utils.flop_counter import FlopCounterMode

model = torch.nn.Linear(3, 3)
optimizer = torch.optim.AdamW(model.parameters())

def step():
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()

step()
with FlopCounterMode(display=False) as counter:
    model(torch.ones(2, 3))
assert counter.get_total_flops() == 2 * 2 * 3 * 3
assert "torch._dynamo.eval_frame" not in sys.modules
import torch._dynamo.config as config
import torch._dynamo

assert torch._dynamo.config is config is sys.modules["torch._dynamo.config"]
assert torch.equal(torch.compile(model, backend="eager")(torch.ones(2, 3)), model(torch.ones(2, 3)))
step()
exempt = torch.optim.Optimizer.zero_grad.__wrapped__
assert vars(exempt)["__dynamo_disable"] is not exempt
"""


@pytest.mark.slow
def test_the_compiler_is_imported_when_it_is_used():
    subprocess.run([sys.executable, "-c", DEFERRED], check=True, cwd=ROOT)


@pytest.mark.slow
def test_a_finished_run_is_skipped_without_torch(tmp_path):
    tiny = (
        *("model=mlp", "model.widths=[4]", "trainer.max_steps=2", "tracker.mode=disabled"),
        *("run.skip_finished=true", f"output_root={tmp_path}"),
    )
    subprocess.run([python(), "train.py", *tiny], check=True, cwd=ROOT)
    again = subprocess.run(
        [sys.executable, "-X", "importtime", "train.py", *tiny],
        check=True, cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert "already done, in" in again.stderr
    imported = {line.rpartition("|")[2].strip() for line in again.stderr.splitlines()}
    assert "hydra" in imported
    assert not imported & {"torch", "numpy", "sklearn", "wandb"}


def test_a_hash_is_known_for_the_same_config_and_code_only(tmp_path, monkeypatch):
    code = tmp_path / "code"
    code.mkdir()
    (code / "a.py").write_text("1")
    monkeypatch.setattr(known, "PACKAGE", code)
    config = composed(f"output_root={tmp_path}")
    assert known_hash(config) is None
    remember(config, run_hash(config))
    assert known_hash(config) == run_hash(config)
    assert known_hash(composed(f"output_root={tmp_path}", "seed=1")) is None
    (code / "a.py").write_text("12")
    assert known_hash(config) is None


@pytest.mark.parametrize(
    "reads",
    [
        ["plugins=[spread]"],
        ["model.checkpoint=start.safetensors"],
        ["dataset=image_folder", "dataset.data_dir=images", "dataset.image_size=8"],
    ],
    ids=" ".join,
)
def test_a_hash_that_depends_on_files_is_computed_each_time(tmp_path, reads):
    config = composed(f"output_root={tmp_path}", *reads)
    remember(config, "0" * 12)
    assert known_hash(config) is None
