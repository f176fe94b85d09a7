"""Runs are found by hash, and executed once, by one process at a time."""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from test_conf import composed

from seven_exp import runs
from seven_exp.config import ConfigError, parse
from seven_exp.datasets.registry import dataset
from seven_exp.files import locks
from seven_exp.runs import artifacts, provenance
from seven_exp.runs import identity as identity_of
from seven_exp.runs.identity import data_identity
from seven_exp.runs.ledger import RECORD, Ledger, record_of

HASH, OTHER = "0123456789ab", "ba9876543210"


def finish(folder: Path, run_hash: str = HASH, status: str = "finished", **facts) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    runs.save_masks(folder / "masks.safetensors", {"w": torch.ones(40, dtype=torch.bool)})
    (folder / "metrics.jsonl").write_text("")
    record = {"run_hash": run_hash, "status": status, **facts}
    (folder / "results.json").write_text(json.dumps(record))


def interrupt(folder: Path) -> None:
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints/step-00000005.safetensors").write_text("")


def test_a_finished_run_is_found_and_its_record_outlives_its_folder(tmp_path):
    ledger, first = Ledger(tmp_path), tmp_path / "day/first"
    assert ledger.finished(HASH) is None
    assert ledger.home(HASH, first, afresh=False) == first
    assert ledger.finished(HASH) is None
    finish(first)
    assert ledger.finished(HASH) == first
    interrupt(first)  # killed after the record, before tidying up
    second = tmp_path / "day/second"
    ledger.share(HASH, first, second)
    assert [(second / name).stat().st_ino for name in RECORD] == [
        (first / name).stat().st_ino for name in RECORD
    ]
    assert not any(first.rglob("step-*"))
    shutil.rmtree(first)
    assert ledger.finished(HASH) == second
    assert record_of(second, HASH) is not None
    # The root can be moved as a whole.
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    assert Ledger(moved).finished(HASH) == moved / "day/second"


def test_where_links_are_impossible_the_record_is_copied(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another file system")

    monkeypatch.setattr(os, "link", refuse)
    finish(tmp_path / "first")
    Ledger(tmp_path / "root").share(HASH, tmp_path / "first", tmp_path / "second")
    for name in RECORD:
        assert (tmp_path / "second" / name).read_bytes() == (tmp_path / "first" / name).read_bytes()


@pytest.mark.parametrize(
    "record",
    ['{"run_hash": "0123456789ab", "status"', "[]", "", '{"run_hash": "x", "status": "finished"}',
     '{"run_hash": "0123456789ab", "status": "failed"}'],
)  # fmt: skip
def test_half_a_record_or_another_s_is_none(tmp_path, record):
    Ledger(tmp_path).home(HASH, tmp_path / "a", afresh=False)
    (tmp_path / "a/results.json").write_text(record)
    assert Ledger(tmp_path).finished(HASH) is None


@pytest.mark.parametrize("checksums", [True, False])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    ],
    ids=["truncated", "empty", "missing", "bit flipped"],
)
def test_a_run_whose_masks_are_broken_is_not_done(tmp_path, caplog, damage, checksums, request):
    if "bit flipped" in request.node.name and not checksums:
        pytest.skip("a file of the right length can't be told from a whole one")
    ledger, folder = Ledger(tmp_path), tmp_path / "a"
    ledger.home(HASH, folder, afresh=False)
    finish(folder)
    if checksums:
        finish(folder, sha256=artifacts.checksums(folder))
    assert ledger.finished(HASH) == folder
    damage(folder / "masks.safetensors")
    assert ledger.finished(HASH) is None
    (line,) = [r.message for r in caplog.records]
    assert (
        line == f"{folder}/masks.safetensors is missing or broken: its run does not count as done"
    )


def test_an_unreadable_file_of_the_ledger_costs_itself_only(tmp_path, caplog):
    ledger = Ledger(tmp_path)
    for run_hash in (HASH, OTHER):
        ledger.home(run_hash, tmp_path / run_hash, afresh=False)
        finish(tmp_path / run_hash, run_hash)
    (tmp_path / ".runs" / f"{HASH}.txt").write_bytes(b"\xff\xfe\x80")
    assert ledger.finished(HASH) is None
    assert f"{HASH}.txt can't be read (it is no text): it counts as empty" in caplog.text
    assert ledger.finished(OTHER) == tmp_path / OTHER
    # Done once more, it is known again.
    assert ledger.home(HASH, tmp_path / HASH, afresh=False) == tmp_path / HASH
    assert ledger.finished(HASH) == tmp_path / HASH


