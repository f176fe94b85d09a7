"""Faults during a run: the message to the user, and that no finished work is lost."""

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from safetensors import SafetensorError
from test_cli import train
from test_conf import composed
from test_resume import CASES, SMALL, left_by

from seven_exp.cli.faults import explain
from seven_exp.datasets.folders import Streamed
from seven_exp.runs.run import run_experiment
from seven_exp.tracking import Guarded, LocalRecord, RecordError, Trackers
from seven_exp.training import checkpoints as checkpoints_file
from seven_exp.training import pretrain
from seven_exp.training.loop import DivergedError


def config_of(tmp_path, *overrides):
    return composed(*CASES["during"], f"cache_dir={tmp_path / 'cache'}", *overrides)


class Breaking(LocalRecord):
    """Does something to the run's folder once a step is logged."""

    def __init__(self, step, do) -> None:
        self.step, self.do = step, do

    def log(self, step, values):
        super().log(step, values)
        if step == self.step:
            self.do(self.folder)


def goes_on(config, folder: Path, whole: Path, caplog) -> None:
    """After the fault is fixed, the run continues and ends like a run without faults."""
    caplog.set_level(logging.INFO)
    run_experiment(config, folder, LocalRecord())
    assert "continuing after step" in caplog.text
    run_experiment(config, whole, LocalRecord())
    assert left_by(folder) == left_by(whole)


def test_a_disk_that_is_full_for_the_figures_stops_the_run(tmp_path, caplog):
    """/dev/full: the system's own refusal."""
    config = config_of(tmp_path)
    lines = []

    def fill(folder):
        lines.append((folder / "metrics.jsonl").read_bytes())
        (folder / "metrics.jsonl").unlink()
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(RecordError, match=r"can't write .*metrics\.jsonl: No space left on device"):
        run_experiment(config, tmp_path / "run", Breaking(8, fill))
    (tmp_path / "run/metrics.jsonl").unlink()
    # Half a line is what a full disk leaves.
    (tmp_path / "run/metrics.jsonl").write_bytes(lines[0] + b'{"step": 10, "lo')
    assert json.loads((tmp_path / "run/results.json").read_text())["status"] == "failed"
    goes_on(config, tmp_path / "run", tmp_path / "whole", caplog)


def test_a_disk_that_is_full_for_checkpoints_costs_a_warning(tmp_path, caplog, monkeypatch):
    real, left = checkpoints_file.save_file, []

    def save_file(tensors, path, metadata):
        real(tensors, path, metadata)
        left.append(path)
        if len(left) in (2, 3):
            raise checkpoints_file.SafetensorError("IoError: No space left on device")

    monkeypatch.setattr(checkpoints_file, "save_file", save_file)
    run_experiment(config_of(tmp_path), tmp_path / "run", LocalRecord())
    warnings = [r.message for r in caplog.records if "checkpoint" in r.message]
    assert warnings == [
        f"the checkpoint after step {step} can't be written (IoError: No space left on device): "
        "the run continues without it"
        for step in (6, 9)
    ]
    assert not left[1].exists()
    run_experiment(config_of(tmp_path), tmp_path / "whole", LocalRecord())
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@contextlib.contextmanager
def disk(folder: Path, *options: str):
    """A file system of its own, where one may be made."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
    with contextlib.suppress(FileNotFoundError):
        if subprocess.run(command, capture_output=True).returncode == 0:
            try:
                yield
            finally:
                subprocess.run(["umount", str(folder)], check=True)
            return
    pytest.skip("no file system can be mounted here")


def test_a_small_disk(tmp_path, caplog):
    """The disk fills up during a run: the record stays, checkpoints fail until there is space."""
    with disk(tmp_path / "disk", "size=400k"):
        config, folder = config_of(tmp_path), tmp_path / "disk/run"

        def fill(folder):
            with contextlib.suppress(OSError), (folder.parent / "ballast").open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

        with pytest.raises(RecordError, match="No space left on device"):
            run_experiment(config, folder, Breaking(8, fill))
        warning, *_ = [r.message for r in caplog.records if "continues without it" in r.message]
        assert warning.startswith("the checkpoint after step 9 can't be written (")
        assert "No space left on device" in warning
        (folder.parent / "ballast").unlink()
        goes_on(config, folder, tmp_path / "whole", caplog)


def test_a_disk_that_becomes_read_only(tmp_path, caplog):
    with disk(tmp_path / "disk", "size=4m"):
        config, folder = config_of(tmp_path), tmp_path / "disk/run"

        def remount(mode):
            command = ["mount", "-o", f"remount,{mode}", str(tmp_path / "disk")]
            subprocess.run(command, check=True)

        try:
            with pytest.raises(RecordError, match="Read-only file system"):
                run_experiment(config, folder, Breaking(8, lambda _: remount("ro")))
        finally:
            remount("rw")
        goes_on(config, folder, tmp_path / "whole", caplog)


class Server:
    """A tracker with a server that is refusing or slow from some step on."""

    def __init__(self, step: int, answer) -> None:
        self.step, self.answer, self.finished = step, answer, None

    def start(self, run):
        self.folder = run.folder

    def log(self, step, values):
        if step >= self.step:
            self.answer()

    def finish(self, record):
        # However long it takes, or if it never returns: the record on disk is complete.
        self.finished = json.loads((self.folder / "results.json").read_text())
        self.answer()


def refuse():
    raise ConnectionError("429 Too Many Requests")


@pytest.mark.parametrize("answer", [refuse, lambda: time.sleep(0.01)])
def test_a_server_that_refuses_or_is_slow_in_the_middle(tmp_path, caplog, answer):
    server = Server(8, answer)
    run_experiment(
        config_of(tmp_path), tmp_path / "run", Trackers([LocalRecord(), Guarded(server)])
    )
    assert ("Server failed (429 Too Many Requests)" in caplog.text) is (answer is refuse)
    assert (server.finished is None) is (answer is refuse)
    if server.finished is not None:
        assert server.finished["status"] == "finished"
    run_experiment(config_of(tmp_path), tmp_path / "whole", LocalRecord())
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_not_a_number(tmp_path, monkeypatch, caplog):
    """The figures until then are kept, and no later ones are."""
    real, calls = torch.optim.SGD.step, []

    def step(optimizer):
        real(optimizer)
        calls.append(None)
        if len(calls) == 9:
            optimizer.param_groups[0]["params"][0].data.fill_(float("nan"))

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    with pytest.raises(DivergedError, match="the loss became nan at step 10 of 24"):
        run_experiment(config_of(tmp_path), tmp_path / "run", LocalRecord())
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert (record["status"], record["steps"]) == ("failed", 8)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4, 5, 6, 8]


def test_a_start_that_diverges_leaves_a_record_of_the_run_that_asked_for_it(tmp_path):
    config = composed(
        *SMALL, "model.pretrain.epochs=1", "model.pretrain.lr=1e30", "optimizer=sgd",
        f"cache_dir={tmp_path / 'cache'}",
    )  # fmt: skip
    with pytest.raises(DivergedError):
        run_experiment(config, tmp_path / "run", LocalRecord())
    record = json.loads((tmp_path / "run/results.json").read_text())
    assert record["status"] == "failed"
    assert "the loss became" in record["error"]
    assert (record["steps"], record["metrics"]) == (0, {})
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


class Deadly(torch.utils.data.Dataset):
    """Images whose numbers say which they are; one kills the process that reads it, for a while."""

    def __init__(self, folder: Path, deaths: int) -> None:
        self.folder, self.deaths = folder, deaths

    def __len__(self):
        return 12

    def __getitem__(self, index):
        if index == 5:
            died = len(list(self.folder.iterdir()))
            if died < self.deaths:
                (self.folder / str(died)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return torch.rand(1) + index, index


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_changes_nothing(tmp_path, caplog, monkeypatch):
    # Seconds that a loader waits for a worker that may have died.
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.5)

    def epoch(deaths, **arguments):
        folder = tmp_path / str(deaths)
        folder.mkdir(exist_ok=True)
        split = Streamed(Deadly(folder, deaths), batch_size=2, seed=3, **arguments)
        return [(x.tolist(), y.tolist()) for x, y in split.epoch(1)]

    expected = epoch(0, workers=0)
    assert epoch(1, workers=1) == expected
    assert "a worker that reads images died: new ones continue at batch" in caplog.text
    with pytest.raises((RuntimeError, EOFError, ConnectionError)):
        epoch(99, workers=1)


def test_an_epoch_can_be_begun_anywhere(tmp_path):
    (tmp_path / "none").mkdir()
    split = Streamed(Deadly(tmp_path / "none", 0), batch_size=2, workers=0, seed=3)
    whole = [(x.tolist(), y.tolist()) for x, y in split.epoch(1)]
    for start in range(7):
        assert [(x.tolist(), y.tolist()) for x, y in split.epoch(1, start)] == whole[start:]


def test_a_clock_that_is_set_back_changes_nothing(tmp_path, monkeypatch):
    """Durations are by a clock that only runs forward; dates are for people."""
    config = config_of(tmp_path)
    run_experiment(config, tmp_path / "whole", LocalRecord())
    now = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    record = run_experiment(config, tmp_path / "run", LocalRecord())
    assert 0 < record["seconds"] < 3600
    assert 0 <= record["seconds_pruning"] <= record["seconds"]
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


@pytest.mark.parametrize(
    "damaged",
    [
        lambda good: good[: len(good) // 2],
        lambda good: good[:-3] + bytes([good[-3] ^ 1]) + good[-2:],
    ],
    ids=["truncated", "a bit flipped"],
)
def test_a_corrupt_start_is_trained_anew_and_gives_the_same_result(tmp_path, caplog, damaged):
    config = config_of(tmp_path, "model.pretrain.epochs=1")
    run_experiment(config, tmp_path / "whole", LocalRecord())
    (start,) = (tmp_path / "cache/pretrained").glob("*.safetensors")
    good = start.read_bytes()
    start.write_bytes(damaged(good))
    run_experiment(config, tmp_path / "run", LocalRecord())
    assert "is broken" in caplog.text
    assert "training it again" in caplog.text
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")
    assert len(start.read_bytes()) == len(good)


def test_a_disk_that_is_full_for_the_start_costs_a_warning_not_the_training(
    tmp_path, caplog, monkeypatch
):
    config = config_of(tmp_path, "model.pretrain.epochs=1")
    with monkeypatch.context() as patch:

        def full(tensors, path, metadata):
            Path(path).write_bytes(b"half of it")
            raise SafetensorError("I/O error: No space left on device (os error 28)")

        patch.setattr(pretrain, "save_file", full)
        run_experiment(config, tmp_path / "run", LocalRecord())
    (warning,) = [r.message for r in caplog.records if "pretrained start" in r.message]
    assert warning.startswith(f"cache_dir: can't save the pretrained start in '{tmp_path}")
    assert "(I/O error: No space left on device (os error 28))" in warning
    assert not list((tmp_path / "cache/pretrained").glob("*.safetensors"))
    run_experiment(config, tmp_path / "whole", LocalRecord())
    assert left_by(tmp_path / "run") == left_by(tmp_path / "whole")


def test_a_cache_that_can_not_be_written_is_named_by_its_key_before_training(tmp_path):
    (tmp_path / "file").write_text("")
    built = []
    with pytest.raises(OSError, match=r"^cache_dir: can't write to '.*file/pretrained': Not a dir"):
        pretrain.cached_start(tmp_path / "file/pretrained", "key", lambda: built.append(1), {})
    assert built == []


def test_a_start_is_read_from_a_cache_that_can_not_be_written(tmp_path, monkeypatch):
    state = {"w": torch.ones(3)}
    pretrain.cached_start(tmp_path, "key", lambda: state, {})

    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(pretrain, "FileLock", refused)
    found = pretrain.cached_start(tmp_path, "key", lambda: {"w": torch.zeros(3)}, {})
    assert torch.equal(found["w"], state["w"])
    with pytest.raises(OSError, match=r"^cache_dir: can't write to .*: Permission denied$"):
        pretrain.cached_start(tmp_path, "other", lambda: state, {})


def test_a_start_of_an_older_version_is_taken_as_it_is(tmp_path, caplog):
    pretrain.save_file({"w": torch.ones(3)}, tmp_path / "key.safetensors", {"identity": "{}"})
    found = pretrain.cached_start(tmp_path, "key", lambda: {"w": torch.zeros(3)}, {})
    assert torch.equal(found["w"], torch.ones(3))
    assert "has no checksum" in caplog.text


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_ends_in_a_line(tmp_path):
    with disk(tmp_path / "disk", "size=16k"):
        done = train(
            tmp_path, "-m", f"output_root={tmp_path}/disk/outputs", "model=mlp", "seed=0,1",
            "trainer.max_steps=2", "pruner=magnitude", "tracker.mode=disabled",
        )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "No space left on device; after fixing this, the same command continues" in last


@pytest.mark.parametrize("sweep", [(), ("-m",)])
def test_an_output_root_that_is_read_only_is_the_users_mistake(tmp_path, sweep):
    with disk(tmp_path / "disk", "ro"):
        done = train(tmp_path, *sweep, f"output_root={tmp_path}/disk/outputs", "model=mlp")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: output_root: can't write the run's folder: ")
    assert "Read-only file system" in line


@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_no_output_root_is_one_line(tmp_path, mode):
    done = train(tmp_path, *mode, "output_root=null", "tracker=null")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert lines[-1] == "error: output_root is None: it should be a valid string"
    assert "TypeError" not in done.stderr


def test_an_error_without_words_is_explained_by_its_cause():
    silent = RuntimeError()
    assert explain(silent) == "RuntimeError"
    silent.__cause__ = OSError("the disk\n is gone")
    assert explain(silent) == "the disk is gone"


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("pruner=sevn_dyn", "unknown pruner 'sevn_dyn': did you mean 'seven_dyn'?"),
        ("dataset=glue/sst3", "unknown dataset 'glue/sst3': did you mean 'glue/sst2'?"),
        ("hydra/launcher=jblib", "unknown hydra/launcher 'jblib': did you mean 'joblib'?"),
        ("model=/my/own", "unknown model '/my/own': did you mean model=hf model.name=/my/own?"),
        ("model=me/own", "unknown model 'me/own': did you mean model=hf model.name=me/own?"),
    ],
)
def test_an_unknown_choice_is_explained(override, line):
    with pytest.raises(HydraException) as caught:
        composed(override)
    assert explain(caught.value) == line


def test_a_plugin_s_name_needs_a_yaml(monkeypatch):
    with pytest.raises(HydraException) as caught:
        composed("pruner=spread")
    monkeypatch.setattr(sys, "argv", ["seven-exp", "plugins=[spread.py]", "pruner=spread"])
    assert explain(caught.value).endswith(
        "(a plugin's name also needs pruner/NAME.yaml in the folder of --config-dir)"
    )