def test_a_folder_in_the_place_of_a_ledger_s_file_costs_itself_only(tmp_path, caplog):
    ledger = Ledger(tmp_path)
    (tmp_path / ".runs" / f"{HASH}.txt").mkdir(parents=True)
    assert ledger.home(HASH, tmp_path / "a", afresh=False) == tmp_path / "a"
    finish(tmp_path / "a")
    ledger.share(HASH, tmp_path / "a", tmp_path / "b")
    assert record_of(tmp_path / "b", HASH) is not None
    assert ledger.finished(HASH) is None
    assert "is a folder: the run is not recorded" in caplog.text


def test_what_was_left_to_others_is_fetched_once_it_is_done(tmp_path):
    ledger, sweep = Ledger(tmp_path), tmp_path / "sweep"
    for job, run_hash in enumerate((HASH, OTHER)):
        ledger.leave(run_hash, sweep / str(job))
    assert ledger.gather(sweep) == 2
    ledger.home(HASH, tmp_path / "elsewhere", afresh=False)
    finish(tmp_path / "elsewhere")
    assert ledger.gather(sweep) == 1
    assert record_of(sweep / "0", HASH) is not None
    # The same command in the same folder does the run itself.
    ledger.home(OTHER, sweep / "1", afresh=False)
    assert ledger.gather(sweep) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_runs_are_done_without(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    locks._warn.cache_clear()
    for run_hash in (HASH, OTHER):
        with Ledger(tmp_path).claimed(run_hash, 0) as mine:
            assert mine
    assert caplog.text.count(f"has no locks ({os.strerror(number)}): continuing without") == 1


def test_an_interrupted_run_goes_on_where_it_lies(tmp_path):
    ledger = Ledger(tmp_path)
    assert ledger.home(HASH, tmp_path / "a", afresh=False) == tmp_path / "a"
    # Nothing to go on from: a folder with no checkpoint is left alone.
    assert ledger.home(HASH, tmp_path / "b", afresh=False) == tmp_path / "b"
    interrupt(tmp_path / "a")
    assert ledger.home(HASH, tmp_path / "c", afresh=False) == tmp_path / "a"
    assert ledger.home(HASH, tmp_path / "c", afresh=True) == tmp_path / "c"


def test_begun_afresh_in_its_own_folder_it_leaves_nothing_of_the_old_one(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.home(HASH, tmp_path / "a", afresh=False)
    finish(tmp_path / "a")
    interrupt(tmp_path / "a")
    assert ledger.home(HASH, tmp_path / "a", afresh=True) == tmp_path / "a"
    assert [p.name for p in (tmp_path / "a").iterdir()] == [".run_hash"]


def test_two_runs_in_one_folder_do_not_meet(tmp_path):
    """Two sweeps with one folder, or a clock set back, by which Hydra names folders."""
    ledger, job = Ledger(tmp_path), tmp_path / "job"
    assert ledger.home(HASH, job, afresh=False) == job
    finish(job)
    assert ledger.home(OTHER, job, afresh=True) == job / OTHER
    finish(job / OTHER, OTHER)
    assert record_of(job, HASH) is not None
    assert ledger.finished(OTHER) == job / OTHER
    # Nor does the record of one that was found elsewhere take another's place.
    finish(tmp_path / "elsewhere", OTHER)
    ledger.share(OTHER, tmp_path / "elsewhere", job)
    assert record_of(job, HASH) is not None


def hold(root: Path, ready, leave) -> None:
    with Ledger(root).claimed(HASH, 0) as mine:
        assert mine
        ready.set()
        leave.wait(60)


def holder(root: Path):
    """Another process that works on the run; it leaves the run when the event is set."""
    context = multiprocessing.get_context("fork")
    ready, leave = context.Event(), context.Event()
    worker = context.Process(target=hold, args=(root, ready, leave))
    worker.start()
    assert ready.wait(60)
    return worker, leave


def test_one_process_works_the_other_leaves_it_or_waits(tmp_path):
    worker, leave = holder(tmp_path)
    with Ledger(tmp_path).claimed(HASH, 0) as mine:
        assert not mine
    with Ledger(tmp_path).claimed(OTHER, 0) as mine:
        assert mine
    leave.set()
    with Ledger(tmp_path).claimed(HASH, 60) as mine:
        assert mine
    worker.join()
    assert worker.exitcode == 0


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    worker, _ = holder(tmp_path)
    worker.kill()
    worker.join()
    with Ledger(tmp_path).claimed(HASH, 0) as mine:
        assert mine


def test_a_folder_that_can_not_be_written_is_named_in_a_line(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"output_root is '.*file/runs': can't write there"),
        Ledger(tmp_path / "file/runs").claimed(HASH, 0),
    ):
        pass


@pytest.mark.parametrize(
    "override",
    ["run.force=true", "run.skip_finished=true", "run.wait=5", "run.checkpoint_interval=1",
     "run.keep=7"],
)  # fmt: skip
def test_how_a_run_is_done_is_not_what_it_is(override):
    assert runs.run_hash(composed(override)) == runs.run_hash(composed())


def test_files_of_ones_own_are_part_of_the_identity(tmp_path):
    def image(*place: str) -> Path:
        path = tmp_path.joinpath(*place)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("pixels")
        return path

    def identity(folder: str) -> str:
        data = f"dataset.data_dir={tmp_path / folder}"
        return runs.run_hash(composed("dataset=image_folder", data))

    for folder in ("here", "there"):
        for split in ("train", "test"):
            image(folder, split, "cat", "1.png")
    assert identity("here") == identity("there")
    image("there", "train", "cat", "2.png")
    assert identity("here") != identity("there")
    image("here", "train", "cat", "3.png").rename(tmp_path / "here/train/cat/2.png")
    assert identity("here") == identity("there")
    (tmp_path / "here/train/cat/2.png").write_text("more pixels")
    assert identity("here") != identity("there")


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        # written down, so that runs that are done stay known
        ({"name": "digits"}, {"augment": False}),
        ({"name": "fashion_mnist"}, {"augment": True, "image_size": None}),
        ({"name": "cifar10"}, {"augment": True, "image_size": None}),
        ({"name": "glue/sst2"}, {"tokenizer": "bert_base", "max_length": 128}),
        ({"name": "image_folder"}, {"image_size": 32, "augment": True, "files": "435202ccd3a6"}),
        ({"name": "imagenet"}, {"image_size": 224, "augment": True, "files": "435202ccd3a6"}),
    ],
)
def test_what_the_package_s_own_data_sets_are_known_by(tmp_path, arguments, known):
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / "1.png").write_text("pixels")
    name = arguments["name"]
    model = "bert_base" if "/" in name else "mlp"
    place = [] if name == "digits" else [f"dataset.data_dir={tmp_path}"]
    config = composed(f"dataset={name}", f"model={model}", *place)
    assert data_identity(config) == {**arguments, **known, "validation": None}


@pytest.fixture
def own_data():
    """Registers a data set as a plugin does, and gives the hash of a run on it."""

    def register(**options):
        @dataset("own", **options)
        def load(*, batch_size: int, seed: int, data_dir: str, cache_dir: str):
            raise AssertionError("nothing is read")

        def identity(data_dir: Path, cache_dir: str = "cache") -> str:
            values = composed().model_dump()
            values["dataset"] = {
                "name": "own", "data_dir": str(data_dir), "cache_dir": cache_dir,
                "validation": None,
            }  # fmt: skip
            return runs.run_hash(parse(values))

        return identity

    return register


def test_a_data_set_of_ones_own_is_known_by_its_place_and_its_files(
    tmp_path, monkeypatch, own_data
):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "x.npy").write_text("of one size")
    identity = own_data()
    here = identity(tmp_path / "here")
    assert identity(tmp_path / "there") != here
    assert identity(tmp_path / "nowhere") not in (here, identity(tmp_path / "neither"))
    assert identity(tmp_path / "here", cache_dir="elsewhere") == here
    monkeypatch.chdir(tmp_path)
    assert identity(Path("here")) == here
    (tmp_path / "here/y.npy").write_text("more")
    assert identity(tmp_path / "here") != here
    file = tmp_path / "there/x.npy"
    before = identity(file)
    file.write_text("of 1 length")
    assert identity(file) != before


@pytest.mark.parametrize(("known_by", "same"), [("files", False), ("name", True)])
def test_a_data_set_of_ones_own_may_say_that_its_place_is_nothing(
    tmp_path, own_data, known_by, same
):
    for place in ("here", "there"):
        (tmp_path / place).mkdir()
    identity = own_data(known_by=known_by)
    assert identity(tmp_path / "here") == identity(tmp_path / "there")
    (tmp_path / "here/x.npy").write_text("x")
    assert (identity(tmp_path / "here") == identity(tmp_path / "there")) is same


def test_a_run_is_done_again_when_results_change_not_when_the_package_does(monkeypatch):
    before = runs.run_hash(composed())
    monkeypatch.setattr(provenance, "__version__", "99.0")
    assert runs.run_hash(composed()) == before
    monkeypatch.setattr(identity_of, "RESULTS", identity_of.RESULTS + 1)
    assert runs.run_hash(composed()) != before


def test_single_layers_sparsities_prune_where_the_rest_does_not():
    dense = composed("pruner=magnitude", "sparsity=0")
    partly = composed("pruner=magnitude", "sparsity=0", "pruner.sparsities={mlp:0.5}")
    half = composed("pruner=magnitude", "sparsity=0", "pruner.sparsities={mlp:0.6}")
    assert len({runs.run_hash(config) for config in (dense, partly, half)}) == 3
